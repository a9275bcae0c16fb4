"""From the code an engine ran back to the source its author wrote: source maps, and stacks put through them.

A map is the usual JSON (version 3) and one key of ours beside it, so that a frame costs one line and not the whole map:

    "starts": [[source, line, column], …]     the running totals of `mappings` where each generated line begins
"""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

_DIGITS = {char: value for value, char in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}
_PLACE = re.compile(r"<input>:(\d{1,9})(?::(\d{1,9}))?")
_PRELUDE_LINE = 1  # engines/quickjs/prelude: all of ours is on line 1, a program begins on line 2
_LONGEST_NAME = 200

Place = tuple[str, int, int]
"""Source file, line and column, both from 1."""


def finish_map(raw: bytes, *, shift_lines: int) -> bytes:
    """A compiler's map made ready for `translate_stack`, its code moved down by `shift_lines`.

    Takes time in proportion to the map, about a second for 5 MB: call it when deploying, off the event loop. Raises
    ValueError when it is no source map.
    """
    parsed = json.loads(raw)
    mappings = ";" * shift_lines + parsed["mappings"]
    starts = []
    reached = [0, 0, 0]
    for line in mappings.split(";"):
        starts.append(reached)
        for segment in _segments(line, reached):
            reached = list(segment[1:])
    kept = {"version": 3, "sources": parsed["sources"], "names": [], "mappings": mappings, "starts": starts}
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode()


def translate_stack(stack: str, source_map: bytes) -> str:
    """A QuickJS stack with places of the author's source, and without the frames of our own prelude.

    A place the map does not know is told as `<generated>`. Anything that is not a place stays as it is.
    """

    def place(match: re.Match[str]) -> str:
        found = locate(source_map, int(match[1]), int(match[2] or 1))
        return "<generated>" if found is None else f"{found[0]}:{found[1]}:{found[2]}"

    kept = [line for line in stack.split("\n") if not _is_ours(line)]
    return _PLACE.sub(place, "\n".join(kept))


def locate(source_map: bytes, line: int, column: int) -> Place | None:
    """The author's place for a place in the generated code, both counted from 1; None when there is none."""
    sources, lines, starts = _opened(source_map)
    if not 1 <= line <= len(starts):
        return None
    best = None
    for generated, source, source_line, source_column in _segments(lines[line - 1], starts[line - 1]):
        if generated > column - 1 and best is not None:
            break
        best = (source, source_line, source_column)
    if best is None or not 0 <= best[0] < len(sources):
        return None
    return str(sources[best[0]])[:_LONGEST_NAME], best[1] + 1, best[2] + 1


def _is_ours(line: str) -> bool:
    place = _PLACE.search(line)
    return place is not None and line.lstrip().startswith("at ") and int(place[1]) == _PRELUDE_LINE


@lru_cache(maxsize=32)
def _opened(source_map: bytes) -> tuple[list[Any], list[str], list[list[int]]]:
    parsed = json.loads(source_map)
    return parsed.get("sources", []), parsed.get("mappings", "").split(";"), parsed.get("starts", [])


def _segments(line: str, start: list[int]) -> Iterator[tuple[int, int, int, int]]:
    """The mapped segments of one generated line: its column, then source, line and column there, all from 0."""
    generated = 0
    source, source_line, source_column = start
    for segment in line.split(",") if line else ():
        deltas = _vlq(segment)
        generated += deltas[0]
        if len(deltas) >= 4:
            source += deltas[1]
            source_line += deltas[2]
            source_column += deltas[3]
            yield generated, source, source_line, source_column


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
