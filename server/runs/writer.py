"""Records from the stream into Postgres, in a worker. Any number of workers share one durable consumer.

    fetch ──▶ decode ──▶ one INSERT for all ──COMMIT──▶ ack

A worker that dies between commit and ack leaves messages that come again and change nothing. What cannot be read is
terminated and what Postgres refuses is left out, both with a log line; while Postgres is away everything waits.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import psycopg
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from server.errors import Unavailable
from server.events.bus import EventBus
from server.log import logger
from server.postgres.control import Pool, transaction
from server.runs import rows, stream
from server.runs.record import RunRecord, decode_batch
from server.tasks import end_task

log = logger("runs")

FETCH_S: Final = 1.0
"""After which a request is made anew; one made just before NATS went away is never answered."""

MESSAGES: Final = 16
"""Fetched at once: some thousands of records."""

MORE_S: Final = 0.05
"""How long to wait for more of them after the first; this and a recorder's flush are most of a record's latency."""

BACKOFF_S: Final = (0.1, 0.5, 1.0, 2.0)


class Writer:
    def __init__(self, bus: EventBus, pool: Pool) -> None:
        self._bus = bus
        self._pool = pool
        self._in_hand: list[Msg] = []
        self._task: asyncio.Task[None] | None = None
        self.written = 0
        """Records that are in Postgres through this writer."""

    async def start(self) -> None:
        self._task = asyncio.create_task(self._write_for_ever(), name="runs writer")

    async def close(self) -> None:
        """Stop; what was fetched and not written comes again, to another worker."""
        if self._task is not None:
            await end_task(self._task)

    async def _write_for_ever(self) -> None:
        attempt = 0
        while True:
            try:
                await stream.ensure(self._bus)
                async with _subscribed(self._bus) as subscription:
                    while True:
                        await self._fetch(subscription)
                        await self._write()
                        attempt = 0
            except (*stream.AWAY, Unavailable) as why:
                log.warning("runs.unwritten", f"Records of runs wait in the stream: {why!r}")
            except Exception:
                log.exception("runs.fault", "Records of runs could not be written; trying again")
            finally:
                await self._give_back()
            await asyncio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])
            attempt += 1

    async def _fetch(self, subscription: JetStreamContext.PullSubscription) -> None:
        """Take in hand whatever there is, as soon as there is something; nothing after FETCH_S."""
        with suppress(TimeoutError):
            self._in_hand += await subscription.fetch(1, FETCH_S)
            self._in_hand += await subscription.fetch(MESSAGES - 1, MORE_S)

    async def _write(self) -> None:
        records: list[RunRecord] = []
        for message in self._in_hand[:]:
            try:
                records += decode_batch(message.data)
            except ValueError as why:
                log.error("runs.unreadable", f"A message of the runs stream is thrown away: {why}")
                await message.term()
                self._in_hand.remove(message)
        await self._insert(records)
        self.written += len(records)
        while self._in_hand:
            await self._in_hand[-1].ack()
            self._in_hand.pop()

    async def _give_back(self) -> None:
        """Let what is in hand come again soon, to whoever asks."""
        messages, self._in_hand = self._in_hand, []
        for message in messages:
            with suppress(*stream.AWAY):
                await message.nak()

    async def _insert(self, records: Sequence[RunRecord]) -> None:
        """All in one transaction, or Unavailable; when Postgres refuses one of them, halves of halves find which."""
        if not records:
            return
        try:
            async with transaction(self._pool) as conn:
                await rows.finish(conn, records)
        except (psycopg.DataError, psycopg.IntegrityError) as why:
            if len(records) == 1:
                log.error("runs.refused", f"Postgres refuses the record of a run: {why}", run_id=records[0].run.id)
                return
            middle = len(records) // 2
            await self._insert(records[:middle])
            await self._insert(records[middle:])


@asynccontextmanager
async def _subscribed(bus: EventBus) -> AsyncIterator[JetStreamContext.PullSubscription]:
    subscription = await bus.jetstream.pull_subscribe_bind(stream.DURABLE, stream.NAME)
    try:
        yield subscription
    finally:
        with suppress(*stream.AWAY):
            await subscription.unsubscribe()
