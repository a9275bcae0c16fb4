"""Records of this process on their way out: added at once, sent a few times a second.

    add ──▶ buffer (bounded) ──every 100 ms──▶ messages under the server's limit ──▶ JetStream, until it has them

While NATS is away the buffer holds; when that is full, the oldest are dropped and counted.
"""

import asyncio
import contextlib
import uuid
from collections import deque
from dataclasses import dataclass
from typing import Final, Protocol

from nats.errors import MaxPayloadError

from server.events.bus import EventBus
from server.log import logger
from server.runs import stream
from server.runs.record import RunRecord, batch, encode
from server.tasks import end_task

log = logger("runs")

FLUSH_S: Final = 0.1
FLUSH_BYTES: Final = 512 * 1024
"""A buffer as large as this is sent at once."""

BUFFER_BYTES: Final = 64 * 1024 * 1024
"""About 100,000 records without console output: at 3,000 a second, half a minute without NATS."""

MESSAGE_BYTES: Final = 1024 * 1024
"""Of a message at most, if the server takes that much; NATS takes 1 MiB unless told otherwise."""

HEADERS_BYTES: Final = 512
PUBLISH_S: Final = 2.0
BACKOFF_S: Final = (0.1, 0.2, 0.4, 0.8)
CLOSE_S: Final = 5.0


class Sink(Protocol):
    """Where records go."""

    def add(self, record: RunRecord) -> None:
        """Take a record: a few µs, never an exception."""
        ...


@dataclass(frozen=True, slots=True)
class _Message:
    id: str  # by which JetStream knows one that it has already
    data: bytes
    records: int
    records_bytes: int


class Recorder:
    """A Sink. `add` may be called before `start`."""

    def __init__(self, bus: EventBus, *, buffer_bytes: int = BUFFER_BYTES, flush_s: float = FLUSH_S) -> None:
        self._bus = bus
        self._buffer_bytes = buffer_bytes
        self._flush_s = flush_s
        self._records: deque[bytes] = deque()
        self._bytes = 0
        self._sending: _Message | None = None
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0
        """Records lost to a full buffer, or to the end of the process while NATS was away."""

    def __repr__(self) -> str:
        return f"<Recorder {len(self._records)} waiting, {self._bytes} bytes, {self.dropped} dropped>"

    async def start(self) -> None:
        """Sending; NATS may still be away."""
        self._task = asyncio.create_task(self._send_for_ever(), name="run records")

    def add(self, record: RunRecord) -> None:
        try:
            encoded = encode(record)
        except Exception:
            self.dropped += 1
            log.exception("runs.encode", "The record of a run cannot be written", run_id=record.run.id)
            return
        self._records.append(encoded)
        self._bytes += len(encoded)
        while self._bytes > self._buffer_bytes and self._records:
            self._bytes -= len(self._records.popleft())
            self.dropped += 1
        if self._bytes >= FLUSH_BYTES:
            self._due.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._flush_s, self._due.set)

    async def flush(self) -> None:
        """Send what there is. One of `stream.AWAY` when NATS does not take it; then it is still here."""
        while (message := self._sending or self._take()) is not None:
            self._sending = message
            await self._publish(message)
            self._sending = None
            self._bytes -= message.records_bytes

    async def close(self) -> None:
        """Send what there is, for at most CLOSE_S."""
        if self._task is not None:
            await end_task(self._task)
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._flush_until_sent()
        except TimeoutError:
            lost = len(self._records) + (self._sending.records if self._sending else 0)
            self.dropped += lost
            log.warning("runs.lost", f"NATS is away: {lost} records of runs are lost with this process", lost=lost)
        if self._timer is not None:
            self._timer.cancel()

    def _take(self) -> _Message | None:
        """The oldest records, as many as fit into a message. They count as buffered until it is sent."""
        records = take(self._records, min(MESSAGE_BYTES, self._bus.client.max_payload) - HEADERS_BYTES)
        if not records:
            return None
        return _Message(uuid.uuid4().hex, batch(records), len(records), sum(map(len, records)))

    async def _publish(self, message: _Message) -> None:
        if not self._bus.connected:  # what is published now would only be sent twice
            raise ConnectionError("NATS is away")
        headers = {"Nats-Msg-Id": message.id}
        try:
            await self._bus.jetstream.publish(stream.SUBJECT, message.data, timeout=PUBLISH_S, headers=headers)
        except MaxPayloadError:
            self.dropped += message.records
            log.error("runs.too_large", f"The NATS server takes no message of {len(message.data)} bytes")

    async def _flush_until_sent(self) -> None:
        attempt = 0
        while True:
            try:
                return await self.flush()
            except stream.AWAY as why:
                log.warning("runs.unsent", f"Records of runs wait for NATS: {why!r}", waiting_bytes=self._bytes)
                with contextlib.suppress(*stream.AWAY):
                    await stream.ensure(self._bus)
            await asyncio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])
            attempt += 1

    async def _send_for_ever(self) -> None:
        told = 0
        while True:
            await self._due.wait()
            self._due.clear()
            self._timer = None
            await self._flush_until_sent()
            if self.dropped > told:
                lost, told = self.dropped - told, self.dropped
                log.warning("runs.dropped", f"{lost} records of runs were dropped: the buffer was full", lost=lost)


def take(records: deque[bytes], limit: int) -> list[bytes]:
    """Remove the first ones, as many as make a batch of at most `limit` bytes; at least one if there is one."""
    taken: list[bytes] = []
    left = limit - 2
    while records and (not taken or len(records[0]) < left):
        left -= len(records[0]) + 1
        taken.append(records.popleft())
    return taken
