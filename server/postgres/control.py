"""The control plane's database: one pool a process, and transactions on it."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow
from psycopg.types.string import TextLoader
from psycopg_pool import AsyncConnectionPool

from server.errors import Unavailable

Connection = AsyncConnection[TupleRow]
Pool = AsyncConnectionPool[Connection]

RETRY_AFTER_MS: Final = 1_000

_OPTIONS: Final = " ".join(
    f"-c {name}={value}"
    for name, value in {
        "statement_timeout": "10s",
        "lock_timeout": "5s",
        "idle_in_transaction_session_timeout": "60s",
        "timezone": "UTC",
    }.items()
)


def open_pool(url: str, *, max_size: int = 10, timeout_s: float = 5.0) -> Pool:
    """A pool that is not open yet: `async with open_pool(url) as pool`, or `await pool.open(wait=True)` and `close()`.

    UUIDs are strings and moments are in UTC on its connections. `timeout_s` is how long a caller waits for one.
    """
    return AsyncConnectionPool(
        url,
        open=False,
        min_size=1,
        max_size=max_size,
        timeout=timeout_s,
        kwargs={"options": _OPTIONS, "application_name": "atlas-control", "connect_timeout": 5},
        configure=_configure,
        check=AsyncConnectionPool.check_connection,
        name="control",
    )


@asynccontextmanager
async def transaction(pool: Pool) -> AsyncIterator[Connection]:
    """A connection in a transaction that commits at the end and rolls back on any exception.

    Unavailable when the database cannot be reached, is too slow, or two transactions stood in each other's way.
    """
    try:
        async with pool.connection() as conn:
            yield conn
    except (psycopg.OperationalError, psycopg.InterfaceError) as why:
        raise _away() from why


class Kept:
    """A connection of the pool that its owner keeps, on which every statement is a transaction of its own: one round
    trip instead of four. For one task, which closes it."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._conn: Connection | None = None

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """The connection, or a new one when it was lost. Unavailable as of `transaction`: whether a statement took
        effect is not known then."""
        try:
            if self._conn is None:
                self._conn = await self._pool.getconn()
                await self._conn.set_autocommit(True)
            yield self._conn
        except (psycopg.OperationalError, psycopg.InterfaceError) as why:
            await self.close()
            raise _away() from why
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Given back as it was, or ended if it is not idle."""
        conn, self._conn = self._conn, None
        if conn is None:
            return
        if conn.info.transaction_status is TransactionStatus.IDLE:
            with contextlib.suppress(psycopg.Error):
                await conn.set_autocommit(False)
        if conn.autocommit:
            await conn.close()
        await self._pool.putconn(conn)


def _away() -> Unavailable:
    return Unavailable(
        "The control database did not answer in time; try again",
        reason="CONTROL_DATABASE_UNAVAILABLE",
        retry_after_ms=RETRY_AFTER_MS,
    )


async def _configure(conn: Connection) -> None:
    conn.adapters.register_loader("uuid", TextLoader)
