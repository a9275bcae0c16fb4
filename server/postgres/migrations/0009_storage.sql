-- Events that are committed with what they tell of, on their way into the stream. In a project the order of ids is the
-- order of commits. Without a foreign key: what happened in a project that is deleted since is told nevertheless.
CREATE TABLE event_outbox (
  id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  project_id uuid        NOT NULL,
  envelope   bytea       NOT NULL, -- the event as it goes into the stream
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX event_outbox_order ON event_outbox (project_id, id);

CREATE TABLE storage_buckets (
  project_id uuid        NOT NULL REFERENCES projects ON DELETE CASCADE,
  name       text        NOT NULL CHECK (name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
  public     boolean     NOT NULL DEFAULT false,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (project_id, name)
);

-- Without foreign keys: what a deleted project had may be more than one statement can delete. Who writes a row holds a
-- lock on its bucket, so that no bucket goes while it has objects, nor a project while one is written.
CREATE TABLE storage_objects (
  project_id   uuid        NOT NULL,
  bucket       text        NOT NULL,
  path         text        COLLATE "C" NOT NULL CHECK (octet_length(path) BETWEEN 1 AND 1024),
  bytes        integer     NOT NULL CHECK (bytes >= 0),
  content_type text        NOT NULL CHECK (octet_length(content_type) <= 255),
  sha256       text        NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
  metadata     json        NOT NULL, -- as written: numbers keep their digits
  created_at   timestamptz NOT NULL,
  updated_at   timestamptz NOT NULL,
  PRIMARY KEY (project_id, bucket, path)
);
CREATE INDEX storage_objects_content ON storage_objects (project_id, sha256);

-- Contents that are in the store, or may be: noted before they are written there, forgotten after they are removed.
CREATE TABLE storage_blobs (
  project_id  uuid        NOT NULL,
  sha256      text        NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
  bytes       integer     NOT NULL,
  loose_since timestamptz, -- since when no object has it, and nobody has begun to write one that will
  PRIMARY KEY (project_id, sha256)
);
CREATE INDEX storage_blobs_loose ON storage_blobs (loose_since) WHERE loose_since IS NOT NULL;

-- What each project stores: its objects, and what is in the store for it, garbage included.
CREATE TABLE storage_usage (
  project_id   uuid    PRIMARY KEY,
  objects      integer NOT NULL DEFAULT 0,
  object_bytes bigint  NOT NULL DEFAULT 0,
  blob_bytes   bigint  NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
