"""What a minute in which 10,000 schedules are due costs a worker, from the clock to the last acknowledgement."""

import asyncio
import gc
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from server.dispatch.cron import Cron
from server.events.bus import EventBus
from server.events.publisher import Publisher
from server.postgres.control import open_pool, transaction
from server.postgres.migrate import migrate
from server.settings import Settings
from server.stack import nats, postgres
from server.stack.account import servant
from server.stack.part import Part, start
from server.telemetry.metrics import Metrics
from server.triggers.conditions import ALWAYS
from server.triggers.definition import Trigger
from tests.bench.rows import Row
from tests.bench.stack import new_folder

TITLE = "Cron, 10,000 schedules due in one minute"
SCHEDULES: Final = 10_000
ROUNDS: Final = 3
ZONES: Final = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Tokyo")
NOON: Final = datetime(2026, 7, 1, 12, tzinfo=UTC)


class Minutes:
    """A clock on which each look comes a minute later."""

    def __init__(self) -> None:
        self.at = NOON

    def now(self) -> datetime:
        return self.at

    def monotonic_s(self) -> float:
        return time.monotonic()


class Fixed:
    """The triggers as the cache gives them."""

    def __init__(self, overlap: str) -> None:
        self._all = tuple(_trigger(number, overlap) for number in range(SCHEDULES))

    async def scheduled(self) -> Sequence[Trigger]:
        return self._all


async def measure() -> list[Row]:
    """About 10 s."""
    folder = new_folder()
    try:
        async with servers(folder) as (database, bus):
            await migrate(database)
            publisher = Publisher(bus, Settings())
            await publisher.start()
            async with open_pool(database) as pool:

                async def end() -> None:
                    """What was published has run."""
                    async with transaction(pool) as conn:
                        await conn.execute("TRUNCATE cron_ticks")

                figures = []
                for overlap in ("allow", "skip"):
                    clock = Minutes()
                    cron = Cron(pool, Fixed(overlap), publisher, Metrics(), clock=clock)
                    figures.append(await look_s(cron, clock, end))
                    async with transaction(pool) as conn:
                        await conn.execute("UPDATE cron_state SET evaluated = NULL")
    finally:
        shutil.rmtree(folder)
    (first_s, allow_s, late_ms), (_, skip_s, _) = figures
    return [
        Row("overlap allow", allow_s, "s", "< 1"),
        Row("overlap skip, with marks of 10,000 ticks", skip_s, "s", "< 1"),
        Row("the first look, which parses the schedules", first_s, "s"),
        Row("how long others waited for the thread, most", late_ms, "ms"),
    ]


async def look_s(cron: Cron, clock: Minutes, end: Callable[[], Awaitable[object]]) -> tuple[float, float, float]:
    """The first look, and the best of some others: others use this machine too. How late a timer was meanwhile."""
    took_s: list[float] = []
    gc.collect()
    for _ in range(1 + ROUNDS):
        clock.at += timedelta(minutes=1)
        began_s = time.perf_counter()
        looking = asyncio.ensure_future(cron.look())
        late_ms = await _lateness_ms(looking)
        assert await looking
        took_s.append(time.perf_counter() - began_s)
        await end()
    return took_s[0], min(took_s[1:]), late_ms


async def _lateness_ms(looking: "asyncio.Future[bool]") -> float:
    worst_s = 0.0
    while not looking.done():
        due_s = time.perf_counter() + 0.001
        await asyncio.sleep(0.001)
        worst_s = max(worst_s, time.perf_counter() - due_s)
    return worst_s * 1000


@asynccontextmanager
async def servers(folder: Path) -> AsyncIterator[tuple[str, EventBus]]:
    """A Postgres and a NATS of its own, in `folder`."""
    account, port = servant(), nats.free_port()
    bin_dir = postgres.prepare(folder / "postgres", folder / "pg", folder / "bin", account)
    parts: list[Part] = [
        postgres.part(folder / "postgres", folder / "pg", bin_dir, folder / "postgres.log", account),
        nats.part(
            data=folder / "nats",
            port=port,
            config=folder / "nats.conf",
            programs=folder / "bin",
            log=folder / "nats.log",
            token="bench",
            account=account,
        ),
    ]
    running = [start(part, str(folder)) for part in parts]
    try:
        for server in running:
            await asyncio.to_thread(server.wait_ready)
        bus = EventBus(nats.url(port, "bench"))
        await bus.start()
        yield postgres.url(folder / "pg", "postgres"), bus
        await bus.close()
    finally:
        for server in running:
            server.kill()
            server.close()


def _trigger(number: int, overlap: str) -> Trigger:
    return Trigger(
        id=str(uuid.uuid4()),
        project_id=str(uuid.uuid4()),
        event_type="cron",
        config={"schedule": "* * * * *", "timezone": ZONES[number % len(ZONES)], "overlap": overlap},
        target_type="function",
        function_id=str(uuid.uuid4()),
        workflow_id=None,
        conditions=ALWAYS,
        enabled=True,
        paused=False,
        since=NOON - timedelta(days=1),
        created_at=NOON,
        updated_at=NOON,
    )
