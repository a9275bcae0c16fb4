"""The consumer of all events that every worker shares, and messages from it as they are asked for.

    ask(n) ──▶ one request to JetStream ──▶ up to n messages, each at once when it is there
                                       └──▶ a status when it has run out, with how many are missing

Made by whoever starts first, and again when it or its stream is lost: then every event that the stream still has comes
again, which the ledger knows.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Final

import orjson
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import BadRequestError

from server.events import stream
from server.events.bus import EventBus

DURABLE: Final = "dispatch"
ACK_WAIT_S: Final = 15.0
"""A message is acknowledged once it is in the ledger, mostly within some milliseconds. What a worker had in hand that
died comes again after so long, and until then deliveries with order keys wait."""

MAX_ACK_PENDING: Final = 10_000
"""Of all workers together: each has some hundred in hand."""

EXPIRES_S: Final = 5.0
"""Of a request; one that NATS forgot is made again a second later."""

MAX_BYTES: Final = 8 * 1024 * 1024
"""Of what comes for one request. A message that is larger would never come: events are far smaller."""

_CONFIG: Final = ConsumerConfig(
    durable_name=DURABLE,
    deliver_policy=DeliverPolicy.ALL,
    ack_policy=AckPolicy.EXPLICIT,
    ack_wait=ACK_WAIT_S,
    max_deliver=-1,
    max_ack_pending=MAX_ACK_PENDING,
)


class ConsumerGone(ConnectionError):
    """The stream or its consumer was removed."""


async def ensure(bus: EventBus) -> None:
    """The consumer exists. Idempotent; ConsumerGone without the stream, one of `stream.AWAY` when NATS is away."""
    try:
        await bus.jetstream.add_consumer(stream.NAME, _CONFIG)
    except BadRequestError:  # it is there, with what a version of ours or an operator set
        await bus.jetstream.consumer_info(stream.NAME, DURABLE)


@dataclass(frozen=True, slots=True)
class Progress:
    """Every event up to `done` is in the ledger. `last` is the end of the stream."""

    done: int = 0
    last: int = 0


async def progress(bus: EventBus) -> Progress:
    """How far all workers together are. One of `stream.AWAY`."""
    info = await bus.jetstream.consumer_info(stream.NAME, DURABLE)
    acknowledged = info.ack_floor.stream_seq if info.ack_floor else 0
    delivered = info.delivered.stream_seq if info.delivered else 0
    if info.num_pending:
        return Progress(acknowledged, (await bus.jetstream.stream_info(stream.NAME)).state.last_seq)
    return Progress(acknowledged if info.num_ack_pending else delivered, delivered)


@dataclass(slots=True, eq=False)
class Message:
    """`sequence` is its place in the stream, `stored_at` when it came there. `waiting` is for its owner to count."""

    subject: str
    body: bytes
    reply: str
    sequence: int
    stored_at: datetime
    waiting: int = 0


class Pull:
    """`async with Pull(bus, woken) as pull`. Not for more than one task."""

    def __init__(self, bus: EventBus, woken: Callable[[], None]) -> None:
        """`woken` is called whenever there is something to take, or nothing more to expect."""
        self._bus = bus
        self._woken = woken
        self._inbox = bus.client.new_inbox()
        self._request = f"$JS.API.CONSUMER.MSG.NEXT.{stream.NAME}.{DURABLE}"
        self._arrived: deque[Message] = deque()
        self._asked = 0
        self._asked_at_s = 0.0
        self._reconnects = bus.client.stats["reconnects"]
        self._gone: str | None = None
        self._subscription: Subscription | None = None

    async def __aenter__(self) -> "Pull":
        # What is asked for is bounded; what NATS sends twice is not to be dropped for its bytes.
        self._subscription = await self._bus.client.subscribe(self._inbox, cb=self._on_message, pending_bytes_limit=-1)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._subscription is not None:
            with suppress(*stream.AWAY):
                await self._subscription.unsubscribe()

    async def ask(self, wanted: int) -> None:
        """Have as many messages on their way, at least half of them. ConsumerGone; one of `stream.AWAY`."""
        now_s = asyncio.get_running_loop().time()
        if self._gone is not None:
            raise ConsumerGone(self._gone)
        if (reconnects := self._bus.client.stats["reconnects"]) != self._reconnects:
            self._reconnects, self._asked = reconnects, 0
        elif self._asked and now_s > self._asked_at_s + EXPIRES_S + 1.0:
            self._asked = 0
        if not self._bus.connected:
            raise ConnectionError("NATS is away")
        missing = wanted - self._asked
        if missing <= 0 or missing < wanted // 2:
            return
        request = {"batch": missing, "max_bytes": MAX_BYTES, "expires": int(EXPIRES_S * 1e9)}
        self._asked += missing
        self._asked_at_s = now_s
        await self._bus.client.publish(self._request, orjson.dumps(request), reply=self._inbox)

    @property
    def arrived(self) -> bool:
        return bool(self._arrived)

    def take(self) -> list[Message]:
        """All that has arrived."""
        taken = [*self._arrived]
        self._arrived.clear()
        return taken

    async def ack(self, message: Message) -> None:
        """Never to come again. One of `stream.AWAY`."""
        await self._bus.client.publish(message.reply)

    async def nak(self, message: Message) -> None:
        """To come again at once, to whoever asks. One of `stream.AWAY`."""
        await self._bus.client.publish(message.reply, b"-NAK")

    async def _on_message(self, message: Msg) -> None:
        if message.reply.startswith("$JS.ACK."):
            self._asked = max(0, self._asked - 1)
            self._arrived.append(_message(message))
        else:
            self._status(message)
        self._woken()

    def _status(self, message: Msg) -> None:
        headers = message.headers or {}
        status, text = headers.get("Status", ""), headers.get("Description", "")
        if status == "503" or (status == "409" and "Deleted" in text):
            self._gone = text or "there is no such consumer"
        if status != "100":
            self._asked = max(0, self._asked - int(headers.get("Nats-Pending-Messages", self._asked)))


def _message(message: Msg) -> Message:
    # $JS.ACK.stream.consumer.deliveries.sequence.…, or with domain and account before the stream
    tokens = message.reply.split(".")
    first = 4 if len(tokens) > 9 else 2
    sequence, stored_ns = int(tokens[first + 3]), int(tokens[first + 5])
    return Message(message.subject, message.data, message.reply, sequence, datetime.fromtimestamp(stored_ns / 1e9, UTC))
