-- +goose Up
-- Until when, in Unix milliseconds, one gateway works on an unfinished request and no other may.
ALTER TABLE requests ADD COLUMN claimed INTEGER NOT NULL DEFAULT 0;
-- SHA-256 of the certificate's SubjectPublicKeyInfo: a renewal may keep a key that is archived. Empty where it was never looked at.
ALTER TABLE requests ADD COLUMN key_id BLOB NOT NULL DEFAULT x'';
UPDATE requests SET key_id = (SELECT e.key_id FROM escrow_records e WHERE e.request_id = requests.id)
    WHERE id IN (SELECT request_id FROM escrow_records WHERE request_id IS NOT NULL);
CREATE INDEX requests_key ON requests (key_id) WHERE state = 'issued';
-- Finds archived keys whose certificate is over.
CREATE INDEX requests_archived ON requests (not_after) WHERE archived = 1 AND state = 'issued';
-- A condition on the serial number in the index keeps it from being used: that a parameter is not empty cannot be known.
DROP INDEX requests_serial;
CREATE INDEX requests_serial ON requests (serial, ca);

-- A destroyed key leaves its row, with nothing in sealed.
ALTER TABLE escrow_records ADD COLUMN destroyed INTEGER NOT NULL DEFAULT 0; -- Unix milliseconds
ALTER TABLE escrow_records ADD COLUMN destroyed_by TEXT NOT NULL DEFAULT '';
ALTER TABLE escrow_records ADD COLUMN destroyed_why TEXT NOT NULL DEFAULT '';
-- A key on hold is not destroyed.
ALTER TABLE escrow_records ADD COLUMN held INTEGER NOT NULL DEFAULT 0; -- Unix milliseconds
ALTER TABLE escrow_records ADD COLUMN held_by TEXT NOT NULL DEFAULT '';
ALTER TABLE escrow_records ADD COLUMN held_why TEXT NOT NULL DEFAULT '';
-- Of the certificate of an imported key; else they are in requests.
ALTER TABLE escrow_records ADD COLUMN serial TEXT NOT NULL DEFAULT '';
ALTER TABLE escrow_records ADD COLUMN not_after INTEGER NOT NULL DEFAULT 0;
CREATE INDEX escrow_records_owner ON escrow_records (lower(owner));
CREATE INDEX escrow_records_policy ON escrow_records (policy);
CREATE INDEX escrow_records_created ON escrow_records (created);
CREATE INDEX escrow_records_imported ON escrow_records (serial) WHERE source = 'import';

-- The words of the subject, in lower case, by which archived keys are found.
CREATE TABLE escrow_words (
    word   TEXT    NOT NULL,
    record INTEGER NOT NULL REFERENCES escrow_records (id),
    PRIMARY KEY (word, record)
) WITHOUT ROWID;
INSERT INTO escrow_words (word, record)
    WITH RECURSIVE split (id, word, rest) AS (
        SELECT id, '', lower(replace(replace(replace(replace(subject, '=', ' '), ',', ' '), '+', ' '), '"', ' ')) || ' ' FROM escrow_records
        UNION ALL
        SELECT id, substr(rest, 1, instr(rest, ' ') - 1), substr(rest, instr(rest, ' ') + 1) FROM split WHERE rest <> '')
    SELECT DISTINCT word, id FROM split WHERE word NOT IN ('', 'cn', 'ou', 'o', 'dc', 'c', 'l', 'st', 'e');
