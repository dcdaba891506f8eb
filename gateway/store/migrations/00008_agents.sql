-- +goose Up
-- How many records depend on which agents is counted in this index, not in the records.
CREATE INDEX escrow_records_terms ON escrow_records (policy, required, recipients);
