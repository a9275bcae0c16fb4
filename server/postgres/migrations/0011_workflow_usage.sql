-- What a finished run takes, counted by retention once it has ended; null until then.
ALTER TABLE workflow_runs ADD COLUMN bytes bigint;
CREATE INDEX workflow_runs_uncounted ON workflow_runs (finished_at) WHERE finished_at IS NOT NULL AND bytes IS NULL;

-- The counted runs of each project, so that retention looks only where too much is kept.
CREATE TABLE workflow_usage (
  project_id uuid   PRIMARY KEY,
  bytes      bigint NOT NULL
) WITH (fillfactor = 50);
