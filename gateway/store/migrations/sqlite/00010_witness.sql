-- +goose Up
-- What this gateway has cosigned of other instances' audit logs.
CREATE TABLE audit_witnessed (
    origin TEXT    PRIMARY KEY, -- the log's name
    size   INTEGER NOT NULL,
    root   BLOB    NOT NULL,
    seen   INTEGER NOT NULL, -- Unix milliseconds
    note   TEXT    NOT NULL  -- the checkpoint
);
