"""Which tables are published to change data capture: every permanent one of every project's schema, unasked.

    atlas_cdc                publication: a schema is added when it is made, and leaves it when it is dropped
    atlas_replica_identity   event trigger: a project's table is REPLICA IDENTITY FULL whenever a DDL statement ends
    atlas.cdc                one row: the replication slot in use, and a gap that is not announced yet
    atlas.cdc_held           the projects that are held, see `server.postgres.holds`

A published table without a replica identity refuses its owner's UPDATE and DELETE, so identities come first, the
publication after. FULL is refused by Postgres 18 for a table with a virtual generated column; such a table needs a
primary key, which is its identity then, and is refused without one: at its DDL, not at its first UPDATE.
All of this belongs to the admin; a tenant's role has no right to any of it.
"""

from collections.abc import Sequence
from typing import Final

from psycopg import AsyncConnection, sql
from psycopg.errors import InvalidSchemaName, LockNotAvailable

from server.log import logger
from server.postgres import holds

log = logger("cdc")

PUBLICATION: Final = "atlas_cdc"
SCHEMA_PATTERN: Final = "^proj_[0-9a-f]{32}$"

OLDEST_VERSION: Final = 160_000
STORED_COLUMNS_VERSION: Final = 180_000
"""From which on generated columns are published, and must be."""

LOCK_TIMEOUT_MS: Final = 2_000
"""For which a table's users are held up at most when a table that was there before us gets its identity."""

_WANTED: Final = """
    CASE WHEN NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attgenerated = 'v' AND NOT attisdropped)
         THEN 'f'
         WHEN EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary AND indimmediate) THEN 'd'
         ELSE '!' END
"""
"""The replica identity of table `c` as pg_class has it; "!": there can be none."""

_BODY: Final = f"""
DECLARE found record;
BEGIN
  FOR found IN
    WITH RECURSIVE touched AS (
      SELECT objid AS id FROM pg_event_trigger_ddl_commands() WHERE classid = 'pg_class'::regclass
      UNION
      SELECT inhrelid FROM pg_inherits JOIN touched ON inhparent = touched.id
    )
    SELECT nspname, relname, relreplident, {_WANTED} AS wanted
    FROM touched JOIN pg_class AS c ON c.oid = touched.id JOIN pg_namespace AS n ON n.oid = relnamespace
    WHERE relkind IN ('r', 'p') AND relpersistence = 'p' AND nspname ~ '{SCHEMA_PATTERN}'
  LOOP
    IF found.wanted = '!' THEN
      RAISE feature_not_supported USING
        MESSAGE = format('table %I has a virtual generated column and no primary key', found.relname),
        DETAIL = 'Its changes could not be published.',
        HINT = 'Give it a primary key, or write STORED after the generated column.';
    ELSIF found.relreplident::text <> found.wanted THEN
      EXECUTE format('ALTER TABLE %I.%I REPLICA IDENTITY %s', found.nspname, found.relname,
                     CASE found.wanted WHEN 'f' THEN 'FULL' ELSE 'DEFAULT' END);
    END IF;
  END LOOP;
END
"""

_MAKE: Final = (
    "CREATE SCHEMA IF NOT EXISTS atlas",
    "REVOKE ALL ON SCHEMA atlas FROM PUBLIC",
    "CREATE TABLE IF NOT EXISTS atlas.cdc (one bool PRIMARY KEY DEFAULT true CHECK (one), slot text, gap jsonb)",
    "INSERT INTO atlas.cdc DEFAULT VALUES ON CONFLICT DO NOTHING",
    holds.MAKE,
    "CREATE OR REPLACE FUNCTION atlas.replica_identity() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER"
    " SET search_path = pg_catalog, pg_temp AS {body}",
    "REVOKE ALL ON FUNCTION atlas.replica_identity() FROM PUBLIC",
    "DROP EVENT TRIGGER IF EXISTS atlas_replica_identity",
    "CREATE EVENT TRIGGER atlas_replica_identity ON ddl_command_end"
    " WHEN TAG IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'ALTER TABLE')"
    " EXECUTE FUNCTION atlas.replica_identity()",
    "ALTER EVENT TRIGGER atlas_replica_identity ENABLE ALWAYS",
)

_MADE: Final = """
SELECT to_regclass('atlas.cdc') IS NOT NULL AND to_regclass('atlas.cdc_held') IS NOT NULL
   AND EXISTS (SELECT FROM pg_proc JOIN pg_event_trigger ON evtfoid = pg_proc.oid
               WHERE evtname = 'atlas_replica_identity' AND evtenabled = 'A' AND prosrc = {body})
"""

_UNPUBLISHED: Final = """
SELECT nspname FROM pg_namespace AS n WHERE nspname ~ {pattern} AND (
  NOT EXISTS (SELECT FROM pg_publication_namespace JOIN pg_publication AS p ON p.oid = pnpubid
              WHERE pubname = {publication} AND pnnspid = n.oid)
  OR EXISTS (SELECT FROM pg_class AS c WHERE relnamespace = n.oid AND relkind IN ('r', 'p') AND relpersistence = 'p'
             AND relreplident::text <> {wanted}))
"""

_UNIDENTIFIED: Final = """
SELECT relname, {wanted} FROM pg_class AS c
WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = {schema})
  AND relkind IN ('r', 'p') AND relpersistence = 'p' AND relreplident::text <> {wanted}
"""


class NotPublishable(Exception):
    """Changes cannot be captured from this server; the message says what to do."""


async def require(admin: AsyncConnection) -> None:
    """NotPublishable when the server or the admin's role does not allow change data capture."""
    if admin.info.server_version < OLDEST_VERSION:
        raise NotPublishable(
            f"Postgres is {admin.info.server_version // 10_000}; change data capture needs 16 or newer"
        )
    if admin.info.parameter_status("is_superuser") != "on":
        raise NotPublishable("ATLAS_TENANT_DATABASE_URL must be a superuser's for change data capture")
    cursor = await admin.execute(
        "SELECT current_setting('wal_level'), current_setting('max_prepared_transactions')::int"
    )
    found = await cursor.fetchone()
    assert found is not None
    wal_level, prepared = found
    if wal_level != "logical":
        raise NotPublishable(
            f"wal_level of the tenants' Postgres is {wal_level}; set it to logical and restart the server"
        )
    if prepared:
        raise NotPublishable(
            f"max_prepared_transactions of the tenants' Postgres is {prepared}; set it to 0 and restart the server: a "
            "tenant's prepared transaction, which no session holds open, would keep everybody's write-ahead log"
        )


async def prepare(admin: AsyncConnection) -> None:
    """Event trigger and publication as they must be. In a transaction that holds the lock on roles and privileges;
    changes nothing the second time."""
    words = {"body": sql.Literal(_BODY)}
    cursor = await admin.execute(sql.SQL(_MADE).format(**words))
    if await cursor.fetchone() != (True,):
        for statement in _MAKE:
            await admin.execute(sql.SQL(statement).format(**words))
    cursor = await admin.execute("SELECT FROM pg_publication WHERE pubname = %s", [PUBLICATION])
    if not cursor.rowcount:
        stored = admin.info.server_version >= STORED_COLUMNS_VERSION
        await admin.execute(
            sql.SQL("CREATE PUBLICATION {} WITH (publish_via_partition_root{})").format(
                sql.Identifier(PUBLICATION), sql.SQL(", publish_generated_columns = stored" if stored else "")
            )
        )


async def unpublished(admin: AsyncConnection) -> Sequence[str]:
    """Schemas of projects that are not published, or have tables that are not as they must be."""
    cursor = await admin.execute(
        sql.SQL(_UNPUBLISHED).format(
            pattern=sql.Literal(SCHEMA_PATTERN), publication=sql.Literal(PUBLICATION), wanted=sql.SQL(_WANTED)
        )
    )
    return [name for (name,) in await cursor.fetchall()]


async def publish(admin: AsyncConnection, schema: str) -> bool:
    """The schema's tables have their identities, and it is published. In a transaction that holds the lock. False, and
    nothing is changed, when a table is in use for too long or cannot have an identity."""
    try:
        async with admin.transaction():
            await admin.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_TIMEOUT_MS)))
            cursor = await admin.execute(
                sql.SQL(_UNIDENTIFIED).format(schema=sql.Literal(schema), wanted=sql.SQL(_WANTED))
            )
            for table, wanted in await cursor.fetchall():
                if wanted == "!":
                    log.warning(
                        "cdc.no_identity",
                        f"{schema} is not published: its table {table!r} has a virtual generated column and no "
                        "primary key; give it one, or make the column STORED",
                    )
                    return False
                identity = sql.SQL("FULL" if wanted == "f" else "DEFAULT")
                await admin.execute(
                    sql.SQL("ALTER TABLE {} REPLICA IDENTITY {}").format(sql.Identifier(schema, table), identity)
                )
            cursor = await admin.execute(
                "SELECT FROM pg_publication_namespace JOIN pg_publication AS p ON p.oid = pnpubid"
                " WHERE pubname = %s AND pnnspid = (SELECT oid FROM pg_namespace WHERE nspname = %s)",
                [PUBLICATION, schema],
            )
            if not cursor.rowcount:
                await admin.execute(
                    sql.SQL("ALTER PUBLICATION {} ADD TABLES IN SCHEMA {}").format(
                        sql.Identifier(PUBLICATION), sql.Identifier(schema)
                    )
                )
    except InvalidSchemaName:  # dropped meanwhile
        return True
    except LockNotAvailable:
        log.warning("cdc.busy", f"{schema} is not published yet: a table of it is in use; it is tried again")
        return False
    return True
