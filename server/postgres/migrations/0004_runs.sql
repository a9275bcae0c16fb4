-- One row a run: of those that ended, and of asynchronous ones from the moment they are accepted. Without a foreign key:
-- what a deleted project had may be more than one statement can delete.
CREATE TABLE runs (
  id             uuid        PRIMARY KEY,
  project_id     uuid        NOT NULL,
  function_id    uuid        NOT NULL,
  slug           text        NOT NULL,
  version        integer     NOT NULL,
  runtime        text        NOT NULL,
  trigger        text        NOT NULL,
  state          text        NOT NULL CHECK (state IN ('queued', 'running', 'finished')),
  outcome        text        NOT NULL,
  error          json,
  metrics        json        NOT NULL,
  created_at     timestamptz NOT NULL,
  finished_at    timestamptz,
  request_id     text        NOT NULL,
  trace_id       text        NOT NULL,
  logs           json,
  logs_truncated boolean     NOT NULL,
  bytes          integer     NOT NULL -- of the record as it travelled: what counts against ATLAS_RUNS_KEEP_MB
);
CREATE INDEX runs_newest ON runs (project_id, created_at DESC, id DESC);
CREATE INDEX runs_of_function ON runs (function_id, created_at DESC, id DESC);
CREATE INDEX runs_failed ON runs (project_id, outcome, created_at DESC, id DESC) WHERE outcome NOT IN ('', 'ok');
CREATE INDEX runs_unfinished ON runs (project_id, state, created_at DESC, id DESC) WHERE state <> 'finished';

DO $$ BEGIN
  ALTER TABLE runs ALTER COLUMN logs SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN NULL; -- a server built without lz4 has its own
END $$;

-- The finished runs of each project, so that retention looks only where something is due.
CREATE TABLE run_usage (
  project_id uuid        PRIMARY KEY,
  bytes      bigint      NOT NULL,
  oldest_at  timestamptz NOT NULL -- no finished run is older
) WITH (fillfactor = 50);

-- Asynchronous runs: queued until due_at, running under a lease until due_at, finished with an answer.
CREATE TABLE async_runs (
  id          uuid        PRIMARY KEY,
  project_id  uuid        NOT NULL REFERENCES projects ON DELETE CASCADE,
  slug        text        NOT NULL,
  state       text        NOT NULL CHECK (state IN ('queued', 'running', 'finished')),
  body_kind   text        NOT NULL CHECK (body_kind IN ('json', 'text', 'bytes')),
  input       bytea       NOT NULL,
  input_bytes integer     NOT NULL,
  request     bytea       NOT NULL, -- JSON of ctx.request
  request_id  text        NOT NULL,
  traceparent text        NOT NULL,
  attempts    integer     NOT NULL DEFAULT 0, -- begun and not given back
  refusals    integer     NOT NULL DEFAULT 0, -- times that no sandbox was free
  lease       uuid,
  due_at      timestamptz NOT NULL,
  answer      bytea,
  created_at  timestamptz NOT NULL,
  finished_at timestamptz
);
CREATE INDEX async_runs_due ON async_runs (project_id, due_at) WHERE state <> 'finished';
CREATE INDEX async_runs_leased ON async_runs (lease) WHERE lease IS NOT NULL;
CREATE INDEX async_runs_old ON async_runs (finished_at) WHERE state = 'finished';

-- Idempotency keys: claimed under a lease until expires_at, or answered and kept until then.
CREATE TABLE idempotency_keys (
  project_id   uuid        NOT NULL REFERENCES projects ON DELETE CASCADE,
  slug         text        NOT NULL,
  key          text        NOT NULL CHECK (char_length(key) BETWEEN 1 AND 255),
  input_sha256 bytea       NOT NULL CHECK (octet_length(input_sha256) = 32),
  run_id       uuid        NOT NULL,
  lease        uuid,
  expires_at   timestamptz NOT NULL,
  answer       bytea,
  PRIMARY KEY (project_id, slug, key)
);
CREATE INDEX idempotency_keys_expired ON idempotency_keys (expires_at);
CREATE INDEX idempotency_keys_leased ON idempotency_keys (lease) WHERE lease IS NOT NULL;
