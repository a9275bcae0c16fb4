"""A trigger as its author writes it, checked before anything is stored: whole when it is created, and then in parts.

    members of the request ─▶ each by its own rule ─▶ all of them together ─▶ Draft

Members come as the JSON that was written, so that digits survive. Null is no value: it clears `order_key` and
`concurrency`, and the id of the target that a trigger does not have.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, get_args

import orjson

from server.errors import InvalidArgument
from server.events.json_text import Json
from server.fields import parse_choice, parse_id, parse_name, shown
from server.triggers.configuration import require_config
from server.triggers.definition import TargetType
from server.triggers.parsing import parse
from server.triggers.paths import MAX_PATH_CHARS, parse_path
from server.triggers.patterns import CRON, parse_pattern
from server.triggers.retry import differing, parse_retry, parse_whole
from server.triggers.values import kind

MAX_CONDITIONS_BYTES: Final = 65_536
"""Of their text, as it is stored."""

MAX_CONCURRENCY: Final = 1_000

NO_CONFIG: Final = Json("{}", {})
NO_CONDITIONS: Final = Json("[]", [])
NO_RETRY: Final = Json("{}", {})

TARGETS: Final[Mapping[str, str]] = {"function": "function_id", "workflow": "workflow_id"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    event_type: str
    config: Json = NO_CONFIG
    target_type: TargetType
    function_id: str | None = None
    workflow_id: str | None = None
    conditions: Json = NO_CONDITIONS
    enabled: bool = True
    paused: bool = False
    retry: Json = NO_RETRY  # what differs from the default policy
    order_key: str | None = None
    concurrency: int | None = None

    @property
    def target(self) -> tuple[str, str | None]:
        """The name of the member that holds the target's id, and the id."""
        field = TARGETS[self.target_type]
        return field, getattr(self, field)


def drafted(members: Mapping[str, Json]) -> Draft:
    """A new trigger. InvalidArgument names the member that is wrong, missing or unknown."""
    given = _parsed(members)
    for name in ("event_type", "target_type"):
        if name not in given:
            raise InvalidArgument(name, f"{name} is missing")
    draft = Draft(**given)
    require_config(draft.event_type, draft.config.value)
    _require_target(draft)
    _require_orderable(draft)
    return draft


def redrafted(draft: Draft, members: Mapping[str, Json]) -> Draft:
    """What is absent stays, and is not checked again: a newer version may have written it. Otherwise as `drafted`.

    With another `target_type` the id of the old target goes.
    """
    given = _parsed(members)
    if "target_type" in given and given["target_type"] != draft.target_type:
        draft = replace(draft, function_id=None, workflow_id=None)
    changed: Draft = replace(draft, **given)
    if given.keys() & {"event_type", "config"}:
        require_config(changed.event_type, changed.config.value)
    if given.keys() & {"target_type", *TARGETS.values()}:
        _require_target(changed)
    if given.keys() & {"event_type", "order_key"}:
        _require_orderable(changed)
    return changed


# Each by its own rule


def _parsed(members: Mapping[str, Json]) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for name, member in members.items():
        if name not in _RULES:
            raise InvalidArgument(
                name[:40], f"{shown(name)} is not a member that one may write; a trigger has {', '.join(_RULES)}"
            )
        if member.value is None and name not in _NULLABLE:
            raise InvalidArgument(name, f"{name} is null; leave it out where it is not to be given")
        parsed[name] = None if member.value is None else _RULES[name](name, member)
    return parsed


def _text(field: str, member: Json) -> str:
    if not isinstance(member.value, str):
        raise InvalidArgument(field, f"{field} is {kind(member.value)}; it must be a string")
    return member.value


def _flag(field: str, member: Json) -> bool:
    if not isinstance(member.value, bool):
        told = shown(member.value) if isinstance(member.value, str) else kind(member.value)
        raise InvalidArgument(field, f"{field} is {told}; it must be true or false")
    return member.value


def _event_type(field: str, member: Json) -> str:
    return parse_pattern(field, _text(field, member))


def _config(field: str, member: Json) -> Json:
    """Checked together with the type."""
    return member


def _target_type(field: str, member: Json) -> str:
    return parse_choice(field, _text(field, member), get_args(TargetType))


def _id(field: str, member: Json) -> str:
    return parse_id(field, _text(field, member))


def _conditions(field: str, member: Json) -> Json:
    size = len(member.text.encode())
    if size > MAX_CONDITIONS_BYTES:
        raise InvalidArgument(
            field,
            f"{field} has {size} bytes; at most {MAX_CONDITIONS_BYTES} are allowed",
            used=str(size),
            allowed=str(MAX_CONDITIONS_BYTES),
        )
    parse(member.value, field)
    return member


def _retry(field: str, member: Json) -> Json:
    policy = differing(parse_retry(member.value, field))
    return Json(orjson.dumps(policy).decode(), policy)


def _order_key(field: str, member: Json) -> str:
    text = parse_name(field, _text(field, member), most=MAX_PATH_CHARS)
    parse_path(text, field)
    return text


def _concurrency(field: str, member: Json) -> int:
    return parse_whole(field, member.value, 1, MAX_CONCURRENCY)


_RULES: Final[Mapping[str, Callable[[str, Json], object]]] = {
    "event_type": _event_type,
    "config": _config,
    "target_type": _target_type,
    "function_id": _id,
    "workflow_id": _id,
    "conditions": _conditions,
    "enabled": _flag,
    "paused": _flag,
    "retry": _retry,
    "order_key": _order_key,
    "concurrency": _concurrency,
}
_NULLABLE: Final = frozenset((*TARGETS.values(), "order_key", "concurrency"))


# All of them together


def _require_target(draft: Draft) -> None:
    for target_type, field in TARGETS.items():
        given = getattr(draft, field)
        if target_type == draft.target_type and given is None:
            raise InvalidArgument(field, f"{field} is missing; target_type is {draft.target_type}")
        if target_type != draft.target_type and given is not None:
            raise InvalidArgument(
                field,
                f"{field} is {given}, but target_type is {draft.target_type}; a trigger has one target",
                value=given,
            )


def _require_orderable(draft: Draft) -> None:
    if draft.event_type == CRON and draft.order_key is not None:
        raise InvalidArgument(
            "order_key",
            f"order_key is {shown(draft.order_key)}; a trigger of cron has none: config.overlap says what its firings "
            "do to each other",
            value=draft.order_key[:100],
        )
