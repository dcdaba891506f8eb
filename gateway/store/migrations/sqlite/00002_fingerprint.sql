-- +goose Up
-- Finds a request that arrives a second time while the first is under way.
CREATE INDEX requests_fingerprint ON requests (fingerprint, caller_sid);
