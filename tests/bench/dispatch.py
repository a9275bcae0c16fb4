"""Events through one worker: from the stream through match, ledger and function to the written outcome.

The worker is this process, with real Postgres, NATS and QuickJS beside it on the same machine; events lie in the stream
before the clock starts. The bare loop fetches, decodes and acknowledges, and does nothing else.
"""

import asyncio
import contextlib
import statistics
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

import orjson
from nats.js.errors import NotFoundError

from server.dispatch import consumer
from server.events import stream
from server.events.envelope import Event, encode
from server.events.json_text import read
from server.parts import Parts
from server.postgres.control import transaction
from tests.bench import worker
from tests.bench.rows import Row
from tests.bench.worker import Worker
from tests.fix_runs import eventually

TITLE: Final = "Events, in one worker process"
EVENTS: Final = 12_000
UNMATCHED: Final = 20_000
LATE: Final = 300


async def measure() -> list[Row]:
    """About 30 s."""
    async with worker.running() as made:
        site = _Site(made, made.started)
        await made.bind("order.paid", await made.deploy("bench"), '[{"field": "amount", "op": "gt", "value": 10}]')
        await made.triggers.start()
        bare = await site.bare(UNMATCHED)
        unmatched = await site.through("nobody.asked", UNMATCHED)
        per_s = await site.through("order.paid", EVENTS)
        p50_ms = await site.lag_ms(LATE)
    return [
        Row("match, ledger, QuickJS function, outcome", per_s, "events/s", ">= 3000"),
        Row("match nothing", unmatched, "events/s", f">= {bare / 2:.0f}", baseline=bare),
        Row("publish to function start, p50", p50_ms, "ms", "< 10"),
    ]


@dataclass
class _Site:
    worker: Worker
    started: Parts

    def event(self, event_type: str, number: int) -> Event:
        data = {"id": number, "amount": 120.5, "status": "paid", "note": "x" * 60}
        return Event(
            id=str(uuid4()),
            type=event_type,
            project_id=self.worker.project.id,
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
        dispatcher = self.worker.dispatcher(timed=False)
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
        dispatcher = self.worker.dispatcher()
        await dispatcher.start()
        lags: list[float] = []
        asked_s: asyncio.Queue[float] = asyncio.Queue()
        self.worker.invoker.asked_s = asked_s
        for number in range(count):
            event = self.event("order.paid", number)
            body = encode(event)
            began_s = time.monotonic()
            await self.started.bus.client.publish(stream.subject_of(event.type), body)
            lags.append(await asked_s.get() - began_s)
            await asyncio.sleep(0.005)
        await dispatcher.close()
        return statistics.median(lags) * 1000
