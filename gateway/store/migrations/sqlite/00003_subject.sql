-- +goose Up
-- The account that a certificate is for, which is not the caller's where an enrollment agent asked for it.
ALTER TABLE requests ADD COLUMN subject_sid TEXT NOT NULL DEFAULT '';
UPDATE requests SET subject_sid = caller_sid;
-- When the certificate was revoked through the gateway, in Unix milliseconds; 0 where it was not.
ALTER TABLE requests ADD COLUMN revoked INTEGER NOT NULL DEFAULT 0;
UPDATE requests SET revoked = coalesce((SELECT v.revoked FROM revocations v WHERE v.ca = requests.ca AND v.serial = requests.serial), 0)
    WHERE serial <> '';
CREATE INDEX requests_subject ON requests (subject_sid) WHERE state = 'issued' AND revoked = 0;
