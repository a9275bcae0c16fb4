"""Events on their way in: acknowledged to the caller once JetStream has stored them, and not before.

While NATS is away a call waits and tries again with the same message ids, so that nothing is stored twice.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nats.js.errors import APIError, NoStreamResponseError

from server.errors import InvalidArgument, Unavailable
from server.events import acks, batches, stream
from server.events.acks import Ack, Message
from server.events.batches import Entry, Refused
from server.events.bus import EventBus
from server.events.envelope import MAX_EVENT_BYTES, Event, encode
from server.log import logger
from server.settings import Settings

log = logger("events")

PATIENCE_S: Final = 10.0
"""How long a call waits for NATS in all."""

TRY_S: Final = 2.0
"""How long it waits for one answer of NATS."""

PAUSE_S: Final = 0.1
WAITING_BYTES: Final = 32 * 1024 * 1024
"""Of the calls of one process that wait for NATS; above, new ones are refused at once."""

HEADERS_BYTES: Final = 400
_FULL: Final = (10077, 10047, 10023)  # maximum bytes exceeded; no resources left: of the account, of the server


@dataclass(frozen=True, slots=True)
class Published:
    """`sequence` is its place in the stream. `duplicate`: an event of this id was there already, and it stayed as it
    was; also said when NATS stored the event and went away before it could say so."""

    id: str
    sequence: int
    duplicate: bool


class Publisher:
    def __init__(
        self, bus: EventBus, settings: Settings, *, patience_s: float = PATIENCE_S, try_s: float = TRY_S
    ) -> None:
        self._bus = bus
        self._settings = settings
        self._patience_s = patience_s
        self._try_s = try_s
        self._waiting_bytes = 0

    async def start(self) -> None:
        """The stream exists; while NATS is away, it is made by the first call instead. `stream.StreamUnusable`."""
        try:
            async with asyncio.timeout(self._try_s):
                await stream.ensure(self._bus, self._settings)
        except stream.AWAY as why:
            log.warning("events.no_stream", f"The stream {stream.NAME} cannot be made yet: {why!r}")

    async def publish(self, events: Sequence[Event]) -> list[Published]:
        """Store all of them, in their order as long as NATS is there; one answer each.

        InvalidArgument when one is too large for the server: then none is stored. Unavailable when not all of them
        were stored in time: some may be, and publishing all of them again stores none twice. So it is when cancelled.
        """
        messages = [self._message(event) for event in events]
        size = sum(len(message.body) for message in messages)
        if self._waiting_bytes + size > WAITING_BYTES:
            raise _away()
        self._waiting_bytes += size
        try:
            answers = await self._store(messages)
        finally:
            self._waiting_bytes -= size
        return [Published(event.id, ack.sequence, ack.duplicate) for event, ack in zip(events, answers, strict=True)]

    async def publish_whole(self, events: Sequence[Event]) -> bool:
        """Store all of them, one right after the other, at one try. False: they are not, or nobody knows, or one of
        them is there already or too large; one by one they can be stored nevertheless."""
        try:
            messages = [self._message(event) for event in events]
        except InvalidArgument:
            return False
        if not self._bus.connected:
            return False
        entries = [Entry(each.subject, each.body, acks.headers(stream.NAME, each)) for each in messages]
        try:
            await batches.store(self._bus.client, entries, self._try_s)
        except (Refused, *stream.AWAY):
            return False
        return True

    async def publish_in_order(self, events: Sequence[Event]) -> None:
        """Store all of them, none before one that comes before it: as a whole, or one after the other. Raises as
        `publish`; the first of them may be stored then, and the others are not."""
        if len(events) > batches.FEW and await self.publish_whole(events):
            return
        for event in events:
            await self.publish([event])

    def require_size(self, event: Event) -> None:
        """InvalidArgument when it is too large for the server."""
        self._message(event)

    def _message(self, event: Event) -> Message:
        body = encode(event)
        allowed = min(MAX_EVENT_BYTES, self._bus.client.max_payload - HEADERS_BYTES)
        if len(body) > allowed:
            raise InvalidArgument(
                None,
                f"The event {event.id} has {len(body)} bytes in the stream; at most {allowed} are allowed",
                reason="EVENT_TOO_LARGE",
                used=str(len(body)),
                allowed=str(allowed),
            )
        return Message(stream.subject_of(event.type), stream.message_id(event), body)

    async def _store(self, messages: Sequence[Message]) -> list[Ack]:
        stored: dict[int, Ack] = {}
        deadline_s = asyncio.get_running_loop().time() + self._patience_s
        while missing := [number for number in range(len(messages)) if number not in stored]:
            left_s = deadline_s - asyncio.get_running_loop().time()
            if left_s <= 0:
                raise _away()
            if self._bus.connected:  # what is published while it is not would only be sent twice
                stored |= await self._try(messages, missing, min(self._try_s, left_s))
            if len(stored) < len(messages):
                await asyncio.sleep(min(PAUSE_S, left_s))
        return [stored[number] for number in range(len(messages))]

    async def _try(self, messages: Sequence[Message], numbers: Sequence[int], timeout_s: float) -> dict[int, Ack]:
        """All at once, each with an acknowledgement of its own; those that were acknowledged."""
        trying = [messages[number] for number in numbers]
        answers = await acks.publish(self._bus.client, stream.NAME, trying, timeout_s)
        failures = [answer for answer in answers if isinstance(answer, Exception)]
        if any(isinstance(why, NoStreamResponseError) for why in failures):
            log.warning("events.no_stream", f"There is no stream {stream.NAME}; it is made now")
            await self.start()
        for why in failures:
            if isinstance(why, APIError) and why.err_code in _FULL:
                raise _full() from why
            if not isinstance(why, stream.AWAY):
                raise why
        return {number: got for number, got in zip(numbers, answers, strict=True) if isinstance(got, Ack)}


def _away() -> Unavailable:
    return Unavailable(
        "Events cannot be stored now; publish them again with the same ids",
        reason="EVENT_BUS_UNAVAILABLE",
        retry_after_ms=1_000,
    )


def _full() -> Unavailable:
    return Unavailable(
        "The stream is full of events that are not run yet; publish these again with the same ids",
        reason="EVENT_STREAM_FULL",
        retry_after_ms=5_000,
    )
