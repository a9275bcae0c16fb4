"""What the `config` of a trigger may hold: by the family of the events that it answers."""

from collections.abc import Mapping
from typing import Final

from server.errors import InvalidArgument
from server.events.types import family
from server.fields import shown
from server.triggers.bridge import AUTH, BRIDGE_KEYS, bridge_of
from server.triggers.patterns import CRON
from server.triggers.row_changes import CDC, CHANGE_KEYS, restrictions
from server.triggers.schedule import SCHEDULE_KEYS, parse_schedule
from server.triggers.values import kind

KEYS: Final[Mapping[str, tuple[str, ...]]] = {CRON: SCHEDULE_KEYS, CDC: CHANGE_KEYS, AUTH: BRIDGE_KEYS}
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
    elif of == CDC:
        restrictions(event_type, config, field)
    elif of == AUTH:
        bridge_of(event_type, config, field)


def require_known(event_type: str, config: Mapping[str, object], keep_hours: float) -> None:
    """InvalidArgument for a cron trigger that would make good what it is no longer known of whether it ran."""
    if family(event_type) != CRON:
        return
    given, most = parse_schedule(config).catch_up_s, int(keep_hours * 3600)
    if given > most:
        raise InvalidArgument(
            "config.catch_up_s",
            f"config.catch_up_s is {given}; events are kept for {keep_hours:g} hours, so that it must be at most"
            f" {most}",
            value=str(given),
            allowed=str(most),
        )


def same_times(config: Mapping[str, object], other: Mapping[str, object]) -> bool:
    """Whether two configurations name the same schedule in the same zone."""
    return _times(config) == _times(other)


def _times(config: Mapping[str, object]) -> tuple[object, object]:
    return config.get("schedule"), config.get("timezone", "UTC")
