"""Checks of a definition's members: the clean value, or InvalidArgument that says place, value and rule."""

from collections.abc import Mapping, Sequence
from typing import Any

from server.errors import InvalidArgument
from server.fields import shown
from server.triggers.values import kind
from server.workflows.templates import compiled, is_dynamic


def members(
    value: object, field: str, known: Sequence[str], *, required: Sequence[str] = (), of: str = "it"
) -> Mapping[str, Any]:
    """An object with these members and no others. `of` says what has them."""
    if not isinstance(value, dict):
        raise InvalidArgument(field, f"{field} is {kind(value)}; it must be an object")
    for name in value:
        if name not in known:
            raise InvalidArgument(
                f"{field}.{name[:40]}", f"{field} has the unknown member {shown(name)}; {of} has {', '.join(known)}"
            )
    for name in required:
        if name not in value:
            raise InvalidArgument(f"{field}.{name}", f"{field}.{name} is missing")
    return value


def array(value: object, field: str, *, most: int, least: int = 0) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidArgument(field, f"{field} is {kind(value)}; it must be an array")
    if not least <= len(value) <= most:
        raise InvalidArgument(
            field,
            f"{field} has {len(value)} items; it must have {least} to {most}",
            used=str(len(value)),
            allowed=str(most),
        )
    return value


def text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(field, f"{field} is {kind(value)}; it must be a string")
    return value


def flag(value: object, field: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgument(field, f"{field} is {kind(value)}; it must be true or false")
    return value


def number(value: object, field: str, *, low: float, high: float, whole: bool = False) -> float:
    rule = f"it must be a {'whole ' if whole else ''}number from {low:g} to {high:.12g}"
    if isinstance(value, bool) or not isinstance(value, int | float) or (whole and not isinstance(value, int)):
        told = f"{value:g}" if isinstance(value, float) else kind(value)
        raise InvalidArgument(field, f"{field} is {told}; {rule}")
    if not low <= value <= high:
        raise InvalidArgument(field, f"{field} is {value:.12g}; {rule}", value=f"{value:.12g}"[:100])
    return value


def choice(value: object, field: str, allowed: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        told = shown(value) if isinstance(value, str) else kind(value)
        raise InvalidArgument(field, f"{field} is {told}; it must be one of {', '.join(allowed)}")
    return value


def templated(value: object, field: str) -> Any:
    """A string, perhaps with templates; compiled."""
    return compiled(text(value, field), field)


def is_fixed(value: Any) -> bool:
    """Whether it can be checked now, having no templates."""
    return not is_dynamic(value)
