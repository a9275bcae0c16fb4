"""The event that starts a run: an envelope as JSON, kept as it came."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import orjson

from server.errors import InvalidArgument
from server.events.envelope import MAX_ENVELOPE_VALUES, spelled
from server.events.json_text import Json, JsonError, Scanner

BY_HAND: Final = "workflow.run"
"""Type of the event of a run that was started by API, which is in no stream."""


def members_of(body: bytes) -> Mapping[str, Any]:
    """Each may be nested as deep as JSON may be. InvalidArgument when it is no JSON object."""
    try:
        scanner = Scanner(body, most_values=MAX_ENVELOPE_VALUES)
        found = {name: scanner.value().value for name in scanner.members()}
        scanner.end()
    except JsonError as why:
        raise InvalidArgument("event", f"The run's event is not a JSON object: {why}") from None
    return found


def by_hand(project_id: str, run_id: str, data: Json, now: datetime) -> bytes:
    """Around the input of whoever started the run."""
    members: Mapping[str, Any] = {
        "id": run_id,
        "type": BY_HAND,
        "project_id": project_id,
        "time": spelled(now),
        "source": "api",
        "data": orjson.Fragment(data.text),
    }
    return orjson.dumps(members)
