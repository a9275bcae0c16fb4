"""From a tenant's COMMIT to the function that its row starts: relay, stream, match, ledger, sandbox; in one worker.

The clock begins just before COMMIT is sent, over a plain connection to Postgres: the commit itself is in the figures.
The function began, at the latest, when its run ended less its wall clock in the sandbox.
"""

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Final

from psycopg import AsyncConnection

from server.cdc.relay import Relay
from server.events import stream
from tests.bench import worker
from tests.bench.rows import Row, percentile
from tests.bench.worker import Worker
from tests.fix_cdc import streaming

TITLE: Final = "From a COMMIT to its function, in one idle worker process"
COMMITS: Final = 500
COLD: Final = 50
PAUSE_S: Final = 0.005
TABLE: Final = "CREATE TABLE bench (id int, amount numeric, note text, at timestamptz DEFAULT now())"
INSERT: Final = "INSERT INTO bench VALUES (%s, 120.5, 'order')"
SOURCE: Final = "export default (event) => event.data.id"


async def measure() -> list[Row]:
    """About 15 s."""
    async with worker.running() as made, AsyncExitStack() as stack:
        started = made.started
        await made.bind("cdc.INSERT.bench", await made.deploy("bench", SOURCE))
        await made.triggers.start()
        dispatcher = made.dispatcher()
        relay = Relay(started.tenants, started.bus, started.settings, started.metrics)
        for part in (dispatcher, relay):
            stack.push_async_callback(part.close)
            await part.start()
        await streaming(started.tenants)
        url = started.tenants.psql_url(made.project.id)
        async with await AsyncConnection.connect(url) as person:
            await person.execute(TABLE)
            await person.commit()
            figures = await lags(made, person)
    committed_ms, stored_ms, begun_ms = ([1000 * lag_s[part] for lag_s in figures] for part in range(3))
    return [
        Row(f"COMMIT to {what}, p{percent}", percentile(lags_ms, percent), "ms", goal, percentile(beside_ms, percent))
        for percent, goal in ((50, "15"), (99, "50"))
        for what, lags_ms, beside_ms, goal in (
            ("event in the stream", stored_ms, committed_ms, ""),
            ("function start", begun_ms, stored_ms, f"< {goal}"),
        )
    ]


async def lags(made: Worker, person: AsyncConnection) -> list[tuple[float, float, float]]:
    """Of one commit after the other: until it returned, its event was heard, and the function began; seconds."""
    stored_s: asyncio.Queue[float] = asyncio.Queue()

    async def hear(_: object) -> None:
        stored_s.put_nowait(time.monotonic())

    await made.started.bus.client.subscribe(f"{stream.PREFIX}cdc.>", cb=hear)
    found = []
    for number in range(COMMITS):
        await person.execute(INSERT, [number])
        began_s = time.monotonic()
        await person.commit()
        returned_s, heard_s, start_s = time.monotonic(), await stored_s.get(), await made.invoker.began_s.get()
        found.append((returned_s - began_s, heard_s - began_s, start_s - began_s))
        await asyncio.sleep(PAUSE_S)
    return found[COLD:]
