CREATE TABLE projects (
  id         uuid        PRIMARY KEY,
  name       text        NOT NULL CHECK (char_length(name) BETWEEN 1 AND 100),
  tier       text        CHECK (tier IN ('free', 'pro', 'enterprise')),
  schema     text        NOT NULL UNIQUE,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX projects_newest ON projects (created_at DESC, id DESC);

-- Projects that may have a schema, files or keys somewhere without a row in projects: being made, or being deleted.
CREATE TABLE project_leftovers (
  project_id uuid        PRIMARY KEY,
  since      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_keys (
  id         uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
  project_id uuid        NOT NULL REFERENCES projects ON DELETE CASCADE,
  role       text        NOT NULL CHECK (role IN ('service', 'anon')),
  name       text        NOT NULL CHECK (char_length(name) <= 100),
  prefix     text        NOT NULL CHECK (char_length(prefix) <= 24),
  sha256     bytea       NOT NULL UNIQUE CHECK (octet_length(sha256) = 32),
  created_at timestamptz NOT NULL DEFAULT now(),
  revoked_at timestamptz
);
CREATE INDEX api_keys_newest ON api_keys (project_id, created_at DESC, id DESC);
