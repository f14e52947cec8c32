-- What routes need beyond their address: secrets to sign with, headers to send, and whether deliveries may go there.
ALTER TABLE routes
    ADD COLUMN sealed_headers bytea, -- names and values of the extra headers, encrypted
    ADD COLUMN state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'paused', 'disabled')),
    ADD COLUMN state_since timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN state_reason text,
    ADD COLUMN failing_since timestamptz; -- the first failure since the last success

-- Secrets: several while a rotation is under way, and all of them sign.
CREATE TABLE route_secrets (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    db text NOT NULL,
    route_id text NOT NULL,
    sealed bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz, -- null for the newest
    FOREIGN KEY (db, route_id) REFERENCES routes (db, id) ON DELETE CASCADE
);
CREATE INDEX route_secrets_of_route ON route_secrets (db, route_id);
CREATE UNIQUE INDEX route_secrets_newest ON route_secrets (db, route_id) WHERE expires_at IS NULL;

-- Requests that are under way on routes with a limit on them.
CREATE TABLE in_flight (
    db text NOT NULL,
    route_id text NOT NULL,
    run_id text NOT NULL,
    expires_at timestamptz NOT NULL, -- so that a worker that died gives its place back
    PRIMARY KEY (db, route_id, run_id),
    FOREIGN KEY (db, route_id) REFERENCES routes (db, id) ON DELETE CASCADE
);

-- The log: one row per request that was made.
CREATE TABLE attempts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    db text NOT NULL,
    collection text NOT NULL,
    job_id text NOT NULL,
    route_id text NOT NULL,
    run_id text NOT NULL, -- of the workflow, so that a redelivery is told from what was before
    message_id text NOT NULL,
    attempt int NOT NULL,
    started_at timestamptz NOT NULL,
    duration_ms int NOT NULL,
    status int, -- null without an answer
    kind text NOT NULL, -- 'taken', 'refused', or why there was no answer
    error text,
    answer bytea NOT NULL, -- its first KiB
    worker text NOT NULL
);
CREATE INDEX attempts_of_job ON attempts (db, collection, job_id, started_at, id);
CREATE INDEX attempts_taken_of_route ON attempts (db, route_id, started_at, id) WHERE kind = 'taken';
CREATE INDEX attempts_failed_of_route ON attempts (db, route_id, started_at, id) WHERE kind <> 'taken';
CREATE INDEX attempts_taken ON attempts (run_id) WHERE kind = 'taken';
CREATE INDEX attempts_by_age ON attempts (started_at);
