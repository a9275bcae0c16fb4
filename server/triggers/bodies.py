"""Bodies of requests over REST: one JSON object, its members as they were written."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from server.errors import InvalidArgument
from server.events.json_text import Json, JsonError, Scanner
from server.fields import shown
from server.triggers.values import kind

MAX_BODY_BYTES: Final = 131_072
"""Of one that describes a trigger or a schedule."""

MAX_SAMPLE_BYTES: Final = 2 * 1024 * 1024
"""Of one that holds an event."""


def members_of(body: bytes, *, most_bytes: int = MAX_BODY_BYTES) -> dict[str, Json]:
    """InvalidArgument for what is no JSON object, or larger."""
    if len(body) > most_bytes:
        raise InvalidArgument(
            "body",
            f"The request has {len(body)} bytes; at most {most_bytes} are allowed",
            reason="REQUEST_TOO_LARGE",
            used=str(len(body)),
            allowed=str(most_bytes),
        )
    try:
        scanner = Scanner(body)
        members = {name: scanner.value() for name in scanner.members()}
        scanner.end()
    except JsonError as why:
        raise InvalidArgument("body", f"The request body is not a JSON object: {why}") from None
    return members


def require_known(members: Mapping[str, object], known: Collection[str], *, inside: str = "") -> None:
    """InvalidArgument for a member that is none of `known`. `inside` goes before its name in an error."""
    for name in members:
        if name not in known:
            raise InvalidArgument(
                f"{inside}{name[:40]}",
                f"{inside}{name[:40]} is unknown; known are {', '.join(known)}",
                value=shown(name),
            )


def object_in(members: Mapping[str, Json], name: str) -> dict[str, Any]:
    """A member that must be there and be an object."""
    value = members[name].value if name in members else None
    if not isinstance(value, dict):
        told = f"is {kind(value)}" if name in members else "is missing"
        raise InvalidArgument(name, f"{name} {told}; it must be an object")
    return value
