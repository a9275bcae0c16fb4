"""Events as tenants send them, and the body of a request that publishes some: checked whole before any is published."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

from server.errors import InvalidArgument
from server.events.envelope import MAX_DATA_BYTES, Event, parse_event_id, parse_text, parse_time, text_of
from server.events.json_text import Json, JsonError, Scanner
from server.events.types import parse_publishable
from server.fields import shown

MAX_EVENTS: Final = 100
MAX_REQUEST_BYTES: Final = 2 * 1024 * 1024
SOURCE: Final = "api"

_MEMBERS: Final = ("type", "data", "id", "time", "subject", "source")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a tenant says of an event. Empty is absent; `time` is RFC 3339."""

    type: str
    data: Json
    id: str = ""
    time: str = ""
    subject: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Drafts:
    """`batch`: the request was `{"events": […]}`, not one event."""

    items: Sequence[Draft]
    batch: bool


def parse_body(body: bytes) -> Drafts:
    """The drafts of `{"type", "data", …}` or `{"events": [{"type", …}, …]}`; InvalidArgument names the field."""
    if len(body) > MAX_REQUEST_BYTES:
        raise too_large(len(body))
    try:
        scanner = Scanner(body)
        drafts = _drafts(scanner)
        scanner.end()
    except JsonError as why:
        raise InvalidArgument("body", f"The request body is not a JSON object: {why}") from None
    return drafts


def events_of(project_id: str, drafts: Drafts) -> list[Event]:
    """The events, in their order. InvalidArgument names the field of the first that cannot be one."""
    now = datetime.now(UTC)
    events: list[Event] = []
    places: dict[str, int] = {}
    for number, draft in enumerate(drafts.items):
        inside = f"events[{number}]." if drafts.batch else ""
        event = _event(project_id, draft, inside, now)
        if places.setdefault(event.id, number) != number:
            raise InvalidArgument(f"{inside}id", f"{inside}id is that of events[{places[event.id]}] too")
        events.append(event)
    return events


def require_count(events: int) -> None:
    if not 1 <= events <= MAX_EVENTS:
        raise InvalidArgument(
            "events",
            f"events has {events} events; it must have 1 to {MAX_EVENTS}",
            used=str(events),
            allowed=str(MAX_EVENTS),
        )


def too_large(size_bytes: int) -> InvalidArgument:
    return InvalidArgument(
        "body",
        f"The request has {size_bytes} bytes; at most {MAX_REQUEST_BYTES} are allowed: publish fewer events at once",
        reason="REQUEST_TOO_LARGE",
        used=str(size_bytes),
        allowed=str(MAX_REQUEST_BYTES),
    )


def _drafts(scanner: Scanner) -> Drafts:
    found: dict[str, Json] = {}
    batch: list[Draft] | None = None
    for name in scanner.members():
        if name == "events":
            batch = _batch(scanner)
        else:
            found[name] = scanner.value()
    if batch is None:
        return Drafts([_draft("", found)], batch=False)
    for name in found:
        raise InvalidArgument(name[:40], f"{shown(name)} stands beside events; send one event or a batch")
    require_count(len(batch))
    return Drafts(batch, batch=True)


def _batch(scanner: Scanner) -> list[Draft]:
    if scanner.next != "[":
        raise InvalidArgument("events", "events must be a list of events")
    drafts: list[Draft] = []
    for number in scanner.elements():
        if scanner.next != "{":
            raise InvalidArgument(f"events[{number}]", f"events[{number}] must be an object")
        drafts.append(_draft(f"events[{number}].", {name: scanner.value() for name in scanner.members()}))
    return drafts


def _draft(inside: str, found: dict[str, Json]) -> Draft:
    for name in found:
        if name not in _MEMBERS:
            raise InvalidArgument(
                f"{inside}{name[:40]}", f"{inside}{name[:40]} is unknown; an event has {', '.join(_MEMBERS)}"
            )
    if "data" not in found:
        raise InvalidArgument(f"{inside}data", f"{inside}data is missing; it may be null")
    texts = {name: text_of(found, name, inside=inside) for name in _MEMBERS if name != "data"}
    return Draft(data=found["data"], **texts)


def _event(project_id: str, draft: Draft, inside: str, now: datetime) -> Event:
    size = len(draft.data.text.encode())
    if size > MAX_DATA_BYTES:
        raise InvalidArgument(
            f"{inside}data",
            f"{inside}data has {size} bytes; at most {MAX_DATA_BYTES} are allowed",
            reason="EVENT_TOO_LARGE",
            used=str(size),
            allowed=str(MAX_DATA_BYTES),
        )
    return Event(
        type=parse_publishable(f"{inside}type", draft.type),
        data=draft.data,
        id=parse_event_id(f"{inside}id", draft.id) if draft.id else str(uuid4()),
        project_id=project_id,
        time=parse_time(f"{inside}time", draft.time) if draft.time else now,
        source=parse_text(f"{inside}source", draft.source) if draft.source else SOURCE,
        subject=parse_text(f"{inside}subject", draft.subject) if draft.subject else None,
    )
