-- First attempts that were begun within a workflow task, which may be lost and run again: whoever finds a run here knows
-- that its job may have been taken. Unlogged: it costs no flush to the disk before a request, and what a crash of
-- Postgres takes from it are attempts of that very moment.
CREATE UNLOGGED TABLE first_attempts (
    run_id text PRIMARY KEY,
    by_task boolean NOT NULL DEFAULT true, -- false: no workflow task is making it, nor may one any more
    begun_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX first_attempts_by_age ON first_attempts (begun_at);
