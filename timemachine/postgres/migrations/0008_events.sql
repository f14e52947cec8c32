-- Which events a db asks for, and the route that they go to. They end with the route.
CREATE TABLE event_routes (
    db text PRIMARY KEY,
    route_id text NOT NULL,
    kinds text[] NOT NULL,
    FOREIGN KEY (db, route_id) REFERENCES routes (db, id) ON DELETE CASCADE
);

-- What has happened, and is not sent yet. A row is written with what it tells of, and removed once its job is started.
CREATE TABLE events (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), -- the job's id, too, so that to start it twice is to start it once
    db text NOT NULL,
    kind text NOT NULL,
    what jsonb NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    send_at timestamptz NOT NULL DEFAULT clock_timestamp() -- moved on while a worker starts its job
);
CREATE INDEX events_by_send_at ON events (send_at);
