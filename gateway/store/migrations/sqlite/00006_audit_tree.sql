-- +goose Up
-- The nodes of the Merkle tree over the audit log (RFC 6962 2.1), in the order in which they are computed.
CREATE TABLE audit_tree (
    idx  INTEGER PRIMARY KEY,
    hash BLOB    NOT NULL
);
CREATE TRIGGER audit_tree_no_update BEFORE UPDATE ON audit_tree BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_tree_no_delete BEFORE DELETE ON audit_tree BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
-- What the gateway has signed about the tree.
CREATE TABLE audit_checkpoints (
    size INTEGER PRIMARY KEY,
    time INTEGER NOT NULL, -- Unix milliseconds
    note TEXT    NOT NULL  -- signed note
);
-- Finds the last change of the configuration.
CREATE INDEX audit_configuration ON audit (seq) WHERE event = 'configuration-changed';
