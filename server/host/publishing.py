"""`atlas.events.publish`: custom events of the project, with the run as their cause.

At once: acknowledged by JetStream before the call is answered. Within a transaction: written into the outbox of the
tenants database with the run's other changes, and published by a worker after the commit, never without it.
"""

from dataclasses import replace
from typing import Final

import orjson

from engines.contract import HostError
from server.errors import InvalidArgument, Unavailable
from server.events import run_outbox
from server.events.bus import EventBus
from server.events.drafts import Draft, Drafts, events_of
from server.events.envelope import Event, encode
from server.events.json_text import JsonError, read
from server.events.publisher import Publisher
from server.host.origin import Origin

MAX_EVENTS: Final = 100
"""Of one run, published or refused, in transactions or not."""

SOURCE: Final = "function"


class Publishing:
    """Of one process."""

    def __init__(self, publisher: Publisher, bus: EventBus) -> None:
        self._publisher = publisher
        self._bus = bus

    async def publish(self, name: str, event: Event) -> bytes:
        """`{"id", "duplicate"}` as JSON text, once it is stored. HostError: unavailable, invalid_argument."""
        try:
            (stored,) = await self._publisher.publish([event])
        except InvalidArgument as why:
            raise HostError("invalid_argument", f"{name}: {why.message}") from None
        except Unavailable as why:
            raise HostError("unavailable", f"{name}: {why.message}") from None
        return orjson.dumps({"id": stored.id, "duplicate": stored.duplicate})

    def encoded(self, name: str, event: Event) -> str:
        """For the outbox. HostError when NATS would not take it."""
        try:
            self._publisher.require_size(event)
        except InvalidArgument as why:
            raise HostError("invalid_argument", f"{name}: {why.message}") from None
        return encode(event).decode()

    async def wake(self) -> None:
        """The outbox has something new; whoever relays would find out by itself a second later."""
        await run_outbox.wake(self._bus)


class Counted:
    """What one run publishes."""

    def __init__(self, project_id: str, origin: Origin | None) -> None:
        self._project_id = project_id
        self._origin = origin
        self._count = 0

    def event(self, name: str, event_type: str, data: bytes, event_id: str, subject: str) -> Event:
        """HostError: events_limit past MAX_EVENTS, invalid_argument names what is wrong."""
        self._count += 1
        if self._count > MAX_EVENTS:
            raise HostError("events_limit", f"{name}: event {self._count} of {MAX_EVENTS} allowed for this run")
        try:
            draft = Draft(type=event_type, data=read(data), id=event_id, subject=subject, source=SOURCE)
            (event,) = events_of(self._project_id, Drafts([draft], batch=False))
        except JsonError as why:
            raise HostError("invalid_argument", f"{name}: data cannot be that of an event: {why}") from None
        except InvalidArgument as why:
            raise HostError("invalid_argument", f"{name}: {why.message}") from None
        return event if self._origin is None else replace(event, cause=self._origin.cause)
