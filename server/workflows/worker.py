"""Runs steps, in any number of processes. A step that ended well never runs again; one whose worker died does.

    pull as many tickets as can start ─▶ claim under leases ─▶ acknowledge ─▶ run the node ─▶ how it ended and what
    follows, in one transaction ─▶ publish what may start next

Twice a second every worker looks for what is due: delays and retries that are over, leases of the dead, tickets that
were never published or lost.
"""

import asyncio
import random
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from server.clock import Clock, SystemClock
from server.errors import AtlasError, Unavailable
from server.events.bus import EventBus
from server.log import logger
from server.postgres.control import Pool, transaction
from server.telemetry.metrics import Metrics
from server.workflows import queue, stream, transitions
from server.workflows.attempting import Attempting, Definitions, input_of
from server.workflows.claims import Claims
from server.workflows.definition import Definition, Node
from server.workflows.nodes.step import Attempt, NodeType, StepFailed, Wait
from server.workflows.queue import Claimed
from server.workflows.retrying import died, failure, retry_at
from server.workflows.transitions import LOST, After, Ended

log = logger("workflows")

CONCURRENCY: Final = 64
"""Steps at a time in one process; most of them wait for somebody else."""

FETCH_S: Final = 1.0
"""After which a request is made anew; one made just before NATS went away is never answered."""

MORE_S: Final = 0.005
"""How long to wait for more tickets after the first."""

SWEEP_S: Final = 0.5
BACKOFF_S: Final = (0.1, 0.5, 1.0, 2.0)
DRAIN_S: Final = 6.0
WRITE_ATTEMPTS: Final = 20
"""At a second each, to write how a step ended; then its lease is over and it is run again."""

WRITE_PAUSE_S: Final = 1.0


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
        self._attempting = Attempting(pool, types)
        self._definitions = Definitions(pool)
        self._metrics = metrics or Metrics()
        self._concurrency = concurrency
        self._clock = clock or SystemClock()
        self._claims = Claims(pool)
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
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._claims.close(drain_s, DRAIN_S)
        if self._cancellations is not None:
            with suppress(*stream.AWAY):
                await self._cancellations.unsubscribe()

    async def sweep(self) -> None:
        """Everything that is due, now."""
        more = True
        while more:
            async with transaction(self._pool) as conn:
                tickets, more = await queue.sweep(conn)
            await stream.send(self._bus, tickets)

    # --- pulling and claiming

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
                    await message.nak(delay=WRITE_PAUSE_S)
            raise
        for item in claimed:
            self._claims.hold(item, self._run(item))
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

    # --- one step

    async def _run(self, claimed: Claimed) -> None:
        began_s = self._clock.monotonic_s()
        await stream.tell(self._bus, stream.PROGRESS, claimed.run_id)
        try:
            definition = await self._definitions.of(claimed.workflow_id, claimed.version)
            node = definition.nodes[claimed.node_id]
            ended = await self._attempt(claimed, node)
        except asyncio.CancelledError:
            if not self._claims.is_lost(claimed.lease):
                await _whole(self._give_back(claimed))
            raise
        except Unavailable as why:
            log.warning("workflows.unread", f"A step is given back: {why}", run_id=claimed.run_id)
            await asyncio.sleep(WRITE_PAUSE_S)
            await self._give_back(claimed)
            return
        finally:
            self._metrics.workflow_running().set(len(self._claims) - 1)
        self._metrics.workflow_step_s(node.type).observe(self._clock.monotonic_s() - began_s)
        await _whole(self._write(claimed, definition, ended))

    async def _attempt(self, claimed: Claimed, node: Node) -> "Ended | Wait | _Failed":
        attempt: Attempt | None = None
        began_s = self._clock.monotonic_s()
        try:
            if (why := died(claimed)) is not None:
                raise why
            attempt = await self._attempting.prepare(claimed, node)
            got = await self._attempting.run(attempt)
        except StepFailed as failed:
            took = timedelta(seconds=self._clock.monotonic_s() - began_s)
            return _Failed(failed, failure(failed, attempt), claimed.claimed_at + took)
        if isinstance(got, Wait):
            return got
        return Ended(input=input_of(attempt), output=got.json, branch=got.branch, invocation_id=_invocation(attempt))

    async def _write(self, claimed: Claimed, definition: Definition, ended: "Ended | Wait | _Failed") -> None:
        """How it ended, as soon as the database takes it."""
        for _ in range(WRITE_ATTEMPTS):
            try:
                after, outcome = await self._written(claimed, definition, ended)
            except Unavailable as why:
                log.warning("workflows.unwritten", f"The end of a step waits to be written: {why}")
                await asyncio.sleep(WRITE_PAUSE_S)
            else:
                await self._tell(claimed, definition.nodes[claimed.node_id], after, outcome)
                return
        log.error("workflows.unwritten", "The end of a step was not written; it will run again", run_id=claimed.run_id)

    async def _written(
        self, claimed: Claimed, definition: Definition, ended: "Ended | Wait | _Failed"
    ) -> tuple[After, str]:
        async with transaction(self._pool) as conn:
            if isinstance(ended, Wait):
                return await transitions.wait(conn, claimed, ended.until), "waiting"
            if isinstance(ended, Ended):
                return await transitions.finish(conn, definition, claimed, ended), "succeeded"
            why, refused = ended.why, ended.why.no_room
            node = definition.nodes[claimed.node_id]
            again = retry_at(why, claimed, node.retry, now=ended.at, jitter=random.uniform(0.5, 1.0))  # noqa: S311
            if again is not None:
                after = await transitions.wait(conn, claimed, again, ended.told, refused=refused)
                return after, "refused" if refused else "retried"
            return await transitions.finish(conn, definition, claimed, ended.told), "failed"

    async def _tell(self, claimed: Claimed, node: Node, after: After, outcome: str) -> None:
        self._metrics.workflow_steps(node.type, "lost" if after.lost else outcome).add()
        if after is LOST or after.lost:
            log.info("workflows.lost", "A step ended after its lease did", run_id=claimed.run_id, node_id=node.id)
            return
        await stream.send(self._bus, after.tickets)
        if after.run != "running":
            self._metrics.workflow_runs(after.run).add()
            await stream.tell(self._bus, stream.CANCELLED, claimed.run_id)
        await stream.tell(self._bus, stream.PROGRESS, claimed.run_id)

    async def _give_back(self, claimed: Claimed) -> None:
        tickets: Sequence[stream.Ticket] = ()
        try:
            async with transaction(self._pool) as conn:
                tickets = await queue.give_back(conn, claimed)
        except AtlasError as why:
            log.warning("workflows.unwritten", f"A step is left to its lease: {why}", run_id=claimed.run_id)
        await stream.send(self._bus, tickets)


@dataclass(frozen=True, slots=True)
class _Failed:
    """`at` is by the database's clock, as every time in its rows."""

    why: StepFailed
    told: Ended
    at: datetime


def _invocation(attempt: Attempt) -> str | None:
    return attempt.invocation_id if attempt.node.type == "function" else None


async def _whole(work: Coroutine[object, object, None]) -> None:
    """Do it to its end; a cancellation waits for that."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
