-- What a version runs with beside its code. It is part of the version, so it is never changed either.
ALTER TABLE function_versions
  ADD COLUMN note          text    NOT NULL DEFAULT '' CHECK (char_length(note) <= 1000),
  ADD COLUMN timeout_ms    integer CHECK (timeout_ms >= 10),
  ADD COLUMN memory_mb     integer CHECK (memory_mb >= 8),
  ADD COLUMN concurrency   integer CHECK (concurrency BETWEEN 1 AND 1000),
  ADD COLUMN env           jsonb   NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(env) = 'object'),
  ADD COLUMN secrets       jsonb   NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(secrets) = 'object'), -- sealed, base64
  ADD COLUMN script_sha256 text, -- of Wasm: the text the module was made of
  ADD FOREIGN KEY (project_id, script_sha256) REFERENCES artifacts DEFERRABLE INITIALLY DEFERRED,
  -- A function may be deployed as a Wasm module, which is then its source.
  DROP CONSTRAINT function_versions_language_check,
  ADD CONSTRAINT function_versions_language_check CHECK (language IN ('javascript', 'typescript', 'wasm')),
  DROP CONSTRAINT function_versions_source_bytes_check,
  ADD CONSTRAINT function_versions_source_bytes_check CHECK (source_bytes BETWEEN 1 AND 2097152);
CREATE INDEX function_versions_script ON function_versions (project_id, script_sha256)
  WHERE script_sha256 IS NOT NULL;

-- A deleted function keeps its versions for a while, but not its slug.
ALTER TABLE functions
  ADD COLUMN deleted_at timestamptz,
  DROP CONSTRAINT functions_slug_unique;
CREATE UNIQUE INDEX functions_slug_unique ON functions (project_id, slug) WHERE deleted_at IS NULL;
CREATE INDEX functions_deleted ON functions (deleted_at) WHERE deleted_at IS NOT NULL;

-- Which versions were active one after the other; a rollback takes the last one off.
CREATE TABLE function_activations (
  function_id  uuid        NOT NULL REFERENCES functions ON DELETE CASCADE,
  number       integer     NOT NULL,
  version      integer     NOT NULL, -- which may be kept no more
  activated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (function_id, number)
);
INSERT INTO function_activations (function_id, number, version, activated_at)
  SELECT id, 1, active_version, updated_at FROM functions;
