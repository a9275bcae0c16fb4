-- What a workflow is: a graph of nodes, as its author wrote it. A change is a new version of the same definition.
CREATE TABLE workflow_definitions (
  id         uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
  project_id uuid        NOT NULL REFERENCES projects ON DELETE CASCADE,
  name       text        NOT NULL CHECK (char_length(name) BETWEEN 1 AND 100),
  version    integer     NOT NULL DEFAULT 1 CHECK (version >= 1),
  definition json        NOT NULL, -- {"nodes": […], "edges": […]}
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  UNIQUE (id, project_id)
);
CREATE INDEX workflow_definitions_newest ON workflow_definitions (project_id, created_at DESC, id DESC);

-- The versions that runs are of, kept as long as there is such a run, also when the workflow is deleted.
CREATE TABLE workflow_versions (
  workflow_id uuid    NOT NULL,
  version     integer NOT NULL,
  project_id  uuid    NOT NULL,
  definition  json    NOT NULL,
  PRIMARY KEY (workflow_id, version)
);
CREATE INDEX workflow_versions_of_project ON workflow_versions (project_id);

-- Runs. Without a foreign key to projects: what a deleted project had may be more than one statement can delete.
CREATE TABLE workflow_runs (
  id          uuid        PRIMARY KEY,
  project_id  uuid        NOT NULL,
  workflow_id uuid        NOT NULL,
  version     integer     NOT NULL,
  state       text        NOT NULL CHECK (state IN ('running', 'succeeded', 'failed', 'cancelled')),
  trigger_id  uuid,
  event       bytea       NOT NULL,  -- JSON of the event, as it came
  error       json,                  -- {"reason", "message", "node_id"} of a failed one
  created_at  timestamptz NOT NULL DEFAULT now(),
  finished_at timestamptz,
  FOREIGN KEY (workflow_id, version) REFERENCES workflow_versions
);
CREATE INDEX workflow_runs_newest ON workflow_runs (project_id, created_at DESC, id DESC);
CREATE INDEX workflow_runs_of_workflow ON workflow_runs (workflow_id, created_at DESC, id DESC);
CREATE INDEX workflow_runs_of_version ON workflow_runs (workflow_id, version);
CREATE INDEX workflow_runs_running ON workflow_runs (project_id, created_at DESC, id DESC) WHERE state = 'running';
CREATE INDEX workflow_runs_finished ON workflow_runs (finished_at) WHERE finished_at IS NOT NULL;

-- One row for each node of a run, from its start. `due_at` is when a ready one became so (they are sent in that order),
-- when a queued one is sent again, when the lease of a running one is over, and when a waiting one goes on.
CREATE TABLE workflow_steps (
  run_id      uuid        NOT NULL REFERENCES workflow_runs ON DELETE CASCADE,
  node_id     text        NOT NULL,
  project_id  uuid        NOT NULL,
  place       integer     NOT NULL,            -- of the node in the definition
  type        text        NOT NULL,
  state       text        NOT NULL CHECK (state IN (
    'pending', 'ready', 'queued', 'running', 'waiting', 'succeeded', 'failed', 'skipped', 'cancelled')),
  claims      integer     NOT NULL DEFAULT 0,  -- how often a worker took it; a message is good for one of them
  attempts    integer     NOT NULL DEFAULT 0,  -- begun, but for those given back
  refusals    integer     NOT NULL DEFAULT 0,  -- times that there was no room to run it
  deaths      integer     NOT NULL DEFAULT 0,  -- times that its worker died
  due_at      timestamptz,
  wake_at     timestamptz,                     -- of a delay that was begun: when it is over
  lease       uuid,
  branch      boolean,                         -- what a condition answered
  input       bytea,                           -- JSON, of the last attempt that ended
  output      bytea,                           -- JSON
  error       json,                            -- {"reason", "message"} of the last attempt that failed
  history     jsonb       NOT NULL DEFAULT '[]', -- the attempts that ended, oldest first
  began_at    timestamptz,                     -- of the first attempt
  claimed_at  timestamptz,                     -- of the attempt that runs, or ran last
  finished_at timestamptz,
  PRIMARY KEY (run_id, node_id)
) WITH (fillfactor = 70);
CREATE INDEX workflow_steps_due ON workflow_steps (due_at) WHERE state IN ('queued', 'running', 'waiting');
CREATE INDEX workflow_steps_ready ON workflow_steps (project_id, due_at) WHERE state = 'ready';
CREATE INDEX workflow_steps_sent ON workflow_steps (project_id) WHERE state IN ('queued', 'running');
CREATE INDEX workflow_steps_leased ON workflow_steps (lease) WHERE lease IS NOT NULL;
