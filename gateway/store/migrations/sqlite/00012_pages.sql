-- +goose Up
-- Certificate managers page through the kinds of requests that are rare among the others.
CREATE INDEX requests_refused ON requests (state, id) WHERE state IN ('denied', 'failed');
CREATE INDEX requests_revoked ON requests (id) WHERE state = 'issued' AND revoked <> 0;
