"""An event that somebody makes up to see what it would do: it may be of any family, and says only what matters."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from uuid import uuid4

from server.errors import InvalidArgument
from server.events.drafts import SOURCE
from server.events.envelope import Event, decode, spelled
from server.events.types import family, unescape
from server.fields import shown
from server.postgres.tenants import schema_of
from server.triggers.bodies import require_known
from server.triggers.patterns import CDC_OPERATIONS, CRON

COMMON: Final = ("type", "data", "id", "time", "subject", "source", "project_id", "cause")
OF_CHANGES: Final = ("op", "schema", "table", "old", "changed", "unavailable", "lsn")
OF_TICKS: Final = ("trigger_id",)


def event_of(project_id: str, members: Mapping[str, Any], now: datetime, *, inside: str = "event.") -> Event:
    """What was said, and what a published event has beside it. A change has operation, schema and table from its type.

    `members` are decoded JSON. InvalidArgument names the one that is wrong, with `inside` before it.
    """
    require_known(members, (*COMMON, *OF_CHANGES, *OF_TICKS), inside=inside)
    event_type = members.get("type")
    of = family(event_type) if isinstance(event_type, str) else ""
    _require_family(members, OF_CHANGES, of, "cdc", inside)
    _require_family(members, OF_TICKS, of, CRON, inside)
    if members.get("project_id", project_id) != project_id:
        raise InvalidArgument(f"{inside}project_id", f"{inside}project_id is not the project's own; leave it out")
    assumed = {"id": str(uuid4()), "time": spelled(now), "source": SOURCE, "project_id": project_id, "data": None}
    try:
        return decode(json.dumps(assumed | _change(project_id, event_type) | dict(members)).encode())
    except InvalidArgument as why:
        field = "event" if why.field is None else f"{inside}{why.field}"
        message = why.message if why.field is None else f"{inside}{why.message}"
        raise InvalidArgument(field, message, reason=why.reason, **why.metadata) from None


def _require_family(members: Mapping[str, Any], names: tuple[str, ...], of: str, wanted: str, inside: str) -> None:
    for name in names:
        if name in members and of != wanted:
            raise InvalidArgument(
                f"{inside}{name}",
                f"{inside}{name} is given, but only events of the family {wanted} have it; this one is of {shown(of)}",
            )


def _change(project_id: str, event_type: object) -> dict[str, Any]:
    tokens = event_type.split(".") if isinstance(event_type, str) else []
    if len(tokens) != 3 or tokens[0] != "cdc" or tokens[1] not in CDC_OPERATIONS:
        return {}
    try:
        table = unescape(tokens[2])
    except UnicodeDecodeError:
        return {}
    return {"op": tokens[1], "schema": schema_of(project_id), "table": table}
