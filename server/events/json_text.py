"""JSON that is passed on as it was written: digits of numbers and order of members survive; what it means is beside it.

Hostile texts cost little: their size is known to the caller, their values are counted before they are made, each is
made once, and nesting ends at MAX_DEPTH.
"""

import itertools
import json.decoder
import re
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import field
from typing import Any, Final

from engines.value import value

MAX_VALUES: Final = 100_000
"""Commas and opening brackets of one text: each may cost half a microsecond of the event loop."""

MAX_DEPTH: Final = 64


class JsonError(ValueError):
    """The text is not JSON, or more of it than allowed; the message says which."""


@value()
class Json:
    """One JSON value: its text, and that in Python. Whole numbers are exact, others doubles; strings may hold lone
    surrogates. Equal when the texts are."""

    text: str
    value: Any = field(compare=False, repr=False)


def read(raw: bytes) -> Json:
    """The value of a whole text (RFC 8259, in UTF-8). JsonError."""
    scanner = Scanner(raw)
    found = scanner.value()
    scanner.end()
    return found


def separators(raw: bytes) -> int:
    """Commas and opening brackets, as MAX_VALUES counts them."""
    return raw.count(b",") + _brackets(raw)


class Scanner:
    """Goes through a text once. What it does not raise JsonError at, up to and with `end`, is JSON.

    `most_values`: as MAX_VALUES, for texts of ours around what was read with that bound.
    """

    def __init__(self, raw: bytes, *, most_values: int = MAX_VALUES) -> None:
        brackets = _brackets(raw)
        if (values := raw.count(b",") + brackets) > most_values:
            raise JsonError(f"it has {values} commas and opening brackets; at most {most_values} are allowed")
        try:
            self._text = raw.decode()
        except UnicodeDecodeError as why:
            raise JsonError(f"byte {why.start} is no UTF-8") from None
        self._at = 0
        self._may_be_deep = brackets > MAX_DEPTH

    @property
    def next(self) -> str:
        """The first character of what comes next; "" at the end."""
        found = self._text[self._at : self._at + 1]
        if found not in _SPACES:
            return found
        spaces = _SPACE.match(self._text, self._at)
        assert spaces
        self._at = spaces.end()
        return self._text[self._at : self._at + 1]

    def lead(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """What comes next, if it matches; it has then been gone through."""
        found = pattern.match(self._text, self._at)
        if found:
            self._at = found.end()
        return found

    def value(self) -> Json:
        """The value that comes next."""
        if not self.next:
            raise JsonError("it ends too early")
        at = self._at
        try:
            found, self._at = _scan(self._text, at)
        except StopIteration as why:
            raise JsonError(f"a value is missing at character {why.value}") from None
        except RecursionError:
            raise _too_deep() from None
        except (json.JSONDecodeError, JsonError) as why:
            raise JsonError(str(why)[:200]) from None
        except ValueError:  # Python converts no more, because it takes ever longer
            raise JsonError(f"a whole number has more than {sys.get_int_max_str_digits()} digits") from None
        if self._may_be_deep:
            _require_shallow(found)
        return Json(self._text[at : self._at], found)

    def members(self, begun: Collection[str] = ()) -> Iterator[str]:
        """The names of the object that comes next, or that one is in, of which those `begun` have been gone through.
        Take what comes next at each: a value, members or elements."""
        names = set(begun)
        if not begun:
            self._take("{")
        more = self._another() if begun else self.next == '"'
        while more:
            try:
                name, self._at = _string(self._text, self._at + 1)
            except ValueError as why:
                raise JsonError(str(why)[:200]) from None
            if name in names:
                raise JsonError(f"it has the member {name[:40]!r} twice")
            names.add(name)
            self._take(":")
            yield name
            more = self._another()
        self._take("}")

    def _another(self) -> bool:
        """Whether a comma comes next, which the name of another member must follow."""
        if self.next != ",":
            return False
        self._at += 1
        if self.next != '"':
            raise JsonError(f"a name is missing at character {self._at}")
        return True

    def elements(self) -> Iterator[int]:
        """The numbers of elements of the array that comes next, from 0. Take what comes next at each."""
        self._take("[")
        if self.next != "]":
            for number in itertools.count():
                yield number
                if self.next != ",":
                    break
                self._at += 1
        self._take("]")

    def end(self) -> None:
        """Nothing follows."""
        if self.next:
            raise JsonError(f"something follows its end at character {self._at}")

    def _take(self, char: str) -> None:
        if self.next != char:
            raise JsonError(f"{char} is missing at character {self._at}")
        self._at += 1


def _brackets(raw: bytes) -> int:
    return raw.count(b"[") + raw.count(b"{")


def _require_shallow(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            item
            for parent in level
            for item in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> JsonError:
    return JsonError(f"it is nested deeper than {MAX_DEPTH} levels")


def _no_json(name: str) -> float:
    raise JsonError(f"{name} is no JSON")


_SPACES: Final = frozenset(" \t\n\r")
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_scan: Final[Callable[[str, int], tuple[Any, int]]] = vars(json.JSONDecoder(parse_constant=_no_json))["scan_once"]
_string: Final[Callable[[str, int], tuple[str, int]]] = vars(json.decoder)["scanstring"]
