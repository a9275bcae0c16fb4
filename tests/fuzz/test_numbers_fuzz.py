"""Whatever lies in a file of numbers, it is read as records or refused; what was written is read again."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from server.telemetry.numbers import Malformed, Numbers, parse

HEAD = b"atlas-n1" + bytes(8)
NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1, max_size=4).map(tuple)


@given(st.binary(max_size=300) | st.binary(max_size=300).map(HEAD.__add__))
def test_any_bytes(data: bytes) -> None:
    with contextlib.suppress(Malformed):
        for record in parse(data):
            assert record.name
            assert len(record.doubles) * 8 <= len(data)


@given(st.binary(max_size=40), st.integers(16, 200))
def test_damaged_bytes(damage: bytes, at: int) -> None:
    numbers = Numbers()
    for name in ("a", "b", "c"):
        numbers.row((name, "label"), 3)
    data = bytearray(bytes(numbers._map[:300]))
    data[at : at + len(damage)] = damage
    with contextlib.suppress(Malformed):
        list(parse(bytes(data)))


@given(st.dictionaries(NAMES, st.lists(st.floats(allow_nan=False), min_size=1, max_size=20), max_size=10))
def test_what_was_written_is_read(rows: dict[tuple[str, ...], list[float]]) -> None:
    numbers = Numbers()
    for name, values in rows.items():
        doubles, first = numbers.row(name, len(values))
        for index, value in enumerate(values):
            doubles[first + index] += value
    assert {record.name: list(record.doubles) for record in numbers.records()} == rows
