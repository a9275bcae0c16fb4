"""JSON values as conditions compare them: by type, and numbers exactly, in decimal.

Wanted values are prepared once: their numbers are int or Decimal then. Found values are taken as they come.
"""

import re
from decimal import Decimal
from typing import Final

MAX_NUMBER_CHARS: Final = 1_000
"""A longer string spells no number; a numeric column with a declared precision has at most 1,000 digits."""

Key = str | int | Decimal | tuple[bool | None]
"""A scalar so that equal values, and they alone, have equal keys. true, false and null are in a tuple."""


def number(value: object) -> int | Decimal | None:
    """The number that a value is or spells; None for any other, bool and NaN included."""
    if isinstance(value, str):
        return Decimal(value) if len(value) <= MAX_NUMBER_CHARS and _NUMBER.fullmatch(value) else None
    if isinstance(value, float):
        return _exact(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def prepared(value: object) -> object:
    """Numbers as int or Decimal, so that they compare exactly."""
    if isinstance(value, float):
        return _exact(value)
    if isinstance(value, list):
        return [prepared(item) for item in value]
    if isinstance(value, dict):
        return {name: prepared(item) for name, item in value.items()}
    return value


def equal(actual: object, wanted: object) -> bool:
    """Whether what was found is what is wanted (prepared)."""
    kind = type(wanted)
    if kind is str:
        return type(actual) is str and actual == wanted
    if kind is int or kind is Decimal:
        return number(actual) == wanted
    if isinstance(wanted, list):
        return isinstance(actual, list) and len(actual) == len(wanted) and all(map(equal, actual, wanted))
    if isinstance(wanted, dict):
        return (
            isinstance(actual, dict)
            and actual.keys() == wanted.keys()
            and all(equal(actual[name], value) for name, value in wanted.items())
        )
    return actual is wanted


def key(wanted: object) -> Key | None:
    """Of a prepared value; None of an array or object."""
    if isinstance(wanted, bool) or wanted is None:
        return (wanted,)
    return wanted if isinstance(wanted, str | int | Decimal) else None


def keys(actual: object) -> tuple[Key, ...]:
    """The keys of all prepared values that a found value is equal to, but for arrays and objects."""
    spelled = number(actual)
    if isinstance(actual, str):
        return (actual,) if spelled is None else (actual, spelled)
    if spelled is not None:
        return (spelled,)
    return ((actual,),) if isinstance(actual, bool) or actual is None else ()


def identical(one: object, other: object, depth: int = 64) -> bool:
    """Whether two found values are the same JSON, types included; those nested deeper than `depth` are not."""
    if isinstance(one, list) and isinstance(other, list):
        return (
            depth > 0
            and len(one) == len(other)
            and all(identical(a, b, depth - 1) for a, b in zip(one, other, strict=True))
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return (
            depth > 0
            and one.keys() == other.keys()
            and all(identical(value, other[name], depth - 1) for name, value in one.items())
        )
    return isinstance(one, bool) is isinstance(other, bool) and one == other


def kind(value: object) -> str:
    """The type of a JSON value with its article; null, true and false as themselves."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"


def _exact(value: float) -> int | Decimal | None:
    """The decimal number that a double is written as: 0.1 is one tenth."""
    if value.is_integer() and abs(value) < 2**53:
        return int(value)
    return None if value != value else Decimal(repr(value))


_NUMBER: Final = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,6})?|Infinity)")
