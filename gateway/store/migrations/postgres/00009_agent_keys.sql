-- +goose Up

ALTER TABLE escrow_agents ADD COLUMN hybrid BYTEA;
ALTER TABLE escrow_agents ADD COLUMN hybrid_only BIGINT NOT NULL DEFAULT 0;
ALTER TABLE escrow_agents ADD COLUMN hybrid_signature BYTEA;

ALTER TABLE exchange_keys ADD COLUMN destroyed BIGINT NOT NULL DEFAULT 0;
