"""What the `config` of a trigger may hold: by the family of the events that it answers."""

from collections.abc import Mapping
from typing import Final

from server.errors import InvalidArgument
from server.events.types import family
from server.fields import shown
from server.triggers.patterns import CRON
from server.triggers.schedule import SCHEDULE_KEYS, parse_schedule
from server.triggers.values import kind

KEYS: Final[Mapping[str, tuple[str, ...]]] = {CRON: SCHEDULE_KEYS}
"""Known ones of each family; a family that is not here has none."""


def require_config(event_type: str, config: object, field: str = "config") -> None:
    """InvalidArgument when it is not what a trigger of this type needs: a wrong value, a key unknown or missing."""
    if not isinstance(config, dict):
        raise InvalidArgument(field, f"{field} is {kind(config)}; it must be an object")
    of = family(event_type)
    known = KEYS.get(of, ())
    for key in config:
        if key not in known:
            rule = f"known are {', '.join(known)}" if known else f"triggers of the family {of[:40]} have none"
            raise InvalidArgument(
                f"{field}.{key[:40]}", f"{field} has the key {shown(key)}; {rule}", allowed=", ".join(known)
            )
    if of == CRON:
        parse_schedule(config, field)


def same_times(config: Mapping[str, object], other: Mapping[str, object]) -> bool:
    """Whether two configurations name the same schedule in the same zone."""
    return _times(config) == _times(other)


def _times(config: Mapping[str, object]) -> tuple[object, object]:
    return config.get("schedule"), config.get("timezone", "UTC")
