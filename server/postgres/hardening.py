"""What every role of the tenants database may do without being asked, taken away.

A tenant's role holds nothing but its own schema, yet Postgres lets PUBLIC read the whole catalog (the names and
function bodies of all tenants), take advisory locks in everybody's name space, sleep on a connection, and make large
objects that no schema holds. Revoking is by rule with a short list of exceptions, so that what a newer Postgres adds is
closed, too.

Not closable by revoking, and therefore known to be open: the `reg*` types and `format_type` turn a number into the name
of another tenant's table or role (names are UUIDs or the tenant's choice; no data), LISTEN and NOTIFY statements share
one name space for each database (a call is refused them, a login with psql is not), and a tenant may fill the disk.
"""

from dataclasses import dataclass
from typing import Final

from psycopg import AsyncConnection, sql

LOCK_KEY: Final = 0x61746C61
"""Of the advisory lock that lets one process at a time change roles and privileges ("atla")."""

READABLE: Final = ("pg_timezone_names", "pg_timezone_abbrevs", "pg_settings")
"""Relations of pg_catalog that stay readable: no tenant can put anything into them."""

CALLABLE: Final = (
    # about values, not about objects of others
    "pg_(typeof|column_size|column_compression|collation_for|client_encoding|char_to_encoding|encoding_.*|input_.*|size_.*"
    "|lsn.*|snapshot_.*|mcv_list_.*|ndistinct_.*|dependencies_.*|node_tree_.*|ddl_command_.*|visible_in_snapshot"
    "|current_snapshot|current_xact_id.*|xact_status|trigger_depth|timezone_.*|get_keywords|backend_pid)",
    # what information_schema and serial columns are made of; each checks the caller's rights or needs a catalog's value
    "pg_(get_serial_sequence|get_expr|has_role|is_other_temp_schema|my_temp_schema|options_to_table|.*_is_updatable"
    "|get_function_arg_default|sequence_last_value|sequence_parameters|show_all_settings)",
)
"""Patterns of pg_* functions that stay callable."""

CLOSED: Final = (
    "set_config",  # SET by another name, inside a query
    "(lo|be_lo|lowrite|loread)(_.*)?",  # large objects belong to no schema
    "(obj|col|shobj)_description",
    "binary_upgrade_.*",
    "(query|cursor|table|schema|database)_to_xml.*",  # dumps of whatever can be reached, in one value
    "ts_stat",  # runs its argument as SQL
    "txid_status",
)
"""Patterns of further functions that are closed."""

_REVOKE: Final = """
DO $$
DECLARE command text;
BEGIN
  FOR command IN
    SELECT format('REVOKE ALL ON TABLE pg_catalog.%I FROM PUBLIC', relname) FROM pg_class
    WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind IN ('r', 'v') AND relname <> ALL ({readable})
      AND (has_table_privilege('public', oid, 'SELECT')
           OR relname <> 'pg_database' AND has_any_column_privilege('public', oid, 'SELECT'))
    UNION ALL
    SELECT 'REVOKE ALL ON TABLE information_schema.udt_privileges FROM PUBLIC'  -- the row types of everybody's tables
    WHERE has_table_privilege('public', 'information_schema.udt_privileges', 'SELECT')
    UNION ALL
    SELECT format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', oid::regprocedure) FROM pg_proc
    WHERE pronamespace = 'pg_catalog'::regnamespace AND has_function_privilege('public', oid, 'EXECUTE')
      AND ((proname LIKE 'pg\\_%' AND proname !~ {callable}) OR proname ~ {closed})
    UNION ALL
    SELECT format('REVOKE ALL ON DATABASE %I FROM PUBLIC', datname) FROM pg_database
    WHERE (datname = current_database() OR datname = ANY ({databases}))
      AND (has_database_privilege('public', datname, 'CONNECT') OR has_database_privilege('public', datname, 'TEMP'))
  LOOP EXECUTE command; END LOOP;
  IF NOT has_column_privilege('public', 'pg_database', 'encoding', 'SELECT') THEN
    GRANT SELECT (datname, encoding) ON pg_database TO PUBLIC;  -- information_schema.columns looks there as its caller
  END IF;
  IF has_schema_privilege('public', 'public', 'USAGE') THEN REVOKE ALL ON SCHEMA public FROM PUBLIC; END IF;
END $$
"""

_OPEN: Final = """
SELECT
  (SELECT count(*) FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind IN ('r', 'v')
     AND relname <> ALL ({readable}) AND has_table_privilege('public', oid, 'SELECT')),
  (SELECT count(*) FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace
     AND has_function_privilege('public', oid, 'EXECUTE')
     AND ((proname LIKE 'pg\\_%' AND proname !~ {callable}) OR proname ~ {closed})),
  (SELECT coalesce(string_agg(datname, ', '), '') FROM pg_database
     WHERE datallowconn AND has_database_privilege('public', datname, 'CONNECT'))
"""


@dataclass(frozen=True, slots=True)
class Hardening:
    """What could not be closed; all empty or 0 when the admin is a superuser and the server is ours alone."""

    readable_relations: int  # of pg_catalog, which show the names of all tenants' objects
    callable_functions: int
    open_databases: str  # to which any role of the server may connect, comma-separated


async def harden(admin: AsyncConnection, databases: tuple[str, ...]) -> Hardening:
    """Close what is open, in one transaction, and say what is still open. Changes nothing the second time.

    `databases` are closed to PUBLIC beside the one `admin` is connected to; names that do not exist are passed over.
    """
    words = {
        "readable": sql.Literal(list(READABLE)),
        "callable": sql.Literal(f"^({'|'.join(CALLABLE)})$"),
        "closed": sql.Literal(f"^({'|'.join(CLOSED)})$"),
        "databases": sql.Literal(list(databases)),
    }
    async with admin.transaction():
        await admin.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK_KEY])
        await admin.execute(sql.SQL(_REVOKE).format(**words))
    cursor = await admin.execute(sql.SQL(_OPEN).format(**words))
    found = await cursor.fetchone()
    assert found is not None
    return Hardening(*found)
