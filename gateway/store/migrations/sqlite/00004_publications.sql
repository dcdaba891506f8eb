-- +goose Up
-- Certificates that are to be in the directory, or are there. A row comes with the certificate, in the same transaction.
CREATE TABLE publications (
    request_id   INTEGER NOT NULL REFERENCES requests (id),
    place        TEXT    NOT NULL CHECK (place IN ('account', 'kra')),
    target       TEXT    NOT NULL,           -- the account's SID, or the name of the CA
    state        TEXT    NOT NULL CHECK (state IN ('wanted', 'published', 'withdrawn')),
    due          INTEGER NOT NULL,           -- when to look at it next, in Unix milliseconds; of withdrawn ones it means nothing
    attempts     INTEGER NOT NULL DEFAULT 0, -- that failed, since the last success
    error        TEXT    NOT NULL DEFAULT '',
    PRIMARY KEY (request_id, place)
);
CREATE INDEX publications_due ON publications (due) WHERE state <> 'withdrawn';
CREATE INDEX publications_wanted ON publications (request_id) WHERE state = 'wanted';
CREATE INDEX publications_failing ON publications (request_id) WHERE attempts > 0;
CREATE INDEX publications_target ON publications (place, target);

-- Accounts that the directory said were disabled or deleted, and since when they were found so.
CREATE TABLE leavers (
    sid          TEXT    PRIMARY KEY,
    account      TEXT    NOT NULL, -- as the certificate's request named it
    state        TEXT    NOT NULL CHECK (state IN ('disabled', 'deleted', 'expired')),
    since        INTEGER NOT NULL
);

-- Also serves those who look for every certificate of an account.
DROP INDEX requests_subject;
CREATE INDEX requests_subject ON requests (subject_sid, revoked, not_after) WHERE state = 'issued';
