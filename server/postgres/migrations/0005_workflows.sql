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
