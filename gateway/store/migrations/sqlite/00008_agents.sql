-- +goose Up
-- How many records depend on which agents is counted in this index, not in the records.
CREATE INDEX escrow_records_terms ON escrow_records (policy, required, recipients);

-- When it was last proven that agents can open the record as it is, in Unix milliseconds; 0 where it never was.
ALTER TABLE escrow_records ADD COLUMN proven INTEGER NOT NULL DEFAULT 0;

-- What records were before they were sealed anew, until that is proven.
CREATE TABLE escrow_previous (
    record       INTEGER PRIMARY KEY REFERENCES escrow_records (id),
    batch        INTEGER NOT NULL,
    replaced     INTEGER NOT NULL, -- Unix milliseconds
    recipients   TEXT    NOT NULL,
    sealed       BLOB    NOT NULL,
    required     INTEGER NOT NULL,
    format       INTEGER NOT NULL,
    proven       INTEGER NOT NULL
);
CREATE INDEX escrow_previous_batch ON escrow_previous (batch);

-- Work on many records with their agents' consent.
CREATE TABLE escrow_batches (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    purpose       TEXT    NOT NULL CHECK (purpose IN ('rewrap', 'drill')),
    state         TEXT    NOT NULL CHECK (state IN ('draft', 'ordered', 'open', 'done', 'cancelled', 'expired')),
    created       INTEGER NOT NULL, -- Unix milliseconds
    expires       INTEGER NOT NULL,
    ended         INTEGER NOT NULL DEFAULT 0,
    policy        TEXT    NOT NULL,
    required      INTEGER NOT NULL,
    verifies      INTEGER NOT NULL DEFAULT 0, -- the rewrap whose records it proves
    opened_by     TEXT    NOT NULL,           -- Kerberos principal
    opened_by_sid TEXT    NOT NULL,
    worker_sid    TEXT    NOT NULL DEFAULT '',
    statement     TEXT    NOT NULL,           -- JSON: what was ordered, with the worker's part once there is one
    fingerprint   BLOB    UNIQUE,             -- of the statement, once the worker has taken it
    note          TEXT    NOT NULL DEFAULT '' -- why it was cancelled
);
CREATE INDEX escrow_batches_live ON escrow_batches (expires) WHERE state IN ('draft', 'ordered', 'open');

CREATE TABLE escrow_batch_records (
    batch_id     INTEGER NOT NULL REFERENCES escrow_batches (id),
    record       INTEGER NOT NULL REFERENCES escrow_records (id),
    position     INTEGER NOT NULL, -- from 0; -1 for those that nothing can be done to
    sealed_hash  BLOB    NOT NULL, -- SHA-256 of the record when the batch was chosen
    required     INTEGER NOT NULL, -- as it was then
    format       INTEGER NOT NULL,
    state        TEXT    NOT NULL CHECK (state IN ('open', 'done', 'failed', 'left')),
    note         TEXT    NOT NULL DEFAULT '',
    PRIMARY KEY (batch_id, record)
);
CREATE INDEX escrow_batch_records_position ON escrow_batch_records (batch_id, position);

-- Each agent, and each person, consents once to a batch.
CREATE TABLE escrow_batch_agents (
    batch_id     INTEGER NOT NULL REFERENCES escrow_batches (id),
    agent        TEXT    NOT NULL, -- SHA-256 fingerprint of the agent's certificate
    approver     TEXT    NOT NULL, -- Kerberos principal
    approver_sid TEXT    NOT NULL,
    created      INTEGER NOT NULL,
    PRIMARY KEY (batch_id, agent),
    UNIQUE (batch_id, approver_sid)
);

CREATE TABLE escrow_batch_parts (
    batch_id     INTEGER NOT NULL REFERENCES escrow_batches (id),
    page         INTEGER NOT NULL,
    agent        TEXT    NOT NULL,
    parts        BLOB    NOT NULL, -- JSON: parts of records, sealed to the batch key; deleted when the batch ends
    PRIMARY KEY (batch_id, page, agent)
);
