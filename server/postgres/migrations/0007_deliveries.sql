-- Events that a trigger answers, as they came from the stream: kept as long as a delivery of theirs is.
CREATE TABLE delivered_events (
  project_id uuid        NOT NULL,
  event_id   text        NOT NULL,
  body       bytea       NOT NULL,
  stored_at  timestamptz NOT NULL DEFAULT now(),
  cause_run     uuid,    -- the run that the event is of, or none: what the body says, where it can be looked for
  cause_trigger uuid,
  cause_depth   integer,
  PRIMARY KEY (project_id, event_id)
);
CREATE INDEX delivered_events_old ON delivered_events (stored_at);
CREATE INDEX delivered_events_of_run ON delivered_events (cause_run, stored_at) WHERE cause_run IS NOT NULL;

-- The ledger: one row for each pair of event and trigger, from the moment that the event is taken from the stream.
-- Without foreign keys: what a deleted project had may be more than one statement can delete.
CREATE TABLE deliveries (
  id          uuid        PRIMARY KEY,           -- UUIDv5 of trigger and event
  project_id  uuid        NOT NULL,
  trigger_id  uuid        NOT NULL,
  event_id    text        NOT NULL,
  event_type  text        NOT NULL,
  sequence    bigint      NOT NULL,              -- of the event in the stream; 0 of a tick that never was in it
  state       text        NOT NULL CHECK (state IN ('queued', 'running', 'held', 'done', 'dead', 'skipped', 'cancelled')),
  order_key   text,
  due_at      timestamptz NOT NULL,              -- queued: when it may start
  lease       uuid,                              -- running: of the process that runs it
  run_id      uuid,                              -- of the attempt that runs or ran last
  began_at    timestamptz,                       -- when that attempt began
  attempts    integer     NOT NULL DEFAULT 0,    -- begun, since it was made or replayed
  refusals    integer     NOT NULL DEFAULT 0,    -- times that there was no room to run it
  history     jsonb       NOT NULL DEFAULT '[]', -- the attempts that ended, oldest first
  outcome     text        NOT NULL DEFAULT '',   -- of the last attempt that ended
  error       json,                              -- {"reason", "message"} of the last attempt, or why it was skipped
  created_at  timestamptz NOT NULL DEFAULT now(),
  finished_at timestamptz,
  replays     integer     NOT NULL DEFAULT 0,
  replayed_at timestamptz,                       -- the last time
  released_at timestamptz                        -- from the hold of a paused trigger
) WITH (fillfactor = 70);
CREATE INDEX deliveries_newest ON deliveries (project_id, created_at DESC, id DESC);
CREATE INDEX deliveries_of_trigger ON deliveries (trigger_id, created_at DESC, id DESC);
CREATE INDEX deliveries_of_event ON deliveries (project_id, event_id);
CREATE INDEX deliveries_of_type ON deliveries (project_id, event_type, created_at DESC, id DESC);
CREATE INDEX deliveries_of_state ON deliveries (project_id, state, created_at DESC, id DESC) WHERE state <> 'done';
CREATE INDEX deliveries_failed ON deliveries (project_id, outcome, created_at DESC, id DESC)
  WHERE outcome NOT IN ('', 'ok');
CREATE INDEX deliveries_waiting ON deliveries (trigger_id, due_at) WHERE state = 'queued' AND order_key IS NULL;
CREATE INDEX deliveries_running ON deliveries (trigger_id, lease) WHERE state = 'running';
CREATE INDEX deliveries_held ON deliveries (trigger_id) WHERE state = 'held';
CREATE INDEX deliveries_ordered ON deliveries (trigger_id, order_key, sequence)
  WHERE order_key IS NOT NULL AND state IN ('queued', 'running', 'held');
CREATE INDEX deliveries_over ON deliveries (finished_at) WHERE state IN ('done', 'skipped', 'cancelled');
CREATE INDEX deliveries_dead ON deliveries (finished_at) WHERE state = 'dead';

-- Who runs deliveries: one row for each process, renewed as long as it lives. What runs under another lease is lost.
CREATE TABLE dispatch_leases (
  id         uuid        PRIMARY KEY,
  expires_at timestamptz NOT NULL
) WITH (fillfactor = 10);

-- Messages of the stream that are no events, with the reason. Kept for operators.
CREATE TABLE parked_messages (
  sequence   bigint      NOT NULL, -- in the stream
  subject    text        NOT NULL,
  reason     text        NOT NULL,
  body       bytea       NOT NULL, -- its first 64 KiB
  body_bytes integer     NOT NULL,
  parked_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (parked_at, sequence)
);

-- Triggers that begin with events of the past: how far each has come. One row until it is through.
CREATE TABLE trigger_backfills (
  trigger_id    uuid        PRIMARY KEY REFERENCES triggers ON DELETE CASCADE,
  project_id    uuid        NOT NULL,
  start_from    timestamptz NOT NULL,
  state         text        NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'done', 'stopped', 'truncated')),
  next_sequence bigint,                          -- in the stream: all before it are looked at; none before it began
  last_sequence bigint,                          -- the end of the stream when the trigger was in force
  looked_at     bigint      NOT NULL DEFAULT 0,  -- events of its types, of all projects
  fired         bigint      NOT NULL DEFAULT 0,
  truncated     boolean     NOT NULL DEFAULT false, -- the full stream lost events that it had not come to
  owner         uuid,                            -- the lease of the process that works at it
  turn_at       timestamptz,                     -- when a process last took it up
  created_at    timestamptz NOT NULL DEFAULT now(),
  finished_at   timestamptz
);
CREATE INDEX trigger_backfills_running ON trigger_backfills (project_id) WHERE state = 'running';
