-- What one worker counts for all, every minute or so. Whoever sets `claimed_at` counts; all others read.
CREATE TABLE service_counts (
    one boolean PRIMARY KEY DEFAULT true CHECK (one), -- there is a single row
    claimed_at timestamptz NOT NULL DEFAULT 'epoch',
    counted_at timestamptz, -- null before the first count
    counts jsonb
);
INSERT INTO service_counts DEFAULT VALUES;
