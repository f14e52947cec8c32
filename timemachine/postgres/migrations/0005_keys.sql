-- Keys of the API: who may ask for what. A key's secrets are apart from it, since several are valid while one is
-- replaced by the next.
CREATE TABLE api_keys (
    id text PRIMARY KEY,
    number bigint GENERATED ALWAYS AS IDENTITY UNIQUE, -- the order of lists
    name text NOT NULL,
    role text NOT NULL CHECK (role IN ('read', 'write', 'admin')),
    dbs text[], -- null for all
    created_at timestamptz NOT NULL DEFAULT now(),
    created_by text, -- the id of a key; null for the command line
    expires_at timestamptz,
    last_used_at timestamptz,
    revoked_at timestamptz,
    requests_per_second double precision -- null for the setting's
);
CREATE TABLE api_key_secrets (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key_id text NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
    hash bytea NOT NULL UNIQUE, -- SHA-256; the secret itself is not kept
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz -- null for the newest
);
CREATE INDEX api_key_secrets_of_key ON api_key_secrets (key_id);

-- Who changed what. Rows are added, and removed when they are old; never changed.
CREATE TABLE audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    key_id text, -- null where no key was needed
    action text NOT NULL,
    db text NOT NULL, -- '' for what is about all dbs
    target text NOT NULL,
    address text NOT NULL,
    request_id text
);
CREATE INDEX audit_of_db ON audit (db, id);
CREATE INDEX audit_by_age ON audit (at);
