# ruff: noqa: E501 (programs and stacks in strings)
"""Source maps: places found, stacks translated, and maps that are not there."""

import json
from unittest.mock import Mock

import pytest

from engines import sourcemap
from engines.sourcemap import MOST_PLACES, STRIDE, finish_map, locate, translate_stack

# Generated lines 1 and 2; line 2 has two segments, from (0, 0, 0) and (0, 2, 4).
RAW = json.dumps({"version": 3, "sources": ["f.ts"], "names": ["x"], "mappings": "AAAA;AACA,IAEI"}).encode()
FINISHED = finish_map(RAW, shift_lines=1)


@pytest.mark.parametrize(
    ("line", "column", "place"),
    [
        (1, 1, None),
        (2, 1, ("f.ts", 1, 1)),
        (2, 99, ("f.ts", 1, 1)),
        (3, 1, ("f.ts", 2, 1)),
        (3, 4, ("f.ts", 2, 1)),
        (3, 5, ("f.ts", 4, 5)),
        (4, 1, None),
        (0, 0, None),
        (999_999_999, 1, None),
    ],
)
def test_places(line: int, column: int, place: tuple[str, int, int] | None) -> None:
    assert locate(FINISHED, line, column) == place


def test_places_in_a_long_line_are_found_from_its_marks() -> None:
    segments = 10 * STRIDE + 3  # each two columns on in the code, one line down and two columns on in the source
    raw = {"version": 3, "sources": ["f.ts"], "mappings": ",".join(["EACE"] * segments)}
    one_line = finish_map(json.dumps(raw).encode(), shift_lines=0)
    for number in range(segments):
        for column in (2 * number + 3, 2 * number + 4):
            assert locate(one_line, 1, column) == ("f.ts", number + 2, 2 * number + 3)
    assert locate(one_line, 1, 1) == ("f.ts", 2, 3)


def test_a_stack_of_a_thousand_places_reads_little_of_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = {"version": 3, "sources": ["f.ts"], "mappings": ",".join(["EACE"] * 10_000)}
    one_line = finish_map(json.dumps(raw).encode(), shift_lines=0)
    read = Mock(wraps=sourcemap._vlq)
    monkeypatch.setattr(sourcemap, "_vlq", read)
    stack = translate_stack("<input>:1:20001\n" * 1_000, one_line)
    assert stack.count("f.ts:10001:") == MOST_PLACES
    assert read.call_count <= MOST_PLACES * STRIDE


def test_a_stack_loses_our_frames_and_gains_places() -> None:
    stack = "    at f (<input>:3:5)\n    at map (native)\n    at start (<input>:1:13000)\n    at <input>:2:1\n    at g (<input>:9:9)\n"
    assert translate_stack(stack, FINISHED) == (
        "    at f (f.ts:4:5)\n    at map (native)\n    at f.ts:1:1\n    at g (<generated>)\n"
    )


@pytest.mark.parametrize("text", ["", "no places", "<input>", "<input>:x", "at <input>:12345678901234567890:1"])
def test_anything_else_stays(text: str) -> None:
    assert translate_stack(text, FINISHED) in (text, text.replace("<input>:123456789", "<generated>"))


@pytest.mark.parametrize(
    "empty", [b'{"version":3,"mappings":""}', b'{"version":3,"sources":[],"mappings":"AAAA","marks":[[[0,0,0,0,0]]]}']
)
def test_a_map_that_maps_nothing(empty: bytes) -> None:
    assert translate_stack("    at f (<input>:2:1)", empty) == "    at f (<generated>)"


def test_a_raw_map_must_be_one() -> None:
    with pytest.raises(ValueError, match="Expecting"):
        finish_map(b"not json", shift_lines=1)


def test_a_stack_of_v8_is_translated_too() -> None:
    stack = (
        "    at async f (<input>:3:5)\n    at Array.map (<anonymous>)\n    at start (<input>:1:13000)\n"
        "    at eval (eval at g (<input>:2:1), <anonymous>:1:7)\n    at async <input>:3:5\n"
    )
    assert translate_stack(stack, FINISHED) == (
        "    at async f (f.ts:4:5)\n    at Array.map (<anonymous>)\n"
        "    at eval (eval at g (f.ts:1:1), <anonymous>:1:7)\n    at async f.ts:4:5\n"
    )
