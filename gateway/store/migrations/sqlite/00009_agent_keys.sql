-- +goose Up
-- The public half of an agent's hybrid key, and whether records are sealed to it instead of the certificate's key.
ALTER TABLE escrow_agents ADD COLUMN hybrid BLOB;
ALTER TABLE escrow_agents ADD COLUMN hybrid_only INTEGER NOT NULL DEFAULT 0;
ALTER TABLE escrow_agents ADD COLUMN hybrid_signature BLOB; -- of the agent, over the hybrid key and the certificate
-- When the exchange key was destroyed, in Unix milliseconds; its private key is empty since. One in a PKCS#11 token is stored as
-- pkcs11:id=HEX.
ALTER TABLE exchange_keys ADD COLUMN destroyed INTEGER NOT NULL DEFAULT 0;
