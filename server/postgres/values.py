"""Postgres results as JSON: a loader for each type, rows to objects.

    int2 int4                         number
    int8                              number to 2^53 - 1 either way, beyond it a string
    numeric                           number if a float64 gives the digits back, else a string; NaN, Infinity strings
    float4 float8                     number; NaN, Infinity strings
    bool                              true, false
    timestamptz timestamp             ISO 8601 with "T" and "+00:00"; infinity and years BC as Postgres writes them
    json jsonb                        as they are, byte for byte
    bytea                             "\\xdead…"
    arrays of these and of text       lists, nested ones too; arrays of a tenant's own types stay text
    everything else                   Postgres' text: date, time, interval, uuid, inet, ranges, enums, composites, …

No loader raises: a statement may change the session's own output formats before its rows are written.
"""

import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Final

import orjson

from server.postgres.wire import Column

Loader = Callable[[bytes], object]

FORMATS: Final = {
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
}
"""Settings of a session under which Postgres writes values as the loaders expect them."""

MAX_SAFE: Final = 2**53 - 1
SAFE_DIGITS: Final = 15  # of a decimal number always survive a float64

_OFFSET = re.compile(r"[+-]\d\d$")
_ARRAY_TOKEN = re.compile(r'[{},;]|"((?:[^"\\]|\\.)*)"|([^{},;"]+)', re.DOTALL)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _bool(raw: bytes) -> bool:
    return raw == b"t"


def _integer(raw: bytes) -> object:
    try:
        number = int(raw)
    except ValueError:
        return _text(raw)
    return number if -MAX_SAFE <= number <= MAX_SAFE else _text(raw)


def _float(raw: bytes) -> object:
    try:
        number = float(raw)
    except ValueError:
        return _text(raw)
    return number if number - number == 0 else _text(raw)


def _numeric(raw: bytes) -> object:
    text = _text(raw)
    try:
        exact = len(text) <= SAFE_DIGITS or Decimal(repr(float(text))) == Decimal(text)
        if exact and Decimal(text).is_finite():
            return orjson.Fragment(raw)
    except (ValueError, InvalidOperation):
        pass
    return text


def _moment(raw: bytes) -> str:
    text = _text(raw)
    if text.endswith(("infinity", "BC")):
        return text
    text = text.replace(" ", "T", 1)
    return text + ":00" if _OFFSET.search(text, 11) else text


def _json(raw: bytes) -> object:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return _text(raw)
    return orjson.Fragment(raw)


def _array(element: Loader, delimiter: str = ",") -> Loader:
    def load(raw: bytes) -> object:
        text = _text(raw)
        if text.startswith("["):  # bounds that do not begin at 1: "[0:1]={…}"
            text = text.partition("=")[2]
        stack: list[list[object]] = [[]]
        for token in _ARRAY_TOKEN.finditer(text):
            quoted, plain = token.groups()
            if quoted is not None:
                stack[-1].append(element(re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL).encode()))
            elif plain is not None:
                stack[-1].append(None if plain == "NULL" else element(plain.encode()))
            elif token[0] == "{":
                stack.append([])
            elif token[0] == "}":
                if len(stack) < 2:
                    return text
                done = stack.pop()
                stack[-1].append(done)
            elif token[0] != delimiter:
                return text
        return stack[0][0] if len(stack) == 1 and len(stack[0]) == 1 else text

    return load


_SCALARS: Final[dict[int, Loader]] = {
    16: _bool,
    20: _integer,
    21: _integer,
    23: _integer,
    26: _integer,
    114: _json,
    3802: _json,
    700: _float,
    701: _float,
    1114: _moment,
    1184: _moment,
    1700: _numeric,
}

_ARRAYS: Final[dict[int, Loader]] = {
    1000: _array(_bool),
    1231: _array(_numeric),
    **dict.fromkeys((1115, 1185), _array(_moment)),
    **dict.fromkeys((1005, 1007, 1016, 1028), _array(_integer)),
    **dict.fromkeys((1021, 1022), _array(_float)),
    **dict.fromkeys((199, 3807), _array(_json)),
    # bytea, "char", char(n), varchar, text, name, uuid, date, time, timetz, interval, inet, cidr, macaddr, bit, varbit,
    # money, xml, ranges
    **dict.fromkeys(
        (
            *(1001, 1002, 1014, 1015, 1009, 1003, 2951, 1182, 1183, 1270, 1187, 1041, 651, 1040, 1561, 1563, 791, 143),
            *(3905, 3907, 3909, 3911, 3913, 3927),
        ),
        _array(_text),
    ),
}

ARRAYS: Final = frozenset(_ARRAYS)
"""Types of which each value becomes a list."""


def loaders(columns: Sequence[Column]) -> list[tuple[str, Loader]]:
    """Name and loader of each column, in order."""
    return [(column.name, _SCALARS.get(column.type_oid) or _ARRAYS.get(column.type_oid, _text)) for column in columns]


def as_object(columns: Sequence[tuple[str, Loader]], row: Sequence[bytes | None]) -> bytes:
    """A row as a JSON object. Of columns with the same name the last one wins."""
    return orjson.dumps(
        {name: None if raw is None else load(raw) for (name, load), raw in zip(columns, row, strict=True)}
    )
