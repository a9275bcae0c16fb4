-- Bytes by their SHA-256: the copy of deployed code that all nodes share.
CREATE TABLE artifacts (
  project_id uuid  NOT NULL REFERENCES projects ON DELETE CASCADE,
  sha256     text  NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
  data       bytea NOT NULL,
  PRIMARY KEY (project_id, sha256)
);

CREATE TABLE functions (
  id             uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
  project_id     uuid        NOT NULL REFERENCES projects ON DELETE CASCADE,
  name           text        NOT NULL CHECK (char_length(name) BETWEEN 1 AND 100),
  slug           text        NOT NULL CHECK (slug ~ '^[A-Za-z0-9_-]{1,63}$'),
  active_version integer     NOT NULL,
  last_version   integer     NOT NULL CHECK (last_version >= active_version),
  created_at     timestamptz NOT NULL DEFAULT now(),
  updated_at     timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT functions_slug_unique UNIQUE (project_id, slug),
  UNIQUE (id, project_id)
);
CREATE INDEX functions_newest ON functions (project_id, created_at DESC, id DESC);

CREATE TABLE function_versions (
  function_id   uuid        NOT NULL,
  project_id    uuid        NOT NULL,
  version       integer     NOT NULL CHECK (version >= 1),
  runtime       text        NOT NULL CHECK (runtime IN ('quickjs', 'wasm', 'node', 'deno')),
  language      text        NOT NULL CHECK (language IN ('javascript', 'typescript')),
  entrypoint    text        NOT NULL CHECK (char_length(entrypoint) BETWEEN 1 AND 128),
  isolation     text        NOT NULL CHECK (isolation IN ('warm', 'fresh')),
  sha256        text        NOT NULL,
  map_sha256    text,
  source_sha256 text        NOT NULL,
  source_bytes  integer     NOT NULL CHECK (source_bytes BETWEEN 1 AND 1048576),
  created_at    timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (function_id, version),
  FOREIGN KEY (function_id, project_id) REFERENCES functions (id, project_id) ON DELETE CASCADE,
  FOREIGN KEY (project_id, sha256) REFERENCES artifacts DEFERRABLE INITIALLY DEFERRED,
  FOREIGN KEY (project_id, map_sha256) REFERENCES artifacts DEFERRABLE INITIALLY DEFERRED,
  FOREIGN KEY (project_id, source_sha256) REFERENCES artifacts DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX function_versions_code ON function_versions (project_id, sha256);
CREATE INDEX function_versions_map ON function_versions (project_id, map_sha256);
CREATE INDEX function_versions_source ON function_versions (project_id, source_sha256);

ALTER TABLE functions ADD FOREIGN KEY (id, active_version) REFERENCES function_versions (function_id, version)
  DEFERRABLE INITIALLY DEFERRED;
