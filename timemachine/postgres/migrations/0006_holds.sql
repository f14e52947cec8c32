-- An attempt that finds its route closed is told so, and the job may be changed after that. Each time is counted, so that a
-- worker that was stopped in the meantime, and asks after that, is not let begin with the job as it was before.
ALTER TABLE delivery_ledger ADD COLUMN holds int NOT NULL DEFAULT 0;
