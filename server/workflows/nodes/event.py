"""event: publishes a custom event, which triggers may answer.

    config  {"type", "data"?: any JSON, "subject"?}; templates everywhere
    output  {"id", "type", "duplicate"}

The event's id is made of run and node, so that a step that is repeated publishes it once. Its cause is the run, one
deeper than the event that started the run.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import orjson

from server.errors import AtlasError, InvalidArgument
from server.events.envelope import MAX_CAUSE_DEPTH, MAX_DATA_BYTES, Cause, Event, parse_text
from server.events.json_text import JsonError, read
from server.events.publisher import Published
from server.events.types import parse_publishable
from server.workflows import fields
from server.workflows.nodes.step import Attempt, Output, StepFailed
from server.workflows.templates import compiled, dumped

TIMEOUT_S: Final = 30.0
SOURCE: Final = "workflow"


class Publishes(Protocol):
    """`server.events.publisher.Publisher`."""

    async def publish(self, events: Sequence[Event]) -> list[Published]: ...


def parse(config: object, field: str) -> Any:
    given = fields.members(
        config, field, ("type", "data", "subject"), required=("type",), of="the configuration of an event node"
    )
    event_type = fields.templated(given["type"], f"{field}.type")
    if fields.is_fixed(event_type):
        parse_publishable(f"{field}.type", event_type)
    found = {"type": event_type, "data": compiled(given.get("data"), f"{field}.data")}
    if "subject" in given:
        found["subject"] = subject = fields.templated(given["subject"], f"{field}.subject")
        if fields.is_fixed(subject):
            parse_text(f"{field}.subject", subject)
    return found


class EventNode:
    def __init__(self, publisher: Publishes) -> None:
        self._publisher = publisher

    async def run(self, attempt: Attempt) -> Output:
        try:
            event = _event(attempt)
            (published,) = await self._publisher.publish([event])
        except InvalidArgument as why:
            reason = why.reason if why.reason != "INVALID_FIELD" else "EVENT_INVALID"
            raise StepFailed(reason, why.message) from why
        except AtlasError as why:
            raise StepFailed(why.reason, why.message, again=True, no_room=True) from why
        told = {"id": event.id, "type": event.type, "duplicate": published.duplicate}
        return Output(json=orjson.dumps(told))


def _event(attempt: Attempt) -> Event:
    """InvalidArgument for what templates made of it."""
    config = attempt.input
    data = dumped(config["data"]).decode()
    if len(data.encode()) > MAX_DATA_BYTES:
        raise InvalidArgument("data", f"data has more than {MAX_DATA_BYTES} bytes of JSON", reason="EVENT_TOO_LARGE")
    try:
        stored = read(data.encode())
    except JsonError as why:
        raise InvalidArgument("data", f"data cannot be an event's: {why}") from None
    depth = depth_of(attempt.scope.event) + 1
    if depth > MAX_CAUSE_DEPTH:
        raise InvalidArgument("cause", f"More than {MAX_CAUSE_DEPTH} runs have led to this event: it is a loop")
    subject = config.get("subject")
    return Event(
        id=attempt.name,
        type=parse_publishable("type", fields.text(config["type"], "type")),
        project_id=attempt.project_id,
        time=datetime.now(UTC),
        source=SOURCE,
        data=stored,
        subject=None if subject is None else parse_text("subject", fields.text(subject, "subject")),
        cause=Cause(run_id=attempt.run_id, trigger_id=attempt.trigger_id, depth=depth),
    )


def depth_of(event: Mapping[str, Any]) -> int:
    """How many runs led to an event."""
    cause = event.get("cause")
    depth = cause.get("depth") if isinstance(cause, dict) else 0
    return depth if isinstance(depth, int) else 0
