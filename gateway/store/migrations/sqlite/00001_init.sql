-- +goose Up
CREATE TABLE requests (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    state        TEXT    NOT NULL CHECK (state IN ('open', 'pending', 'approved', 'waiting', 'issued', 'denied', 'failed')),
    created      INTEGER NOT NULL, -- Unix milliseconds
    updated      INTEGER NOT NULL,
    caller       TEXT    NOT NULL, -- Kerberos principal
    caller_sid   TEXT    NOT NULL,
    template     TEXT    NOT NULL,
    ca           TEXT    NOT NULL,
    transport    TEXT    NOT NULL,
    archived     INTEGER NOT NULL, -- 1 where a private key went into escrow
    fingerprint  BLOB    NOT NULL, -- SHA-256 of the request as received
    csr          BLOB,             -- PKCS#10, never the request with the enclosed key
    profile      TEXT,             -- JSON: what the certificate must say
    checks       TEXT,             -- JSON: the decision's checks
    key_hash     BLOB,             -- hash of the enclosed key as the client sent it
    hresult      INTEGER NOT NULL DEFAULT 0,
    message      TEXT    NOT NULL DEFAULT '',
    decided_by   TEXT    NOT NULL DEFAULT '', -- who approved or denied
    ca_token     TEXT    NOT NULL DEFAULT '', -- how the CA names an order that it has not finished
    serial       TEXT    NOT NULL DEFAULT '', -- hexadecimal
    certificate  BLOB,
    not_after    INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX requests_state ON requests (state) WHERE state IN ('open', 'pending', 'approved', 'waiting');
CREATE INDEX requests_caller ON requests (caller_sid, id);
CREATE INDEX requests_serial ON requests (ca, serial) WHERE serial <> '';

CREATE TABLE escrow_records (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    created      INTEGER NOT NULL,
    request_id   INTEGER UNIQUE REFERENCES requests (id), -- NULL for imported keys
    source       TEXT    NOT NULL CHECK (source IN ('enrollment', 'import')),
    owner        TEXT    NOT NULL, -- Kerberos principal, or who the importer says
    subject      TEXT    NOT NULL,
    key_id       BLOB    NOT NULL, -- SHA-256 of the SubjectPublicKeyInfo
    algorithm    TEXT    NOT NULL,
    bits         INTEGER NOT NULL,
    recipients   TEXT    NOT NULL, -- JSON: SHA-256 fingerprints of the agents' certificates
    sealed       BLOB    NOT NULL, -- CMS EnvelopedData around the PKCS#8 key
    certificate  BLOB              -- of imported keys; else it is in requests
);
CREATE INDEX escrow_records_key ON escrow_records (key_id);

CREATE TABLE escrow_agents (
    fingerprint  BLOB    PRIMARY KEY, -- SHA-256 of the certificate
    certificate  BLOB    NOT NULL,
    added        INTEGER NOT NULL,
    added_by     TEXT    NOT NULL,
    removed      INTEGER NOT NULL DEFAULT 0,
    removed_by   TEXT    NOT NULL DEFAULT ''
);

CREATE TABLE exchange_keys (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    ca           TEXT    NOT NULL,
    created      INTEGER NOT NULL,
    certificate  BLOB    NOT NULL,
    private_key  BLOB    NOT NULL, -- encrypted PKCS#8
    not_after    INTEGER NOT NULL,
    usable_until INTEGER NOT NULL, -- end of the grace period
    imported     INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE revocations (
    ca           TEXT    NOT NULL,
    serial       TEXT    NOT NULL,
    reason       INTEGER NOT NULL,
    revoked      INTEGER NOT NULL,
    PRIMARY KEY (ca, serial)
);

CREATE TABLE audit (
    seq          INTEGER PRIMARY KEY,
    time         INTEGER NOT NULL,
    actor        TEXT    NOT NULL,
    event        TEXT    NOT NULL,
    detail       TEXT    NOT NULL, -- JSON
    previous     BLOB    NOT NULL,
    hash         BLOB    NOT NULL
);
CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
