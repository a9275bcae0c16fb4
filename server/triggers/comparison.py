"""The operators of conditions: what is found in an event against what a condition wants.

    eq neq          the same value; arrays and objects member by member
    gt gte lt lte   numbers by value, strings by code point; against anything else they are false
    contains        a string that has this string in it, or an array that has this element
    in not_in       equal to one of a list
    exists          whether the event has the field at all; null is there
    prefix suffix   of a string
    matches         an RE2 pattern, found anywhere in a string of at most MAX_SEARCHED_BYTES

Values are compared by type, and nothing is converted but numbers:
- A wanted number is compared with a number and with a string that spells one in full ("12.50", "1e3", "Infinity"),
  exactly, in decimal: Postgres sends numerics and integers beyond 2^53 as strings. "NaN", " 1" and "01" are no numbers.
- A wanted string is compared with strings alone: "100" is not 100, but "100" is found by both.
- true is not 1, null is equal to null alone, and a field that is missing is equal to nothing, null included.
- `neq` and `not_in` are the exact opposites of `eq` and `in`: they hold for a missing field and for another type.
- Strings are not normalised: two spellings of "é" differ. Times order rightly only when they are written alike.
"""

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final

import re2

from server.triggers.paths import MISSING
from server.triggers.values import Key, equal, key, keys, number, prepared

MAX_LISTED: Final = 1_000
MAX_PATTERN_CHARS: Final = 512
MAX_STEPS: Final = 3_000
"""Instructions of a compiled pattern, and of all patterns of a trigger together. Any letter (\\pL) takes 1,200."""

MAX_SEARCHED_BYTES: Final = 4_096
"""The worst pattern of MAX_STEPS searches as much in some 90 ms (measured), an ordinary one in some 10 µs."""

MAX_AUTOMATON_BYTES: Final = 262_144
"""What one pattern may use while it searches."""

MAX_COMPILED: Final = 512
"""Patterns kept compiled, of all projects together; another one is compiled again, in less than a millisecond."""


class Unfit(Exception):
    """A value that an operator cannot take; the message is the rule."""


@dataclass(frozen=True, slots=True)
class Operator:
    """`prepare` makes of a JSON value what `holds` takes as the wanted one, or raises Unfit. `holds` never raises."""

    prepare: Callable[[object], object]
    holds: Callable[[object, Any], bool]


@dataclass(frozen=True, slots=True)
class Listed:
    """What `in` compares with: scalars by key, and the rest."""

    keys: frozenset[Key]
    others: tuple[object, ...]


def _differs(actual: object, wanted: object) -> bool:
    return not equal(actual, wanted)


def _ordered(relation: Callable[[Any, Any], bool]) -> Callable[[object, Any], bool]:
    def holds(actual: object, wanted: str | int | Decimal) -> bool:
        if isinstance(wanted, str):
            return isinstance(actual, str) and relation(actual, wanted)
        found = number(actual)
        return found is not None and relation(found, wanted)

    return holds


def _contains(actual: object, wanted: object) -> bool:
    if isinstance(actual, str):
        return isinstance(wanted, str) and wanted in actual
    return isinstance(actual, list) and any(equal(item, wanted) for item in actual)


def _in(actual: object, wanted: Listed) -> bool:
    return not wanted.keys.isdisjoint(keys(actual)) or any(equal(actual, other) for other in wanted.others)


def _not_in(actual: object, wanted: Listed) -> bool:
    return not _in(actual, wanted)


def _exists(actual: object, wanted: bool) -> bool:
    return (actual is not MISSING) is wanted


def _prefix(actual: object, wanted: str) -> bool:
    return isinstance(actual, str) and actual.startswith(wanted)


def _suffix(actual: object, wanted: str) -> bool:
    return isinstance(actual, str) and actual.endswith(wanted)


def _matches(actual: object, wanted: str) -> bool:
    if not isinstance(actual, str) or len(actual) > MAX_SEARCHED_BYTES:
        return False
    searched = actual.encode(errors="surrogatepass")
    return len(searched) <= MAX_SEARCHED_BYTES and _compiled(wanted).search(searched) is not None


def _scalar(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Unfit("it must be a number or a string")
    return prepared(value)


def _list(value: object) -> Listed:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_LISTED:
        raise Unfit(f"it must be an array of 1 to {MAX_LISTED} values")
    wanted = [prepared(item) for item in value]
    found = [key(item) for item in wanted]
    return Listed(
        keys=frozenset(each for each in found if each is not None),
        others=tuple(item for item, each in zip(wanted, found, strict=True) if each is None),
    )


def flag(value: object) -> bool:
    """What `exists` and `changed` want; Unfit for anything but a boolean."""
    if not isinstance(value, bool):
        raise Unfit("it must be true or false")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Unfit("it must be a string")
    return value


def _pattern(value: object) -> str:
    pattern = _text(value)
    if len(pattern) > MAX_PATTERN_CHARS:
        raise Unfit(f"a pattern of {len(pattern)} characters; at most {MAX_PATTERN_CHARS} are allowed")
    try:
        size = steps(pattern)
    except UnicodeEncodeError:
        raise Unfit("a pattern has no lone surrogates") from None
    except re2.error as why:
        raise Unfit(f"it must be an RE2 pattern: {_told(why)}") from None
    if size > MAX_STEPS:
        raise Unfit(f"the pattern takes {size} steps; at most {MAX_STEPS} are allowed: repeat less")
    return pattern


def steps(pattern: str) -> int:
    """What searching for it takes, byte by byte."""
    size: int = _compiled(pattern).programsize
    return size


def _told(why: Exception) -> str:
    told = why.args[0] if why.args else b""
    return told.decode(errors="replace") if isinstance(told, bytes) else str(told)


@functools.lru_cache(maxsize=MAX_COMPILED)
def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.max_mem = MAX_AUTOMATON_BYTES
    options.log_errors = False
    return re2.compile(pattern, options)


OPERATORS: Final[Mapping[str, Operator]] = MappingProxyType(
    {
        "eq": Operator(prepared, equal),
        "neq": Operator(prepared, _differs),
        "gt": Operator(_scalar, _ordered(operator.gt)),
        "gte": Operator(_scalar, _ordered(operator.ge)),
        "lt": Operator(_scalar, _ordered(operator.lt)),
        "lte": Operator(_scalar, _ordered(operator.le)),
        "contains": Operator(prepared, _contains),
        "in": Operator(_list, _in),
        "not_in": Operator(_list, _not_in),
        "exists": Operator(flag, _exists),
        "prefix": Operator(_text, _prefix),
        "suffix": Operator(_text, _suffix),
        "matches": Operator(_pattern, _matches),
    }
)
