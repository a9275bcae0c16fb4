"""`atlas.db.query`: one statement as the project's role, its rows as JSON.

    check parameters ─▶ lease ─▶ execute ─▶ rows within the caps ─▶ commit and reset ─▶ JSON array
                                    │
                                    └─ no operator or cast for a parameter's type: ask Postgres which, execute again

A call is a transaction. It commits only after its last row was read, so a call that ends in an error, a limit or a
cancellation has had no effect (but for what a procedure of the tenant committed itself).
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from engines.contract import HostError
from server.host import parameters
from server.host.connections import PER_PROJECT, TOTAL, WAIT_S, Connections, NoConnection
from server.log import Logger
from server.postgres.session import ConnectionLost, CopyRefused, Session, SqlError
from server.postgres.tenants import Tenants, schema_of
from server.postgres.values import FORMATS, Loader, as_object, loaders
from server.postgres.wire import Column, MessageTooLarge, WireError

log = Logger("database")

MAX_ROWS: Final = 10_000
MAX_RESULT_BYTES: Final = 4 * 1024 * 1024
MAX_SQL_BYTES: Final = 1024 * 1024
MAX_ERROR_CHARS: Final = 2_000

SESSION: Final = {
    **FORMATS,
    "standard_conforming_strings": "on",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "client_min_messages": "error",
    "statement_timeout": "65s",  # longer than any tier; the deadline is ours, this is for when we die
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "10s",
    "client_connection_check_interval": "1s",
    "max_parallel_workers_per_gather": "0",
    "application_name": "atlas",
}
"""Sent when a session starts: they beat `ALTER ROLE … SET`, and DISCARD ALL returns to them."""

WITHOUT_EFFECT: Final = frozenset(
    (
        *("BEGIN", "START TRANSACTION", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "PREPARE TRANSACTION"),
        *("SET", "RESET", "LISTEN", "UNLISTEN", "NOTIFY", "PREPARE", "DEALLOCATE", "DEALLOCATE ALL"),
        *("DECLARE CURSOR", "CLOSE CURSOR", "LOCK TABLE", "DISCARD ALL", "LOAD", "SET CONSTRAINTS"),
    )
)
"""Command tags of what would end with the call. Refused, so that nobody believes to have a transaction."""

MISTYPED: Final = frozenset(("42883", "42804", "42846", "42725"))
UNTYPED: Final = "42P18"


class Database:
    """For all projects of a process. Safe for any number of concurrent calls."""

    def __init__(
        self, tenants: Tenants, *, total: int = TOTAL, per_project: int = PER_PROJECT, wait_s: float = WAIT_S
    ) -> None:
        self._tenants = tenants
        self._per_project = per_project
        self._connections: Connections[Session] = Connections(
            self._connect, total=total, per_project=per_project, wait_s=wait_s
        )

    async def query(self, project_id: str, sql: str, values: Sequence[object], *, timeout_ms: int) -> bytes:
        """The rows as a JSON array of objects; [] for a statement that returns none.

        HostError: sql_<SQLSTATE> from Postgres, rows_limit, bytes_limit, sql_unsupported, sql_timeout, unavailable,
        invalid_argument. Cancelling stops the statement on the server and rolls it back before CancelledError leaves.
        """
        parameters.check(values)
        try:
            async with asyncio.timeout(timeout_ms / 1000), self._connections.lease(project_id) as session:
                try:
                    return await self._run(session, sql, values)
                except SqlError as why:
                    refused = why  # the session is clean, keep it
            raise _sql_error(refused)
        except TimeoutError:
            raise HostError("sql_timeout", f"atlas.db.query: no answer within {timeout_ms} ms; rolled back") from None
        except MessageTooLarge:
            raise _too_many_bytes() from None
        except CopyRefused:
            raise HostError(
                "sql_unsupported", "atlas.db.query: COPY needs a stream; use INSERT with parameters, or SELECT"
            ) from None
        except NoConnection:
            raise HostError(
                "unavailable",
                "atlas.db.query: no database connection became free in time; "
                f"a project has {self._per_project} in each server process",
            ) from None
        except (ConnectionLost, WireError) as why:
            log.warning("database.lost", "A tenant's database call failed", project_id=project_id, error=str(why))
            raise HostError("unavailable", "atlas.db.query: the database cannot be reached; try again") from None
        except SqlError as why:
            log.warning("database.refused", "A tenant's login failed", project_id=project_id, sqlstate=why.sqlstate)
            raise HostError("unavailable", "atlas.db.query: the database did not accept the connection") from None

    async def forget(self, project_id: str) -> None:
        """Close the project's idle connections, before it is dropped."""
        await self._connections.forget(project_id)

    async def close(self) -> None:
        await self._connections.close()

    async def _connect(self, project_id: str) -> Session:
        login = self._tenants.login(project_id, {**SESSION, "search_path": schema_of(project_id)})
        try:
            return await Session.connect(self._tenants.address, login, max_message_bytes=MAX_RESULT_BYTES)
        except SqlError as why:
            if not why.sqlstate.startswith("28"):
                raise
        await self._tenants.repair(project_id)
        return await Session.connect(self._tenants.address, login, max_message_bytes=MAX_RESULT_BYTES)

    async def _run(self, session: Session, sql: str, values: Sequence[object]) -> bytes:
        types = [parameters.literal_type(value) for value in values]
        try:
            return await _execute(session, sql, types, values)
        except SqlError as why:
            if not _mistyped(why) or not values:
                raise
            refused = why
        if refused.sqlstate == UNTYPED:
            types = [found or parameters.TEXT for found in types]
        else:
            try:
                types = await session.describe(sql, [parameters.UNKNOWN] * len(types))
            except SqlError:
                raise refused from None  # says what is wrong in terms of the values
        return await _execute(session, sql, types, values)


class _Rows:
    """Collects rows as JSON, up to the caps."""

    def __init__(self) -> None:
        self._loaders: list[tuple[str, Loader]] = []
        self._rows: list[bytes] = []
        self._bytes = 0

    def columns(self, columns: list[Column]) -> None:
        self._loaders = loaders(columns)

    def add(self, row: list[bytes | None]) -> None:
        if len(self._rows) >= MAX_ROWS:
            raise HostError(
                "rows_limit",
                f"atlas.db.query: more than {MAX_ROWS} rows, {MAX_ROWS} are allowed; add a LIMIT. Rolled back",
            )
        encoded = as_object(self._loaders, row)
        self._bytes += len(encoded) + 1
        if self._bytes > MAX_RESULT_BYTES:
            raise _too_many_bytes()
        self._rows.append(encoded)

    def json(self) -> bytes:
        return b"[" + b",".join(self._rows) + b"]"


async def _execute(session: Session, sql: str, types: Sequence[int], values: Sequence[object]) -> bytes:
    texts = [parameters.text(value, oid) for value, oid in zip(values, types, strict=True)]
    rows = _Rows()
    tag = await session.execute(sql, types, texts, rows.columns, rows.add)
    if tag in WITHOUT_EFFECT:
        raise HostError(
            "sql_unsupported",
            f"atlas.db.query: {tag} would have no effect, every call is a transaction of its own. "
            "For several steps in one transaction use WITH or a function",
        )
    await session.commit()
    return rows.json()


def _mistyped(error: SqlError) -> bool:
    """Refused while the statement itself was analysed, before anything ran."""
    known = error.sqlstate in MISTYPED or error.sqlstate == UNTYPED
    return known and "W" not in error.fields and ("P" in error.fields or error.sqlstate == UNTYPED)


def _too_many_bytes() -> HostError:
    return HostError(
        "bytes_limit",
        f"atlas.db.query: the rows are more than {MAX_RESULT_BYTES} bytes as JSON, {MAX_RESULT_BYTES} are allowed; "
        "select fewer columns or add a LIMIT. Rolled back",
    )


def _sql_error(error: SqlError) -> HostError:
    fields = error.fields
    place = f", at character {fields['P']}" if "P" in fields else ""
    message = f"{fields.get('M', 'unknown error')} (SQLSTATE {error.sqlstate}{place})"
    for label, key in (("Detail", "D"), ("Hint", "H")):
        if key in fields:
            message += f"\n{label}: {fields[key]}"
    return HostError(f"sql_{error.sqlstate}", message[:MAX_ERROR_CHARS])
