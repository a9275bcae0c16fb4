"""From the code an engine ran back to the source its author wrote: source maps, and stacks put through them.

A map is the usual JSON (version 3) and one key of ours beside it, so that a place costs STRIDE segments and not the
whole map, nor a whole line of it: code may be one line, and a stack may name as many places as it has room for.

    "marks": "column,source,line,column,offset …;…"
        for each generated line, after its start and every STRIDE segments: the running totals, and where in the line's
        part of `mappings` it goes on from there. Text, because only the lines that are asked for are ever read
"""

import json
import re
from bisect import bisect_right
from functools import lru_cache
from itertools import zip_longest
from operator import itemgetter
from typing import Any

_DIGITS = {char: value for value, char in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}
CODE_FILE = "<input>:"
_PLACE = re.compile(CODE_FILE + r"(\d{1,9})(?::(\d{1,9}))?")
_PRELUDE_LINE = 1  # engines/quickjs/prelude: all of ours is on line 1, a program begins on line 2
_LONGEST_NAME = 200

STRIDE = 16
MOST_PLACES = 200
"""Translated in one text; whatever has more was not written by an engine."""

Place = tuple[str, int, int]
"""Source file, line and column, both from 1."""


def finish_map(raw: bytes, *, shift_lines: int) -> bytes:
    """A compiler's map made ready for `translate_stack`, its code moved down by `shift_lines`.

    Takes time in proportion to the map, about a second for 5 MB: call it when deploying, off the event loop. Raises
    ValueError when it is no source map.
    """
    parsed = json.loads(raw)
    mappings = ";" * shift_lines + parsed["mappings"]
    marks: list[str] = []
    reached = [0, 0, 0, 0]
    for line in mappings.split(";"):
        reached[0], offset = 0, 0
        found = [_mark(reached, offset)]
        for number, segment in enumerate(line.split(",") if line else (), 1):
            reached = _after(reached, _vlq(segment))
            offset += len(segment) + 1
            if number % STRIDE == 0:
                found.append(_mark(reached, offset))
        marks.append(" ".join(found))
    kept = {"version": 3, "sources": parsed["sources"], "names": [], "mappings": mappings, "marks": ";".join(marks)}
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode()


def translate_stack(stack: str, source_map: bytes) -> str:
    """A QuickJS stack with places of the author's source, and without the frames of our own prelude.

    A place the map does not know is told as `<generated>`. Anything that is not a place stays as it is.
    """

    def place(match: re.Match[str]) -> str:
        found = locate(source_map, int(match[1]), int(match[2] or 1))
        return "<generated>" if found is None else f"{found[0]}:{found[1]}:{found[2]}"

    kept = [line for line in stack.split("\n") if not _is_ours(line)]
    return _PLACE.sub(place, "\n".join(kept), MOST_PLACES)


def locate(source_map: bytes, line: int, column: int) -> Place | None:
    """The author's place for a place in the generated code, both counted from 1; None when there is none."""
    sources, lines, marks = _opened(source_map)
    if not 1 <= line <= len(marks):
        return None
    here = _read(marks[line - 1])
    nearest = max(0, bisect_right(here, column - 1, key=itemgetter(0)) - 1)
    *reached, begin = here[nearest]
    end = here[nearest + 1][-1] - 1 if nearest + 1 < len(here) else None
    best = reached if nearest else None
    for segment in filter(None, lines[line - 1][begin:end].split(",")):
        deltas = _vlq(segment)
        reached = _after(reached, deltas)
        if reached[0] > column - 1 and best is not None:
            break
        if len(deltas) >= 4:
            best = reached
    if best is None or not 0 <= best[1] < len(sources):
        return None
    return str(sources[best[1]])[:_LONGEST_NAME], best[2] + 1, best[3] + 1


def _is_ours(line: str) -> bool:
    place = _PLACE.search(line)
    return place is not None and line.lstrip().startswith("at ") and int(place[1]) == _PRELUDE_LINE


@lru_cache(maxsize=8)
def _opened(source_map: bytes) -> tuple[list[Any], list[str], list[str]]:
    """Sources, and by generated line its mappings and its marks; a map without marks of this form maps nothing."""
    parsed = json.loads(source_map)
    marks = parsed.get("marks")
    return (
        parsed.get("sources", []),
        parsed.get("mappings", "").split(";"),
        marks.split(";") if type(marks) is str else [],
    )


def _mark(reached: list[int], offset: int) -> str:
    return ",".join(map(str, (*reached, offset)))


@lru_cache(maxsize=64)
def _read(marks: str) -> list[list[int]]:
    return [[int(number) for number in mark.split(",")] for mark in marks.split(" ")]


def _after(reached: list[int], deltas: list[int]) -> list[int]:
    """The running totals, generated column, source, line and column, all from 0, after one more segment."""
    return [total + delta for total, delta in zip_longest(reached, deltas[:4], fillvalue=0)]


def _vlq(segment: str) -> list[int]:
    values, value, shift = [], 0, 0
    for char in segment:
        digit = _DIGITS[char]
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            values.append(-(value >> 1) if value & 1 else value >> 1)
            value = shift = 0
    return values
