"""What an event is, and its form in the stream: one JSON object with names as in CloudEvents.

    {"id", "type", "project_id", "time", "source", "subject"?, "cause"?: {"run_id", "trigger_id"?, "depth"},
     "trigger_id"?, "data", "op"?, "schema"?, "table"?, "old"?, "changed"?, "unavailable"?, "lsn"?}

Whoever reaches NATS may publish, so that `decode` believes nothing. It leaves out members it does not know: a newer
version of ours may have written them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from engines.value import value
from server.errors import InvalidArgument
from server.events.json_text import MAX_VALUES, Json, JsonError, Scanner
from server.events.types import family, parse_event_type
from server.fields import parse_choice, parse_id, parse_name, shown, well_formed

MAX_EVENT_BYTES: Final = 1_048_000
"""Of an encoded event; with its headers it fits into the 1 MiB that NATS takes unless told otherwise."""

MAX_DATA_BYTES: Final = 1_000_000
MAX_ID_CHARS: Final = 128
MAX_TEXT_CHARS: Final = 255
"""Of `source` and `subject`."""

MAX_ENVELOPE_VALUES: Final = MAX_VALUES + 1_000
"""Of a whole envelope, as `json_text.MAX_VALUES`: its data alone may have these, and what goes around it less than a
thousand more: commas and brackets in id, source and subject, and between members."""

MAX_CAUSE_DEPTH: Final = 1_000
MAX_COLUMNS: Final = 1_600
"""Of a table in Postgres."""

OPERATIONS: Final = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """The run whose doing the event is. `depth` counts the runs before it, itself included."""

    run_id: str
    trigger_id: str | None = None
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Where the row in `data` comes from. `changed` and `unavailable` name columns; `old` is the row before."""

    op: str
    schema: str
    table: str
    old: Json | None = None
    changed: tuple[str, ...] = ()
    unavailable: tuple[str, ...] = ()
    lsn: str | None = None


@value(kw_only=True)
class Event:
    """`id` is unique in the project. `trigger_id` is in events of the family cron, and there alone; `change` may be in
    those of the family cdc, and there alone."""

    id: str
    type: str
    project_id: str
    time: datetime
    source: str
    data: Json
    subject: str | None = None
    cause: Cause | None = None
    trigger_id: str | None = None
    change: Change | None = None


def encode(event: Event) -> bytes:
    """The body of its message; `data` and `old` as they were written."""
    body: dict[str, Any] = {
        "id": event.id,
        "type": event.type,
        "project_id": event.project_id,
        "time": spelled(event.time),
        "source": event.source,
    }
    if event.subject is not None:
        body["subject"] = event.subject
    if event.cause is not None:
        cause = {"run_id": event.cause.run_id, "trigger_id": event.cause.trigger_id, "depth": event.cause.depth}
        body["cause"] = {name: value for name, value in cause.items() if value is not None}
    if event.trigger_id is not None:
        body["trigger_id"] = event.trigger_id
    body["data"] = orjson.Fragment(event.data.text)
    if event.change is not None:
        body |= _change_members(event.change)
    return orjson.dumps(body)


def decode(body: bytes) -> Event:
    """The event of a message. InvalidArgument names the member that is wrong; nothing else is raised."""
    if len(body) > MAX_EVENT_BYTES:
        raise InvalidArgument(None, f"The event has {len(body)} bytes; at most {MAX_EVENT_BYTES} are allowed")
    try:
        found = _members(body)
    except JsonError as why:
        raise InvalidArgument(None, f"The message is not an event: {why}") from None
    if "data" not in found:
        raise InvalidArgument("data", "data is missing; it may be null")
    event_type = parse_event_type("type", text_of(found, "type"))
    of = family(event_type)
    return Event(
        id=parse_event_id("id", text_of(found, "id")),
        type=event_type,
        project_id=parse_id("project_id", text_of(found, "project_id")),
        time=parse_time("time", text_of(found, "time")),
        source=parse_text("source", text_of(found, "source")),
        data=found["data"],
        subject=parse_text("subject", text_of(found, "subject")) if _has(found, "subject") else None,
        cause=parse_cause(found["cause"].value) if _has(found, "cause") else None,
        trigger_id=parse_id("trigger_id", text_of(found, "trigger_id")) if of == "cron" else None,
        change=_change(found) if of == "cdc" and _has(found, "op") else None,
    )


def parse_event_id(field: str, value: str) -> str:
    """1 to 128 printable ASCII characters without spaces."""
    if not _ID.fullmatch(value):
        raise InvalidArgument(
            field,
            f"{field} is {shown(value)}; it must be 1 to {MAX_ID_CHARS} printable ASCII characters without spaces",
            value=value[:100],
        )
    return value


def parse_text(field: str, value: str) -> str:
    """`source` or `subject`: 1 to 255 characters in one line, not blank."""
    return parse_name(field, value, most=MAX_TEXT_CHARS)


def parse_time(field: str, value: str) -> datetime:
    """RFC 3339 with a zone, to the microsecond, as UTC."""
    if _TIME.fullmatch(value):
        try:
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    raise InvalidArgument(
        field, f"{field} is {shown(value)}; it must be a time such as 2026-01-31T09:00:00Z", value=value[:100]
    )


def spelled(time: datetime) -> str:
    """RFC 3339 in UTC, with six digits of a second, or none when they are all 0."""
    utc = time if time.tzinfo is UTC else time.astimezone(UTC)
    return utc.isoformat().removesuffix("+00:00") + "Z"


def text_of(found: Mapping[str, Json], name: str, *, inside: str = "") -> str:
    """The member's string; "" when it is absent or null. `inside` is what goes before its name in an error."""
    value = found[name].value if name in found else None
    if value is not None and not isinstance(value, str):
        raise InvalidArgument(f"{inside}{name}", f"{inside}{name} must be a string")
    return value or ""


def _members(body: bytes) -> dict[str, Json]:
    scanner = Scanner(body, most_values=MAX_ENVELOPE_VALUES)
    found: dict[str, Json] = {}
    if begin := scanner.lead(_BEGIN):  # as `encode` writes most: at half the cost of going member by member
        found = {name: Json(f'"{text}"', text) for name, text in begin.groupdict().items() if text is not None}
        found["data"] = scanner.value()
    for name in scanner.members(begun=[*found]):
        found[name] = scanner.value()
    scanner.end()
    return found


def parse_cause(value: Any) -> Cause:
    """The member `cause`. InvalidArgument."""
    if not isinstance(value, dict):
        raise InvalidArgument("cause", "cause must be an object")
    depth, run_id, trigger_id = value.get("depth"), value.get("run_id"), value.get("trigger_id")
    if type(depth) is not int or not 1 <= depth <= MAX_CAUSE_DEPTH:
        raise InvalidArgument("cause.depth", f"cause.depth must be a whole number from 1 to {MAX_CAUSE_DEPTH}")
    return Cause(
        run_id=parse_id("cause.run_id", run_id if isinstance(run_id, str) else ""),
        trigger_id=None if trigger_id is None else parse_id("cause.trigger_id", str(trigger_id)),
        depth=depth,
    )


def _change(found: Mapping[str, Json]) -> Change:
    lsn = text_of(found, "lsn")
    if lsn and not _LSN.fullmatch(lsn):
        raise InvalidArgument("lsn", f"lsn is {shown(lsn)}; it must be a position such as 16/B374D848")
    return Change(
        op=parse_choice("op", text_of(found, "op"), OPERATIONS),
        schema=_identifier("schema", text_of(found, "schema")),
        table=_identifier("table", text_of(found, "table")),
        old=found["old"] if _has(found, "old") else None,
        changed=_columns(found, "changed"),
        unavailable=_columns(found, "unavailable"),
        lsn=lsn or None,
    )


def _change_members(change: Change) -> dict[str, Any]:
    told: dict[str, Any] = {"op": change.op, "schema": change.schema, "table": change.table}
    if change.old is not None:
        told["old"] = orjson.Fragment(change.old.text)
    optional = {"changed": change.changed, "unavailable": change.unavailable, "lsn": change.lsn}
    return told | {name: value for name, value in optional.items() if value}


def _columns(found: Mapping[str, Json], name: str) -> tuple[str, ...]:
    value = found[name].value if _has(found, name) else []
    if not isinstance(value, list) or len(value) > MAX_COLUMNS or not all(isinstance(item, str) for item in value):
        raise InvalidArgument(name, f"{name} must be a list of at most {MAX_COLUMNS} names of columns")
    return tuple(_identifier(name, item) for item in value)


def _identifier(field: str, value: str) -> str:
    """Of a schema, table or column, which may be called anything: 1 to 255 characters that UTF-8 can hold."""
    if not 1 <= len(value) <= MAX_TEXT_CHARS or value != well_formed(value):
        raise InvalidArgument(
            field,
            f"{field} is {shown(value)}; it must be a name of 1 to {MAX_TEXT_CHARS} characters",
            value=value[:100],
        )
    return value


def _has(found: Mapping[str, Json], name: str) -> bool:
    return name in found and found[name].value is not None


_ID: Final = re.compile(rf"[!-~]{{1,{MAX_ID_CHARS}}}")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)
_BEGIN: Final = re.compile(
    r'\{"id":"(?P<id>[!#-\[\]-~]*)","type":"(?P<type>[!#-\[\]-~]*)","project_id":"(?P<project_id>[!#-\[\]-~]*)"'
    r',"time":"(?P<time>[!#-\[\]-~]*)","source":"(?P<source>[ !#-\[\]-~]*)"(?:,"subject":"(?P<subject>[ !#-\[\]-~]*)")?'
    r'(?:,"trigger_id":"(?P<trigger_id>[!#-\[\]-~]*)")?,"data":'
)
_LSN: Final = re.compile(r"[0-9A-F]{1,8}/[0-9A-F]{1,8}")
