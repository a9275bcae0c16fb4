"""Events through one worker: from the stream through match, ledger and function to the written outcome.

The worker is this process, with real Postgres, NATS and QuickJS beside it on the same machine; events lie in the stream
before the clock starts. The bare loop fetches, decodes and acknowledges, and does nothing else.
"""

import asyncio
import contextlib
import gc
import shutil
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

import orjson
from nats.js.errors import NotFoundError

from server import parts
from server.dispatch import consumer
from server.dispatch.dispatcher import Dispatcher
from server.dispatch.runs import Invokes
from server.events import stream
from server.events.envelope import Event, encode
from server.events.json_text import read
from server.functions.deploy import Deployer
from server.invocations.invoke import Call, Finished
from server.parts import Parts
from server.postgres.control import transaction
from server.settings import Settings
from server.stack import bootstrap
from server.stack.credentials import credentials
from server.stack.launch import start_servers
from server.stack.nats import free_port
from server.stack.places import places
from server.stack.supervisor import Supervisor
from server.triggers.cache import TriggerCache
from tests.bench.rows import Row
from tests.bench.stack import new_folder
from tests.fix_runs import eventually

TITLE: Final = "Events, in one worker process"
EVENTS: Final = 12_000
UNMATCHED: Final = 20_000
LATE: Final = 300
SOURCE: Final = "export default (event) => event.data.amount"


async def measure() -> list[Row]:
    """About 30 s."""
    async with _started() as started, _Site(started) as site:
        bare = await site.bare(UNMATCHED)
        unmatched = await site.through("nobody.asked", UNMATCHED)
        per_s = await site.through("order.paid", EVENTS)
        p50_ms = await site.lag_ms(LATE)
    return [
        Row("match, ledger, QuickJS function, outcome", per_s, "events/s", ">= 3000"),
        Row("match nothing", unmatched, "events/s", f">= {bare / 2:.0f}", baseline=bare),
        Row("publish to function start, p50", p50_ms, "ms", "< 10"),
    ]


class _Timed:
    """An Invoker that notes when it is asked."""

    def __init__(self, invoker: Invokes) -> None:
        self._invoker = invoker
        self.began_s: asyncio.Queue[float] = asyncio.Queue()

    async def invoke(self, call: Call) -> Finished:
        self.began_s.put_nowait(time.monotonic())
        return await self._invoker.invoke(call)


@dataclass
class _Site:
    started: Parts

    async def __aenter__(self) -> "_Site":
        started = self.started
        await stream.ensure(started.bus, started.settings)
        triggers = TriggerCache(started.pool, started.changes)
        self.invoker = _Timed(started.invoker(started.recorder))
        self.triggers = triggers
        project = (await started.projects.list(1)).items[0]
        self.project_id = project.id
        deployer = Deployer(started.lifecycle, started.artifacts, runtimes=started.runtimes, settings=started.settings)
        await started.listen()
        function = await deployer.deploy(
            project.id, project.tier, name="bench", slug="bench", runtime="quickjs", source=SOURCE
        )
        async with transaction(started.pool) as conn:
            await conn.execute(
                "INSERT INTO triggers (project_id, event_type, target_type, function_id, conditions)"
                " VALUES (%s, 'order.paid', 'function', %s, %s)",
                [project.id, function.id, '[{"field": "amount", "op": "gt", "value": 10}]'],
            )
        await triggers.start()
        gc.collect()
        gc.freeze()  # as a worker does
        return self

    async def __aexit__(self, *_: object) -> None: ...

    def make(self) -> Dispatcher:
        started = self.started
        return Dispatcher(
            bus=started.bus,
            settings=started.settings,
            pool=started.pool,
            changes=started.changes,
            triggers=self.triggers,
            invoker=self.invoker,
            metrics=started.metrics,
        )

    def event(self, event_type: str, number: int) -> Event:
        data = {"id": number, "amount": 120.5, "status": "paid", "note": "x" * 60}
        return Event(
            id=str(uuid4()),
            type=event_type,
            project_id=self.project_id,
            time=datetime.now(UTC),
            source="bench",
            data=read(orjson.dumps(data)),
        )

    async def publish(self, event_type: str, count: int) -> None:
        client = self.started.bus.client
        for number in range(count):
            event = self.event(event_type, number)
            await client.publish(stream.subject_of(event_type), encode(event), headers={"Nats-Msg-Id": event.id})
            if number % 500 == 0:
                await client.flush()
        await client.flush()

        async def stored() -> bool:
            return (await self.started.bus.jetstream.stream_info(stream.NAME)).state.messages >= count

        await eventually(stored)

    async def empty(self) -> None:
        with contextlib.suppress(Exception):
            await self.started.bus.jetstream.delete_consumer(stream.NAME, consumer.DURABLE)
        await self.started.bus.jetstream.purge_stream(stream.NAME)

    async def bare(self, count: int) -> float:
        """Events per second of a loop that fetches, decodes and acknowledges."""
        await self.empty()
        await self.publish("nobody.asked", count)
        jetstream = self.started.bus.jetstream
        subscription = await jetstream.pull_subscribe("", consumer.DURABLE, stream.NAME)
        began_s = time.monotonic()
        left = count
        while left:
            for message in await subscription.fetch(500, 5):
                stream.event_of(message.subject, message.data)
                await message.ack()
                left -= 1
        await self.started.bus.client.flush()
        took_s = time.monotonic() - began_s
        await subscription.unsubscribe()
        return count / took_s

    async def through(self, event_type: str, count: int) -> float:
        """Events per second of a dispatcher, from its start to the last outcome or acknowledgement."""
        await self.empty()
        await self.publish(event_type, count)
        dispatcher = self.make()
        began_s = time.monotonic()
        await dispatcher.start()
        await self.done(count if event_type == "order.paid" else 0)
        took_s = time.monotonic() - began_s
        await dispatcher.close()
        async with transaction(self.started.pool) as conn:
            await conn.execute("TRUNCATE deliveries, delivered_events")
        return count / took_s

    async def done(self, count: int) -> None:
        while True:
            info = None
            with contextlib.suppress(NotFoundError):  # it is about to be made
                info = await self.started.bus.jetstream.consumer_info(stream.NAME, consumer.DURABLE)
            if info and not info.num_pending and not info.num_ack_pending:
                async with transaction(self.started.pool) as conn:
                    cursor = await conn.execute("SELECT count(*) FROM deliveries WHERE state = 'done'")
                    ((found,),) = await cursor.fetchall()
                if found >= count:
                    return
            await asyncio.sleep(0.05)

    async def lag_ms(self, count: int) -> float:
        """From publishing to the function's start, one event at a time on an idle worker."""
        await self.empty()
        dispatcher = self.make()
        await dispatcher.start()
        lags: list[float] = []
        self.invoker.began_s = asyncio.Queue()
        for number in range(count):
            event = self.event("order.paid", number)
            body = encode(event)
            began_s = time.monotonic()
            await self.started.bus.client.publish(stream.subject_of(event.type), body)
            lags.append(await self.invoker.began_s.get() - began_s)
            await asyncio.sleep(0.005)
        await dispatcher.close()
        return statistics.median(lags) * 1000


@contextlib.asynccontextmanager
async def _started() -> AsyncIterator[Parts]:
    """All parts of a worker, on servers of their own."""
    folder = new_folder()
    settings = Settings(
        port=free_port(), state_dir=folder / "state", run_dir=folder / "run", functions_dir=folder / "functions"
    )
    home = places(settings)
    home.make()
    supervisor = Supervisor(home.mark, lambda said: print(said, file=sys.stderr))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            secrets = credentials(home.state, settings)
            settings = replace(settings, admin_key=secrets.admin_key, master_key=secrets.master_key)
            settings = await start_servers(settings, home, secrets, supervisor)
            await bootstrap.prepare(
                control_url=settings.database_url,
                tenants_url=settings.tenant_database_url,
                credentials=secrets,
                kept={},
                url="http://localhost",
            )
        async with AsyncExitStack() as stack:
            yield await parts.start(settings, stack, "worker")
    finally:
        await supervisor.stop()
        shutil.rmtree(folder)
