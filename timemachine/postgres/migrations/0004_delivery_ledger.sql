-- The ledger: one row per run of a job, which decides what becomes of it. Every attempt and every cancel is a conditional
-- write to it, and who writes first wins. Logged, and committed synchronously: the promises rest on it.
CREATE TABLE delivery_ledger (
    run_id text PRIMARY KEY, -- the first run id of the workflow
    state text NOT NULL CHECK (state IN ('waiting', 'under_way', 'cancelling', 'taken', 'failed', 'cancelled')),
    claim uuid, -- of the last attempt, made by who makes it
    at timestamptz NOT NULL, -- under_way, cancelling: the claim expires; waiting: the next attempt; cancelled: it was due
    made int NOT NULL, -- attempts whose end is known
    doubt boolean NOT NULL DEFAULT false, -- an attempt was lost with its worker
    outcome jsonb, -- how the last attempt ended
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 80); -- no index holds what changes, so that a new version of a row fits beside the old one
CREATE INDEX delivery_ledger_by_age ON delivery_ledger (created_at);

-- An attempt is logged by the statement that writes its end, which may be repeated.
ALTER TABLE attempts ADD COLUMN claim uuid;
CREATE UNIQUE INDEX attempts_of_claim ON attempts (claim);
