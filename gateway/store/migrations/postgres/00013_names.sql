-- +goose Up
-- What certificate managers look for: of the certificate, in small letters. A certificate without its hash was never looked at.
ALTER TABLE requests ADD COLUMN common_name TEXT COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE requests ADD COLUMN upn TEXT COLLATE "C" NOT NULL DEFAULT '';              -- user principal name
ALTER TABLE requests ADD COLUMN certificate_hash TEXT COLLATE "C" NOT NULL DEFAULT ''; -- SHA-1 of its DER, hexadecimal
ALTER TABLE requests ADD COLUMN subject_key_id TEXT COLLATE "C" NOT NULL DEFAULT '';   -- its subject key identifier, hexadecimal
CREATE INDEX requests_common_name ON requests (common_name, id) WHERE state = 'issued';
CREATE INDEX requests_upn ON requests (upn, id) WHERE state = 'issued' AND upn <> '';
CREATE INDEX requests_hash ON requests (certificate_hash, id) WHERE state = 'issued';
CREATE INDEX requests_subject_key ON requests (subject_key_id, id) WHERE state = 'issued' AND subject_key_id <> '';
