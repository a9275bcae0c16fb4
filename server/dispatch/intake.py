"""From the stream into the ledger: what an event fires is written there, and what there is room for starts at once.

    ask for as many as there is room for ──▶ read ──▶ match ──▶ one transaction for all in hand ──▶ ack ──▶ start
                                              │          └ nothing: ack
                                              └ no event: parked, ack

From the commit on the ledger owns the event, so that a slow function holds up neither the stream nor what other
triggers do. A pair that finds no slot waits in hand, longer where runs are quick: those go by without being queued,
slow ones are left to the ledger and the Starter. Nothing is acknowledged before all its pairs are in the ledger; one
that is there already is left alone, whoever meets it again.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Final

from server.clock import Clock, SystemClock
from server.dispatch import consumer, ledger, parked
from server.dispatch.consumer import Message, Pull
from server.dispatch.identity import delivery_id
from server.dispatch.lease import Lease
from server.dispatch.ledger import Body, Pair, body_of
from server.dispatch.order import order_key, order_path
from server.dispatch.planning import PAIRS, Fired, choose
from server.dispatch.room import LEAST_PATIENCE_S, Room
from server.dispatch.runs import Attempt, Runs
from server.dispatch.starter import Starter, Triggers
from server.errors import AtlasError, InvalidArgument
from server.events import stream
from server.events.bus import EventBus
from server.events.envelope import Event
from server.log import logger
from server.postgres.control import Kept, Pool, transaction
from server.settings import Settings
from server.tasks import end_task
from server.telemetry.metrics import Metrics
from server.triggers.firing import seen_by
from server.triggers.view import envelope_of

log = logger("dispatch")

IN_HAND: Final = 256
"""Messages at most."""

IN_HAND_BYTES: Final = 32 * 1024 * 1024
"""Of messages; above, no more are read, and none asked for."""

PAIRS_IN_HAND: Final = 4 * PAIRS
"""Above, no more messages are read: one of them may fire as many triggers as its project has."""

PAIRS_AT_ONCE: Final = 1_000
"""Made of one message before others on the event loop have their turn."""

TURN_S: Final = 0.005
"""How long messages are read before others on the event loop have their turn."""

GATHER_S: Final = 0.003
"""While pairs wait for slots, these are let come free for so long, so that one transaction serves some of them."""

IDLE_S: Final = 1.0
BACKOFF_S: Final = (0.1, 0.25, 0.5, 1.0)


class Intake:
    def __init__(
        self,
        bus: EventBus,
        settings: Settings,
        pool: Pool,
        triggers: Triggers,
        lease: Lease,
        room: Room,
        runs: Runs,
        starter: Starter,
        *,
        metrics: Metrics | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._bus = bus
        self._settings = settings
        self._pool = pool
        self._kept = Kept(pool)
        self._triggers = triggers
        self._lease = lease
        self._room = room
        self._runs = runs
        self._starter = starter
        self._metrics = metrics or Metrics()
        self._clock = clock or SystemClock()
        self._unread: list[Message] = []
        self._fired: list[Fired] = []
        self._strange: list[tuple[Message, str]] = []
        self._done: list[Message] = []
        self._failures = 0  # since something last went on
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        runs.when_freed(self._wake.set)

    def __repr__(self) -> str:
        return f"<Intake {len(self._unread)} unread, {len(self._fired)} pairs in hand>"

    async def start(self) -> None:
        self._task = asyncio.create_task(self._work_for_ever(), name="events")

    async def close(self) -> None:
        """Take no more; what is in hand and not in the ledger comes again, to whoever asks."""
        if self._task is not None:
            await end_task(self._task)
            await self._kept.close()

    async def _work_for_ever(self) -> None:
        while True:
            try:
                await stream.ensure(self._bus, self._settings)
                await consumer.ensure(self._bus)
                async with Pull(self._bus, self._wake.set) as pull:
                    await self._pull_for_ever(pull)
            except (*stream.AWAY, stream.StreamUnusable) as why:
                await self._wait(why)
            except Exception:
                log.exception("dispatch.fault", "Events wait in the stream")
                await asyncio.sleep(BACKOFF_S[-1])

    async def _pull_for_ever(self, pull: Pull) -> None:
        """Until NATS is away. While the database is, what is in hand stays there."""
        try:
            while True:
                try:
                    await self._turn(pull)
                except AtlasError as why:
                    await self._wait(why)
        finally:
            await self._give_back(pull)

    async def _wait(self, why: Exception) -> None:
        if not self._failures:
            log.warning("dispatch.waiting", f"Events wait in the stream: {why!r}")
        await asyncio.sleep(BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)])
        self._failures += 1

    async def _turn(self, pull: Pull) -> None:
        """Ask, read, match, write, acknowledge and start; or wait for a reason to."""
        self._wake.clear()
        await pull.ask(self._wanted())
        self._unread += pull.take()
        await self._read()
        moved = await self._claim()
        if self._strange:
            await self._park()
        for message in self._done:
            await pull.ack(message)
        moved = moved or bool(self._done)
        self._done.clear()
        if moved:
            self._failures = 0
        if moved and self._fired:
            await asyncio.sleep(GATHER_S)
        if not moved:  # what is unread then waits for room in hand
            with suppress(TimeoutError):
                async with asyncio.timeout(LEAST_PATIENCE_S if self._fired else IDLE_S):
                    await self._wake.wait()

    def _wanted(self) -> int:
        """Messages beyond those in hand. None while no slot is free or something is away: then they are better left to
        others."""
        if (
            self._room.free < 1
            or (self._failures and self._unread)
            or self._bytes() + sum(len(message.body) for message in self._unread) > IN_HAND_BYTES
        ):
            return 0
        return max(0, IN_HAND - len(self._fired) - len(self._unread))

    def _bytes(self) -> int:
        """Of the messages whose pairs are in hand."""
        return sum(len(message.body) for message in {each.message for each in self._fired})

    async def _read(self) -> None:
        """What has arrived becomes pairs, or is done, as far as there is room in hand. Unavailable while nobody knows
        the triggers."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        unread, self._unread = self._unread, []
        read, in_hand = 0, self._bytes()
        try:
            for message in unread:
                if len(self._fired) >= PAIRS_IN_HAND or in_hand > IN_HAND_BYTES:
                    break
                try:
                    event = stream.event_of(message.subject, message.body)
                except InvalidArgument as why:
                    self._strange.append((message, why.message))
                else:
                    await self._match(message, event, now_s)
                    in_hand += len(message.body) if message.waiting else 0
                read += 1
                if loop.time() > now_s + TURN_S:
                    await asyncio.sleep(0)
                    now_s = loop.time()
        finally:
            self._unread = unread[read:]

    async def _match(self, message: Message, event: Event, now_s: float) -> None:
        project = await self._triggers.of(event.project_id)
        envelope = envelope_of(event)
        fired = project.match(envelope)
        self._metrics.events("matched" if fired else "unmatched").add()
        message.waiting = len(fired)
        if not fired:
            self._done.append(message)
        for made, armed in enumerate(fired, 1):
            path = order_path(armed.trigger)
            self._fired.append(
                Fired(
                    message,
                    event,
                    armed,
                    project.tier,
                    delivery_id(armed.trigger.id, event.id),
                    None if path is None else order_key(path, seen_by(armed.trigger, envelope) or envelope),
                    now_s,
                )
            )
            if made % PAIRS_AT_ONCE == 0:
                await asyncio.sleep(0)

    async def _claim(self) -> bool:
        """Write what can start, and what need not wait for that; whether there was any."""
        now_s = asyncio.get_running_loop().time()
        chosen, spilled = choose(self._fired, self._room, self._starter.waits, now_s)
        for trigger_id in spilled:
            self._starter.spill(trigger_id)
        if not chosen:
            return False
        pairs = [pair for _, pair in chosen]
        bodies = {each.message.sequence: _body(each) for each, _ in chosen}
        run: set[str] = set()
        try:
            async with self._kept.connection() as conn:
                run = await ledger.insert(conn, self._lease.id, [*bodies.values()], pairs)
        except BaseException:
            for pair in pairs:
                if pair.state == "running":
                    self._room.give_back(pair.trigger_id)
            raise
        self._account(chosen, run)
        return True

    def _account(self, chosen: Sequence[tuple[Fired, Pair]], run: set[str]) -> None:
        """They are in the ledger: start those that run, and count off their messages."""
        written = {id(each) for each, _ in chosen}
        self._fired = [each for each in self._fired if id(each) not in written]
        now = self._clock.now()
        queued = False
        for each, pair in chosen:
            each.message.waiting -= 1
            if not each.message.waiting:
                self._done.append(each.message)
            if pair.id in run:
                run.discard(pair.id)
                self._runs.start(_attempt(each, pair, now))
            elif pair.state == "running":  # it was there already
                self._room.give_back(pair.trigger_id)
            elif pair.state == "queued":
                queued = True
        if queued:
            self._starter.wake()

    async def _park(self) -> None:
        async with transaction(self._pool) as conn:
            await parked.park(conn, self._strange)
        self._metrics.events("parked").add(len(self._strange))
        self._done += [message for message, _ in self._strange]
        self._strange.clear()

    async def _give_back(self, pull: Pull) -> None:
        """What is in hand comes again at once, to whoever asks."""
        messages = {each.sequence: each for each in (*self._unread, *pull.take())}
        messages |= {each.message.sequence: each.message for each in self._fired}
        messages |= {message.sequence: message for message, _ in self._strange}
        done = [*self._done]
        for left in (self._unread, self._fired, self._strange, self._done):
            left.clear()
        with suppress(*stream.AWAY):
            for message in done:
                await pull.ack(message)
            for message in messages.values():
                await pull.nak(message)


def _body(each: Fired) -> Body:
    return body_of(each.event, each.message.body)


def _attempt(each: Fired, pair: Pair, now: datetime) -> Attempt:
    return Attempt(
        delivery_id=pair.id,
        run_id=pair.run_id,
        armed=each.armed,
        tier=each.tier,
        body=each.message.body,
        event=each.event,
        since=now,
        came_at=each.message.stored_at,
    )
