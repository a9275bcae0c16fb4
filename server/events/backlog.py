"""How many committed events wait in the outboxes, and how long the oldest of them: told by one process for all.

    storage     event_outbox of the control database          (`server.events.outbox`)
    functions   atlas_kept.outbox of the tenants database     (`server.events.run_outbox`)

The metrics of processes are summed. So only the one tells whose connection holds an advisory lock; when that ends,
another does.
"""

import asyncio
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection

from server.errors import Unavailable
from server.events import outbox, run_outbox
from server.log import logger
from server.postgres.control import Pool, transaction
from server.postgres.effects import MAX_WAITING
from server.postgres.tenants import Tenants
from server.tasks import end_task
from server.telemetry.metrics import Metrics

log = logger("events")

SAMPLE_S: Final = 5.0
MOST_COUNTED: Final = 100_000
"""Of each outbox: some tens of milliseconds of its database, on a busy machine 0.1 to 0.3 s."""

LOCK_KEY: Final = 0x61746C62
"""Of the advisory lock of who tells ("atlb")."""

_STORAGE: Final = """
SELECT (SELECT count(*) FROM (SELECT FROM event_outbox ORDER BY id LIMIT %s) AS first),
  (SELECT extract(epoch FROM now() - created_at)::float8 FROM event_outbox ORDER BY id LIMIT 1)
"""
_FUNCTIONS: Final = f"""
{run_outbox.ROLES}
SELECT (SELECT count(*) FROM (SELECT FROM roles CROSS JOIN LATERAL (
    SELECT FROM atlas_kept.outbox AS o
    WHERE o.role = roles.role AND refused IS NULL LIMIT %s) AS own LIMIT %s) AS first),
  (SELECT extract(epoch FROM now() - min(head.written_at))::float8 FROM roles CROSS JOIN LATERAL (
    SELECT written_at FROM atlas_kept.outbox AS o
    WHERE o.role = roles.role AND refused IS NULL ORDER BY sequence LIMIT 1) AS head)
"""


class Backlog:
    def __init__(self, pool: Pool, tenants: Tenants, metrics: Metrics, *, sample_s: float = SAMPLE_S) -> None:
        self._pool = pool
        self._tenants = tenants
        self._metrics = metrics
        self._sample_s = sample_s
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._go_on(), name="counting committed events")

    async def close(self) -> None:
        if self._task is not None:
            await end_task(self._task)

    async def _go_on(self) -> None:
        while True:
            try:
                async with self._tenants.admin() as admin:
                    await self._tell(admin)
            except (psycopg.Error, Unavailable) as why:
                log.warning("outbox.uncounted", f"Committed events that wait are not counted now: {why}")
            except Exception:
                log.exception("outbox.uncounted", "Committed events that wait are not counted now")
            finally:
                self._show(outbox.NAME, (0, None))
                self._show(run_outbox.NAME, (0, None))
            await asyncio.sleep(self._sample_s)

    async def _tell(self, admin: AsyncConnection) -> None:
        """As long as the connection holds; once it has the lock."""
        telling = False
        while True:
            telling = telling or await _row(admin, "SELECT pg_try_advisory_lock(%s)", LOCK_KEY) == (True,)
            if telling:
                self._show(run_outbox.NAME, await _row(admin, _FUNCTIONS, MAX_WAITING, MOST_COUNTED))
                async with transaction(self._pool) as conn:
                    counted = await _row(conn, _STORAGE, MOST_COUNTED)
                self._show(outbox.NAME, counted)
            await asyncio.sleep(self._sample_s)

    def _show(self, name: str, counted: tuple[Any, ...]) -> None:
        waiting, oldest_s = counted
        self._metrics.outbox_waiting(name).set(waiting)
        self._metrics.outbox_oldest_s(name).set(max(0.0, oldest_s or 0.0))


async def _row(conn: AsyncConnection, query: str, *values: int) -> tuple[Any, ...]:
    row = await (await conn.execute(query.encode(), values)).fetchone()
    assert row is not None
    return row
