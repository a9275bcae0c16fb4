"""Runs steps, in any number of processes. A step that ended well never runs again; one whose worker died does.

    pull as many tickets as can start ─▶ claim under leases ─▶ acknowledge ─▶ run the node ─▶ how it ended and what
    follows, in one transaction ─▶ publish what may start next

Twice a second every worker looks for what is due: delays and retries that are over, leases of the dead, tickets that
were never published or lost.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from server.clock import Clock, SystemClock
from server.errors import AtlasError, Unavailable
from server.events.bus import EventBus
from server.log import logger
from server.postgres.control import Pool, transaction
from server.postgres.presence import Presence
from server.tasks import end_task
from server.telemetry.metrics import Metrics
from server.workflows import queue, stream
from server.workflows.claims import Claims
from server.workflows.nodes.step import NodeType
from server.workflows.running import Stepping

log = logger("workflows")

CONCURRENCY: Final = 128
"""Steps at a time in one process. Most wait for somebody else; sandboxes and requests have bounds of their own."""

FETCH_S: Final = 1.0
"""After which a request is made anew; one made just before NATS went away is never answered."""

MORE_S: Final = 0.001
"""How long to wait for more tickets after the first: each step waits so long when there are none. What comes later is
there at the next request."""

SWEEP_S: Final = 0.5
BACKOFF_S: Final = (0.1, 0.5, 1.0, 2.0)
DRAIN_S: Final = 5.0
NAK_S: Final = 1.0


class StepWorker:
    def __init__(
        self,
        pool: Pool,
        bus: EventBus,
        types: Mapping[str, NodeType],
        *,
        metrics: Metrics | None = None,
        concurrency: int = CONCURRENCY,
        clock: Clock | None = None,
    ) -> None:
        self._pool = pool
        self._bus = bus
        self._metrics = metrics or Metrics()
        self._concurrency = concurrency
        self._claims = Claims(pool)
        clock = clock or SystemClock()
        self._stepping = Stepping(pool, bus, types, self._claims, self._metrics, clock)
        self._presence = Presence(clock, queue.LEASE_S)
        self._tasks: list[asyncio.Task[None]] = []
        self._cancellations: Subscription | None = None

    def __repr__(self) -> str:
        return f"<StepWorker {len(self._claims)} of {self._concurrency} running>"

    async def start(self) -> None:
        await self._claims.start()
        self._cancellations = await self._bus.client.subscribe(stream.CANCELLED, cb=self._cancelled)
        self._tasks = [
            asyncio.create_task(self._pull_for_ever(), name="workflow steps"),
            asyncio.create_task(self._sweep_for_ever(), name="workflow sweep"),
        ]

    async def close(self, drain_s: float = DRAIN_S) -> None:
        """Claim no more; let steps end for that long, then end them and give them back."""
        await end_task(*self._tasks)
        await self._claims.close(drain_s, DRAIN_S)
        if self._cancellations is not None:
            with suppress(*stream.AWAY):
                await self._cancellations.unsubscribe()

    async def sweep(self) -> None:
        """Everything that is due, now."""
        more = True
        while more:
            async with transaction(self._pool) as conn:
                tickets, more = await queue.sweep(conn, may_bury=lambda: self._presence.is_steady)
            self._presence.seen()
            await stream.send(self._bus, tickets)

    async def _pull_for_ever(self) -> None:
        attempt = 0
        while True:
            try:
                await stream.ensure(self._bus)
                subscription = await self._bus.jetstream.pull_subscribe_bind(stream.DURABLE, stream.NAME)
                try:
                    while True:
                        await self._pull(subscription)
                        attempt = 0
                finally:
                    with suppress(*stream.AWAY):
                        await subscription.unsubscribe()
            except (*stream.AWAY, Unavailable) as why:
                log.warning("workflows.unpulled", f"Steps wait in the stream: {why!r}")
            except Exception:
                log.exception("workflows.fault", "Steps could not be taken from the stream; trying again")
            await asyncio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])
            attempt += 1

    async def _pull(self, subscription: JetStreamContext.PullSubscription) -> None:
        self._claims.changed.clear()
        if (free := self._concurrency - len(self._claims)) <= 0:
            await self._claims.changed.wait()
            return
        messages: list[Msg] = []
        with suppress(TimeoutError):
            messages += await subscription.fetch(1, FETCH_S)
            if free > 1:
                messages += await subscription.fetch(free - 1, MORE_S)
        if not messages:
            return
        tickets = [ticket for message in messages if (ticket := stream.decode(message.data)) is not None]
        try:
            async with transaction(self._pool) as conn:
                claimed = await queue.claim(conn, tickets)
        except BaseException:
            for message in messages:
                with suppress(*stream.AWAY):
                    await message.nak(delay=NAK_S)
            raise
        for item in claimed:
            self._claims.hold(item, self._stepping.run(item))
        self._metrics.workflow_running().set(len(self._claims))
        for message in messages:
            await message.ack()

    async def _cancelled(self, message: Msg) -> None:
        self._claims.end_run(message.data.decode(errors="replace"))

    async def _sweep_for_ever(self) -> None:
        while True:
            try:
                await self.sweep()
            except AtlasError as why:
                log.warning("workflows.unswept", f"Steps that are due wait: {why}")
            except Exception:
                log.exception("workflows.fault", "Steps that are due wait")
            await asyncio.sleep(SWEEP_S)
