"""Events that are in the stream already, read from a time or a place on, in their order, a few at a time.

A consumer of its own that NATS forgets when nobody reads: it acknowledges nothing and moves nothing of others.
"""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Final

from nats.errors import TimeoutError as NoAnswer
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from server.events import stream
from server.events.bus import EventBus

FORGOTTEN_S: Final = 60.0
AT_ONCE: Final = 32
"""Messages of one request: at most 32 MiB."""

WAIT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Past:
    """A message; `sequence` is its place in the stream, `stored_at` when it came there."""

    sequence: int
    stored_at: datetime
    subject: str
    body: bytes


class History:
    """`async with History(bus, pattern, since=…) as history`. One of `stream.AWAY` when NATS is, in all it does."""

    def __init__(
        self, bus: EventBus, pattern: str, *, since: datetime | None = None, sequence: int | None = None
    ) -> None:
        """Of the types that a pattern means. From that time on, or from that place."""
        self._bus = bus
        self._subject = stream.subject_of(pattern)
        self._from = (
            ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_TIME, opt_start_time=since)
            if sequence is None
            else ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=max(1, sequence))
        )
        self._subscription: JetStreamContext.PullSubscription | None = None
        self._left = 0
        self._read = 0  # of what the consumer delivered
        self.first = 0
        """The place in the stream from which on it reads."""

    async def __aenter__(self) -> "History":
        config = self._from.evolve(
            ack_policy=AckPolicy.NONE, inactive_threshold=FORGOTTEN_S, mem_storage=True, num_replicas=1
        )
        self._subscription = await self._bus.jetstream.pull_subscribe(self._subject, stream=stream.NAME, config=config)
        info = await self._subscription.consumer_info()
        self._left = info.num_pending or 0
        self.first = info.delivered.stream_seq + 1 if info.delivered else 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            with suppress(*stream.AWAY):
                name = (await subscription.consumer_info()).name
                await subscription.unsubscribe()
                await self._bus.jetstream.delete_consumer(stream.NAME, name)

    async def some(self) -> list[Past]:
        """The next ones, at most AT_ONCE; none when all that there were are read.

        NATS delivers nothing twice to a consumer that acknowledges nothing: NoAnswer when some did not arrive. Open
        another from the last place on.
        """
        assert self._subscription is not None
        if not self._left:
            return []
        try:
            messages = await self._subscription.fetch(min(AT_ONCE, self._left), timeout=WAIT_S)
        except NoAnswer:  # they were removed meanwhile, or NATS is slow
            info = await self._subscription.consumer_info()
            self._left = info.num_pending or 0
            if self._left or (info.delivered and info.delivered.consumer_seq != self._read):
                raise
            return []
        for message in messages:
            self._read += 1
            if message.metadata.sequence.consumer != self._read:
                raise NoAnswer
        self._left = messages[-1].metadata.num_pending
        return [
            Past(message.metadata.sequence.stream, message.metadata.timestamp, message.subject, message.data)
            for message in messages
        ]
