CREATE TABLE triggers (
  id          uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
  project_id  uuid        NOT NULL REFERENCES projects ON DELETE CASCADE,
  event_type  text        NOT NULL,
  config      jsonb       NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(config) = 'object'),
  target_type text        NOT NULL CHECK (target_type IN ('function', 'workflow')),
  function_id uuid,
  workflow_id uuid,
  conditions  json        NOT NULL DEFAULT '[]', -- as written: numbers keep their digits
  enabled     boolean     NOT NULL DEFAULT true,
  paused      boolean     NOT NULL DEFAULT false,
  retry       jsonb       NOT NULL DEFAULT '{}', -- what differs from the default policy
  order_key   text,                              -- a path into the event
  concurrency integer     CHECK (concurrency BETWEEN 1 AND 1000),
  since       timestamptz NOT NULL DEFAULT now(), -- when it was created or enabled, or its schedule or zone written
  created_at  timestamptz NOT NULL DEFAULT now(),
  updated_at  timestamptz NOT NULL DEFAULT now(), -- another one after every change
  CHECK ((target_type = 'function') = (function_id IS NOT NULL)),
  CHECK ((target_type = 'workflow') = (workflow_id IS NOT NULL)),
  FOREIGN KEY (function_id, project_id) REFERENCES functions (id, project_id) ON DELETE CASCADE,
  FOREIGN KEY (workflow_id, project_id) REFERENCES workflow_definitions (id, project_id) ON DELETE CASCADE
);
CREATE INDEX triggers_newest ON triggers (project_id, created_at DESC, id DESC);
CREATE INDEX triggers_of_function ON triggers (function_id, project_id) WHERE function_id IS NOT NULL;
CREATE INDEX triggers_of_workflow ON triggers (workflow_id, project_id) WHERE workflow_id IS NOT NULL;

-- A trigger goes with its function or workflow, too, and every process hears of it (server.postgres.changes). Not with
-- its project: that is announced as a whole.
CREATE FUNCTION announce_gone_triggers() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('atlas_changes', format('trigger:%s/%s', gone.project_id, gone.id))
    FROM gone WHERE EXISTS (SELECT FROM projects p WHERE p.id = gone.project_id);
  RETURN NULL;
END
$$;
CREATE TRIGGER triggers_gone AFTER DELETE ON triggers REFERENCING OLD TABLE AS gone
  FOR EACH STATEMENT EXECUTE FUNCTION announce_gone_triggers();

-- How many a project has, and how large their conditions and config are: whoever adds to it looks whether there is room,
-- which counting each time would make slow for a project with very many. Its row is locked last in a transaction.
CREATE TABLE trigger_totals (
  project_id uuid   PRIMARY KEY REFERENCES projects ON DELETE CASCADE,
  triggers   bigint NOT NULL,
  bytes      bigint NOT NULL
) WITH (fillfactor = 10);

CREATE FUNCTION total_triggers() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO trigger_totals AS t
      SELECT project_id, count(*), sum(octet_length(conditions::text) + octet_length(config::text))
      FROM made GROUP BY project_id ORDER BY project_id
    ON CONFLICT (project_id) DO UPDATE
      SET triggers = t.triggers + excluded.triggers, bytes = t.bytes + excluded.bytes;
  ELSIF TG_OP = 'DELETE' THEN
    UPDATE trigger_totals t SET triggers = t.triggers - g.triggers, bytes = t.bytes - g.bytes FROM (
      SELECT project_id, count(*) AS triggers, sum(octet_length(conditions::text) + octet_length(config::text)) AS bytes
      FROM gone GROUP BY project_id) g
    WHERE t.project_id = g.project_id;
  ELSE
    UPDATE trigger_totals t SET bytes = t.bytes + c.bytes FROM (
      SELECT project_id, sum(bytes) AS bytes FROM (
        SELECT project_id, octet_length(conditions::text) + octet_length(config::text) AS bytes FROM made
        UNION ALL
        SELECT project_id, -octet_length(conditions::text) - octet_length(config::text) FROM gone) b
      GROUP BY project_id HAVING sum(bytes) <> 0) c
    WHERE t.project_id = c.project_id;
  END IF;
  RETURN NULL;
END
$$;
CREATE TRIGGER triggers_made_total AFTER INSERT ON triggers REFERENCING NEW TABLE AS made
  FOR EACH STATEMENT EXECUTE FUNCTION total_triggers();
CREATE TRIGGER triggers_gone_total AFTER DELETE ON triggers REFERENCING OLD TABLE AS gone
  FOR EACH STATEMENT EXECUTE FUNCTION total_triggers();
CREATE TRIGGER triggers_changed_total AFTER UPDATE ON triggers REFERENCING OLD TABLE AS gone NEW TABLE AS made
  FOR EACH STATEMENT EXECUTE FUNCTION total_triggers();
