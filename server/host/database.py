"""`atlas.db.query`: one statement as the project's role, its rows as JSON.

    check parameters ─▶ lease ─▶ execute ─▶ rows within the caps ─▶ commit and reset ─▶ JSON array
                                    │
                                    └─ no operator or cast for a parameter's type: ask Postgres which, execute again

A call is a transaction. It commits only after its last row was read, so a call that ends in an error, a limit or a
cancellation has had no effect (but for what a procedure of the tenant committed itself, in a run that has no cause).
Several statements in a transaction: `server.host.transaction`.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import psycopg

from engines.contract import HostError
from server.host import parameters
from server.host.connections import PER_PROJECT, TOTAL, WAIT_S, Connections, NoConnection
from server.host.statement import MAX_RESULT_BYTES, Writers, refuse_control, run, sql_error, too_many_bytes
from server.log import Logger
from server.postgres.channel import ConnectionLost, SqlError
from server.postgres.effects import Effects
from server.postgres.holds import ENDED, REFUSED
from server.postgres.session import CopyRefused, Session
from server.postgres.tenants import Tenants, schema_of
from server.postgres.values import FORMATS
from server.postgres.wire import MessageTooLarge, WireError

log = Logger("database")


SESSION: Final = {
    **FORMATS,
    "standard_conforming_strings": "on",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "client_min_messages": "error",
    "statement_timeout": "65s",  # longer than any tier; the deadline is ours, this is for when we die
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "15s",  # longer than a transaction may be open
    "client_connection_check_interval": "1s",
    "max_parallel_workers_per_gather": "0",
    "application_name": "atlas",
}
"""Sent when a session starts: they beat `ALTER ROLE … SET`, and DISCARD ALL returns to them."""


HELD_S: Final = 1.0
"""For which a project that is held is not asked about again; nor are its logins tried, each a process of Postgres."""

HELD: Final = (
    "atlas.db: this project writes faster than the changes of its tables are published, so that its database is "
    "closed, to reads too, until they are; try again in some seconds or minutes"
)


class Database:
    """For all projects of a process. Safe for any number of concurrent calls."""

    def __init__(
        self, tenants: Tenants, *, total: int = TOTAL, per_project: int = PER_PROJECT, wait_s: float = WAIT_S
    ) -> None:
        self._tenants = tenants
        self._per_project = per_project
        self._writers = Writers()
        self._held_until_s: dict[str, float] = {}
        self._connections: Connections[Session] = Connections(
            self._connect, total=total, per_project=per_project, wait_s=wait_s
        )

    async def query(
        self,
        project_id: str,
        sql: str,
        values: Sequence[object],
        *,
        timeout_ms: int,
        before: Sequence[bytes] = (),
    ) -> bytes:
        """The rows as a JSON array of objects; [] for a statement that returns none.

        `before`: statements that go ahead of it in the same transaction, see `Session.begin`.

        HostError: sql_<SQLSTATE> from Postgres, rows_limit, bytes_limit, sql_unsupported, sql_timeout, unavailable,
        invalid_argument. Cancelling stops the statement on the server and rolls it back before CancelledError leaves.
        """
        parameters.check(values)
        if before:
            refuse_control(sql)
        refused: SqlError | None = None
        try:
            async with asyncio.timeout(timeout_ms / 1000), self.session(project_id) as session:
                try:
                    return await run(session, sql, values, before, self._writers)
                except SqlError as why:
                    refused = why  # the session is clean, keep it
        except TimeoutError:
            raise HostError("sql_timeout", f"atlas.db.query: no answer within {timeout_ms} ms; rolled back") from None
        raise sql_error(refused)

    @asynccontextmanager
    async def session(self, project_id: str) -> AsyncIterator[Session]:
        """A session for the block, which leaves it idle. After any exception it is abandoned: the server stops, nothing
        is committed. HostError for what Postgres and the connection to it raise."""
        if self._held_until_s.get(project_id, 0.0) > asyncio.get_running_loop().time():
            raise HostError("unavailable", HELD)
        try:
            async with self._connections.lease(project_id) as session:
                yield session
        except MessageTooLarge:
            raise too_many_bytes() from None
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
            await self._refuse_held(project_id)
            log.warning("database.lost", "A tenant's database call failed", project_id=project_id, error=str(why))
            raise HostError("unavailable", "atlas.db.query: the database cannot be reached; try again") from None
        except SqlError as why:
            if why.sqlstate in (REFUSED, ENDED):
                await self._refuse_held(project_id)
            log.warning("database.refused", "A tenant's login failed", project_id=project_id, sqlstate=why.sqlstate)
            raise HostError("unavailable", "atlas.db.query: the database did not accept the connection") from None

    async def _refuse_held(self, project_id: str) -> None:
        """HostError when that is why there is no session."""
        try:
            async with asyncio.timeout(HELD_S):
                held = await self._tenants.is_held(project_id)
        except (psycopg.Error, TimeoutError):
            return
        now_s = asyncio.get_running_loop().time()
        self._held_until_s = {each: until_s for each, until_s in self._held_until_s.items() if until_s > now_s}
        if held:
            self._held_until_s[project_id] = now_s + HELD_S
            raise HostError("unavailable", HELD) from None

    def effects(self, project_id: str) -> Effects:
        """What the project's runs leave beside its rows."""
        return self._tenants.effects(project_id)

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
