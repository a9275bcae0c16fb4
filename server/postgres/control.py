"""The control plane's database: one pool a process, and transactions on it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import psycopg
from psycopg import AsyncConnection
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
        raise Unavailable(
            "The control database did not answer in time; try again",
            reason="CONTROL_DATABASE_UNAVAILABLE",
            retry_after_ms=RETRY_AFTER_MS,
        ) from why


async def _configure(conn: Connection) -> None:
    conn.adapters.register_loader("uuid", TextLoader)
