-- Routes: where the jobs of a database are delivered.
CREATE TABLE routes (
    db text NOT NULL,
    id text NOT NULL,
    route jsonb NOT NULL, -- the Route struct, tagged by "type", so that a new kind needs no new column
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (db, id)
);
