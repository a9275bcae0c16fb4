"""The stream of all events: made by whoever starts first, the same by all.

Nothing acknowledged is lost for want of room: a full stream refuses new events, and `trim` makes room by removing the
oldest that every consumer is done with. Only ATLAS_EVENTS_KEEP_HOURS removes an event that still waits.
"""

import dataclasses
import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import BadRequestError, NotFoundError, ServerError

from server.errors import InvalidArgument
from server.events.bus import EventBus
from server.events.envelope import Event, decode
from server.log import logger
from server.settings import Settings

log = logger("events")

NAME: Final = "ATLAS_EVENTS"
PREFIX: Final = "atlasdb.events."
DUPLICATE_WINDOW_S: Final = 120.0
"""Within it an event that is published again is not stored again; the server remembers its id for that long."""

MAX_MESSAGE_BYTES: Final = 1024 * 1024
TRIM_ABOVE: Final = 0.5
"""Of its size; below, what is done is kept for those who look back."""

KEEP_BELOW: Final = 0.9
"""Of its size; above, what is done is no longer kept for triggers that begin with the past: publishing comes first."""

AWAY: Final = (NatsError, ConnectionError, OSError, TimeoutError)
"""What NATS raises while it is away or too slow."""


Note = Callable[[int, datetime], Awaitable[None]]


class StreamUnusable(Exception):
    """NATS has no room for the stream, or another one of its name or on its subjects; the message says what to do."""


def subject_of(event_type: str) -> str:
    return PREFIX + event_type


def event_of(subject: str, body: bytes) -> Event:
    """The event of a message. InvalidArgument when it is none, or of another type than its subject."""
    event = decode(body)
    if subject != subject_of(event.type):
        raise InvalidArgument("type", f"The event is of type {event.type}, its subject {subject[:300]}")
    return event


def message_id(event: Event) -> str:
    """By which JetStream knows an event that it has: the project's id in it keeps tenants out of each other's way."""
    return f"{event.project_id}:{event.id}"


async def ensure(bus: EventBus, settings: Settings) -> None:
    """The stream exists, with the limits of `settings`. Idempotent.

    StreamUnusable; one of AWAY when NATS does not answer.
    """
    wanted = _config(settings)
    try:
        await bus.jetstream.add_stream(wanted)
        return
    except BadRequestError as why:
        refused = why
    except ServerError as why:
        raise StreamUnusable(
            f"NATS refuses the stream {NAME}: {why.description}. Give it more room, or lower ATLAS_EVENTS_KEEP_MB, "
            f"which is {settings.events_keep_mb}"
        ) from why
    try:
        found = (await bus.jetstream.stream_info(NAME)).config
    except NotFoundError:
        raise StreamUnusable(
            f"NATS refuses the stream {NAME} on {PREFIX}>: {refused.description}. Another stream may have these "
            "subjects; remove it, or use another NATS account"
        ) from refused
    if differing := _differing(found, wanted):
        raise StreamUnusable(
            f"NATS has a stream {NAME} that is not ours: {', '.join(differing)}. Rename or remove it, or use another "
            "NATS account"
        ) from refused
    await bus.jetstream.update_stream(_limited(found, wanted))


async def trim(bus: EventBus, settings: Settings, kept_from: int | None = None, note: Note | None = None) -> int:
    """Remove the oldest events that every durable consumer is done with, until the stream is half full; how many.
    What is stored from `kept_from` on stays, unless the stream is above KEEP_BELOW: then as much of it goes
    as that is, once `note` knows where the stream is going to begin, and when the last before that was stored.

    Without such a consumer, or the stream, nothing is removed. One of AWAY when NATS does not answer.
    """
    try:
        state = (await bus.jetstream.stream_info(NAME)).state
    except NotFoundError:
        return 0
    allowed_bytes = TRIM_ABOVE * settings.events_keep_mb * 1024**2
    if state.bytes <= allowed_bytes:
        return 0
    done = [
        info.ack_floor.stream_seq if info.ack_floor else 0
        for info in await bus.jetstream.consumers_info(NAME)
        if info.config.durable_name and info.config.ack_policy is not AckPolicy.NONE
    ]
    wanted = math.ceil(state.messages * (1 - allowed_bytes / state.bytes))
    if kept_from is not None:
        most_bytes = KEEP_BELOW * settings.events_keep_mb * 1024**2
        urgent = math.ceil(state.messages * (1 - most_bytes / state.bytes))
        wanted = min(wanted, max(kept_from - state.first_seq, urgent))
    removed = min(min(done, default=0) + 1 - state.first_seq, wanted)
    if removed <= 0:
        return 0
    first = state.first_seq + removed
    if note is not None and kept_from is not None and first > kept_from:
        await note(first, await _stored_at(bus, first - 1))
    await bus.jetstream.purge_stream(NAME, seq=first)
    log.info("events.trimmed", f"Removed the {removed} oldest events, which are done", removed=removed)
    return removed


async def _stored_at(bus: EventBus, sequence: int) -> datetime:
    try:
        found = (await bus.jetstream.get_msg(NAME, seq=sequence)).time
    except NotFoundError:
        found = None
    return found or datetime.now(UTC)


def _config(settings: Settings) -> StreamConfig:
    return StreamConfig(
        name=NAME,
        description="Events of every project, as published",
        subjects=[f"{PREFIX}>"],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        max_age=settings.events_keep_hours * 3600.0,
        max_bytes=settings.events_keep_mb * 1024**2,
        max_msg_size=MAX_MESSAGE_BYTES,
        duplicate_window=DUPLICATE_WINDOW_S,
        allow_atomic=True,
    )


def _differing(found: StreamConfig, wanted: StreamConfig) -> list[str]:
    """What cannot be changed without harm, where it is not as we want it."""
    names = ("subjects", "retention", "storage")
    return [
        f"its {name} is {getattr(found, name)} and not {getattr(wanted, name)}"
        for name in names
        if getattr(found, name) != getattr(wanted, name)
    ]


def _limited(found: StreamConfig, wanted: StreamConfig) -> StreamConfig:
    """The stream with our limits and, for the rest (replicas, placement), as its operator set it."""
    names = ("description", "discard", "max_age", "max_bytes", "max_msg_size", "duplicate_window", "allow_atomic")
    return dataclasses.replace(found, **{name: getattr(wanted, name) for name in names})
