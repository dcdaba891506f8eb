-- +goose Up
-- What a CA was asked, and what is known of its answer.
ALTER TABLE requests ADD COLUMN issuer TEXT COLLATE "C" NOT NULL DEFAULT '';      -- the CA that signs
ALTER TABLE requests ADD COLUMN sent BIGINT NOT NULL DEFAULT 0;      -- Unix milliseconds; 0: no CA has the order
ALTER TABLE requests ADD COLUMN due BIGINT NOT NULL DEFAULT 0;       -- Unix milliseconds: when it is asked next
ALTER TABLE requests ADD COLUMN attempts BIGINT NOT NULL DEFAULT 0;  -- that failed, in a row
ALTER TABLE requests ADD COLUMN trouble TEXT NOT NULL DEFAULT '';     -- why the last one failed
ALTER TABLE requests ADD COLUMN doubt TEXT NOT NULL DEFAULT '';       -- why nobody can tell whether there is a certificate
ALTER TABLE requests ADD COLUMN route TEXT NOT NULL DEFAULT '';       -- JSON: the CAs that may sign, in order; empty: issuer alone
UPDATE requests SET issuer = ca WHERE state <> 'denied' OR serial <> '';
UPDATE requests SET sent = updated WHERE state IN ('open', 'approved', 'waiting');
CREATE INDEX requests_due ON requests (issuer, due, id) WHERE state IN ('open', 'approved', 'waiting') AND doubt = '';
CREATE INDEX requests_issuer ON requests (issuer, id) WHERE state = 'issued';
CREATE INDEX requests_doubt ON requests (id) WHERE doubt <> '';

-- Certificates of CAs, so that what one has issued has its chain after the CA got another certificate.
CREATE TABLE ca_certificates (
    ca           TEXT COLLATE "C" NOT NULL,
    fingerprint  BYTEA NOT NULL, -- SHA-256
    certificate  BYTEA NOT NULL,
    seen         BIGINT NOT NULL, -- Unix milliseconds: first
    PRIMARY KEY (ca, fingerprint)
);

-- Files that gateways on one database share, encrypted with their secret: the first one's count.
CREATE TABLE shared_files (
    name         TEXT COLLATE "C" PRIMARY KEY,
    content      BYTEA NOT NULL
);
