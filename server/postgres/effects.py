"""What a run leaves in the tenants database beside the tenant's own rows, in the same transaction as these.

    atlas_run.cause(text, seal)                a logical decoding message "atlas.cause": which run the changes are of;
                                               who reads it looks at the seal
    atlas_run.publish(text, seal)              an event into atlas_kept.outbox, to be published once this is committed;
                                               FULL when too many of the project wait
    atlas_run.mark(text, seal)                 NULL, and the mark is set; or what was told with the mark that is there
    atlas_run.told(text, seal)                 what was told with the mark; NULL when there is none
    atlas_run.tell(text, seal)                 what is told with the mark from now on

All are SECURITY DEFINER and called in the session of the tenant's role, `session_user`, who has no right to the schema
atlas_kept with its tables (not even to make a view of one, which would be in the way of changing it).
Each takes a text and its seal (`server.postgres.seal`), so that a tenant who calls them is refused: rows are ours, of
the role that is logged in. Of `cause` alone the seal is not checked here, for it goes ahead of most writes: it is part
of the message, and what a tenant makes up is no cause to `server.events.cause`. Texts of `mark` and `told`
are keys, of `tell` key, line break, JSON.
"""

from typing import Final

from psycopg import AsyncConnection, sql

from server.postgres import wire
from server.postgres.seal import Sealer

TEXT, BYTEA = 25, 17
CAUSE_PREFIX: Final = "atlas.cause"
"""Of the logical decoding message. Its content is 64 hexadecimal digits of seal, and the text."""

SEAL_BYTES: Final = 32
MAX_CAUSE_BYTES: Final = 512
"""Of its text: what a tenant emits besides is no more than a row of its own."""

MAX_WAITING: Final = 20_000
"""Events of a project in the outbox. They are counted whenever one is added, which takes milliseconds when there are so
many; those of transactions that are open elsewhere are not seen."""

MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
"""Of a project: a hundred of them that are full take 6.4 GB of the database's disk."""

FULL: Final = "53400"
"""SQLSTATE of `publish` when so many wait."""

_MAKE: Final = """
DO $make$
BEGIN
  IF to_regclass('atlas_kept.key') IS NOT NULL THEN
    PERFORM FROM atlas_kept.key WHERE inner_pad = {inner} AND outer_pad = {outer} AND version = {version};
    IF FOUND THEN RETURN; END IF;
  END IF;
  CREATE SCHEMA IF NOT EXISTS atlas_kept;
  REVOKE ALL ON SCHEMA atlas_kept FROM PUBLIC;
  CREATE SCHEMA IF NOT EXISTS atlas_run;
  REVOKE ALL ON SCHEMA atlas_run FROM PUBLIC;
  GRANT USAGE ON SCHEMA atlas_run TO PUBLIC;

  CREATE TABLE IF NOT EXISTS atlas_kept.key (
    one bool PRIMARY KEY DEFAULT true CHECK (one),
    inner_pad bytea NOT NULL, outer_pad bytea NOT NULL,
    version int NOT NULL
  );
  CREATE TABLE IF NOT EXISTS atlas_kept.outbox (
    sequence bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    role name NOT NULL,
    event text NOT NULL,
    refused text, refused_at timestamptz,
    written_at timestamptz NOT NULL DEFAULT now()
  );
  ALTER TABLE atlas_kept.outbox ADD COLUMN IF NOT EXISTS refused_at timestamptz; -- since version 2
  ALTER TABLE atlas_kept.outbox ADD COLUMN IF NOT EXISTS written_at timestamptz NOT NULL DEFAULT now(); -- version 3
  UPDATE atlas_kept.outbox SET refused_at = now() WHERE refused IS NOT NULL AND refused_at IS NULL;
  DROP INDEX IF EXISTS atlas_kept.outbox_in_order; -- of version 1
  CREATE INDEX IF NOT EXISTS outbox_waiting ON atlas_kept.outbox (role, sequence) WHERE refused IS NULL;
  CREATE INDEX IF NOT EXISTS outbox_refused ON atlas_kept.outbox (refused_at) WHERE refused IS NOT NULL;
  CREATE TABLE IF NOT EXISTS atlas_kept.mark (
    role name NOT NULL, key text NOT NULL,
    told text,
    set_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (role, key)
  );
  CREATE INDEX IF NOT EXISTS mark_age ON atlas_kept.mark (set_at);
  REVOKE ALL ON ALL TABLES IN SCHEMA atlas_kept FROM PUBLIC;

  INSERT INTO atlas_kept.key (inner_pad, outer_pad, version) VALUES ({inner}, {outer}, {version})
    ON CONFLICT (one) DO UPDATE SET inner_pad = {inner}, outer_pad = {outer}, version = {version};

  CREATE OR REPLACE FUNCTION atlas_kept.refuse() RETURNS pg_lsn
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
  BEGIN
    RAISE insufficient_privilege USING MESSAGE = 'permission denied: only a server of ours can call this';
  END $$;

  CREATE OR REPLACE FUNCTION atlas_kept.require(purpose text, text text, seal bytea) RETURNS void
  LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  DECLARE pads record;
  BEGIN
    SELECT inner_pad, outer_pad INTO STRICT pads FROM atlas_kept.key;
    IF sha256(pads.outer_pad || sha256(pads.inner_pad || convert_to(
         purpose || chr(10) || session_user || chr(10) || text, 'UTF8'))) IS DISTINCT FROM seal THEN
      PERFORM atlas_kept.refuse();
    END IF;
  END $$;

  -- once for each write of a run, and planned anew after DISCARD ALL: one statement in SQL is less of that
  CREATE OR REPLACE FUNCTION atlas_run.cause(text text, seal bytea) RETURNS pg_lsn
  LANGUAGE sql SECURITY DEFINER
  BEGIN ATOMIC
    SELECT CASE WHEN pg_catalog.octet_length(cause.seal) = {seal_bytes}
                     AND pg_catalog.octet_length(cause.text) <= {most_cause_bytes}
                THEN pg_catalog.pg_logical_emit_message(
                       true, {prefix}, pg_catalog.encode(cause.seal, 'hex') || cause.text)
                ELSE atlas_kept.refuse() END;
  END;

  CREATE OR REPLACE FUNCTION atlas_run.publish(text text, seal bytea) RETURNS void
  LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  DECLARE waiting record;
  BEGIN
    PERFORM atlas_kept.require('event', text, seal);
    SELECT count(*) AS events, coalesce(sum(octet_length(event)), 0) AS bytes INTO STRICT waiting FROM (
      SELECT event FROM atlas_kept.outbox WHERE role = session_user AND refused IS NULL
      ORDER BY sequence LIMIT {most}
    ) AS first;
    IF waiting.events >= {most} OR waiting.bytes + octet_length(text) > {most_bytes} THEN
      RAISE EXCEPTION USING ERRCODE = {full}, MESSAGE = format(
        '%s events of the project with %s bytes wait to be published already; at most %s with %s bytes may wait: '
        'try again once they are in the stream', waiting.events, waiting.bytes, {most}, {most_bytes});
    END IF;
    INSERT INTO atlas_kept.outbox (role, event) VALUES (session_user, text);
  END $$;

  CREATE OR REPLACE FUNCTION atlas_run.mark(text text, seal bytea) RETURNS text
  LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  BEGIN
    PERFORM atlas_kept.require('mark', text, seal);
    INSERT INTO atlas_kept.mark (role, key) VALUES (session_user, text) ON CONFLICT DO NOTHING;
    IF FOUND THEN RETURN NULL; END IF;
    RETURN (SELECT coalesce(told, 'null') FROM atlas_kept.mark WHERE role = session_user AND key = text);
  END $$;

  CREATE OR REPLACE FUNCTION atlas_run.told(text text, seal bytea) RETURNS text
  LANGUAGE plpgsql STABLE STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  BEGIN
    PERFORM atlas_kept.require('told', text, seal);
    RETURN (SELECT coalesce(told, 'null') FROM atlas_kept.mark WHERE role = session_user AND key = text);
  END $$;

  CREATE OR REPLACE FUNCTION atlas_run.tell(text text, seal bytea) RETURNS void
  LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  BEGIN
    PERFORM atlas_kept.require('tell', text, seal);
    UPDATE atlas_kept.mark SET told = substr(text, strpos(text, chr(10)) + 1)
    WHERE role = session_user AND key = split_part(text, chr(10), 1);
  END $$;

  REVOKE ALL ON ALL ROUTINES IN SCHEMA atlas_run, atlas_kept FROM PUBLIC;
  GRANT EXECUTE ON FUNCTION atlas_run.cause, atlas_run.publish, atlas_run.mark, atlas_run.told, atlas_run.tell
    TO PUBLIC;
END $make$
"""

VERSION: Final = 3
"""Of what is made: raised when it changes."""


async def prepare(admin: AsyncConnection, sealer: Sealer) -> None:
    """Schema, tables and functions as they must be. In a transaction that holds the lock on roles and privileges;
    changes nothing the second time."""
    inner, outer = sealer.pads
    await admin.execute(
        sql.SQL(_MAKE).format(
            inner=sql.Literal(inner),
            outer=sql.Literal(outer),
            version=sql.Literal(VERSION),
            prefix=sql.Literal(CAUSE_PREFIX),
            seal_bytes=sql.Literal(SEAL_BYTES),
            most_cause_bytes=sql.Literal(MAX_CAUSE_BYTES),
            most=sql.Literal(MAX_WAITING),
            most_bytes=sql.Literal(MAX_WAITING_BYTES),
            full=sql.Literal(FULL),
        )
    )


async def forget(admin: AsyncConnection, role: str) -> None:
    """Whatever is left of a project that is dropped."""
    await admin.execute("DELETE FROM atlas_kept.outbox WHERE role = %s", [role])
    await admin.execute("DELETE FROM atlas_kept.mark WHERE role = %s", [role])


async def sweep(admin: AsyncConnection, keep_days: float) -> None:
    """Remove marks that are older, and events that were refused longer ago."""
    kept = [keep_days * 86_400]
    await admin.execute("DELETE FROM atlas_kept.mark WHERE set_at < now() - make_interval(secs => %s)", kept)
    await admin.execute(
        "DELETE FROM atlas_kept.outbox WHERE refused IS NOT NULL AND refused_at < now() - make_interval(secs => %s)",
        kept,
    )


class Effects:
    """Makes the statements of one project's runs."""

    def __init__(self, sealer: Sealer, role: str) -> None:
        self._sealer = sealer
        self._role = role

    def cause(self, text: str) -> bytes:
        """`wire.statement` of it; no answer worth reading."""
        return wire.statement("SELECT atlas_run.cause($1, $2)", TYPES, self._values("cause", text))

    def publish(self, text: str) -> "Statement":
        return "SELECT atlas_run.publish($1, $2)", self._values("event", text)

    def mark(self, key: str) -> "Statement":
        return "SELECT atlas_run.mark($1, $2)", self._values("mark", key)

    def told(self, key: str) -> "Statement":
        return "SELECT atlas_run.told($1, $2)", self._values("told", key)

    def tell(self, key: str, told: str) -> "Statement":
        return "SELECT atlas_run.tell($1, $2)", self._values("tell", f"{key}\n{told}")

    def _values(self, purpose: str, text: str) -> list[bytes | None]:
        return [text.encode(), b"\\x" + self._sealer.seal(purpose, self._role, text).hex().encode()]


Statement = tuple[str, list[bytes | None]]
"""For `Session.execute` with parameters of TYPES."""

TYPES: Final = (TEXT, BYTEA)
