-- +goose Up
-- Under which policy a key was sealed, how many agents it takes, and in which format.
ALTER TABLE escrow_records ADD COLUMN policy TEXT NOT NULL DEFAULT 'default';
ALTER TABLE escrow_records ADD COLUMN required INTEGER NOT NULL DEFAULT 1;
ALTER TABLE escrow_records ADD COLUMN format INTEGER NOT NULL DEFAULT 1; -- 1: CMS EnvelopedData, 2: shared among the agents

CREATE TABLE recovery_cases (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    state         TEXT    NOT NULL CHECK (state IN ('open', 'approved', 'fetched', 'denied', 'withdrawn', 'expired')),
    created       INTEGER NOT NULL, -- Unix milliseconds
    expires       INTEGER NOT NULL,
    ended         INTEGER NOT NULL DEFAULT 0,
    record        INTEGER NOT NULL REFERENCES escrow_records (id),
    policy        TEXT    NOT NULL,
    required      INTEGER NOT NULL,
    opened_by     TEXT    NOT NULL, -- Kerberos principal
    opened_by_sid TEXT    NOT NULL,
    recipient_sid TEXT    NOT NULL,
    statement     TEXT    NOT NULL, -- JSON: what was asked for, with the public half of the case key
    fingerprint   BLOB    NOT NULL UNIQUE, -- of the statement: a case that is sent again is the same case
    note          TEXT    NOT NULL DEFAULT '' -- why it was denied or withdrawn
);
CREATE INDEX recovery_cases_live ON recovery_cases (expires) WHERE state IN ('open', 'approved');

CREATE TABLE recovery_approvals (
    case_id      INTEGER NOT NULL REFERENCES recovery_cases (id),
    agent        TEXT    NOT NULL, -- SHA-256 fingerprint of the agent's certificate
    approver     TEXT    NOT NULL, -- Kerberos principal
    approver_sid TEXT    NOT NULL,
    created      INTEGER NOT NULL,
    approval     BLOB    NOT NULL, -- JSON: the share, sealed to the case key; emptied when the case ends
    PRIMARY KEY (case_id, agent),
    UNIQUE (case_id, approver_sid)
);

-- Finds the delivery of a case in a long log.
CREATE INDEX audit_recovery_fetched ON audit (json_extract(detail, '$.case')) WHERE event = 'recovery-fetched';
