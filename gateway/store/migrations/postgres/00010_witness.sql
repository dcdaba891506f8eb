-- +goose Up

CREATE TABLE audit_witnessed (
    origin TEXT    COLLATE "C" PRIMARY KEY,
    size   BIGINT NOT NULL,
    root   BYTEA    NOT NULL,
    seen   BIGINT NOT NULL,
    note   TEXT    NOT NULL
);
