"""Log lines: one JSON object a line whatever is logged."""

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator

import pytest

from server import log

Lines = Callable[[], list[dict[str, object]]]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    root, stderr = logging.getLogger("atlas"), io.StringIO()
    before = (root.handlers, root.propagate, root.level)
    monkeypatch.setattr(sys, "stderr", stderr)
    log.configure("info")
    yield lambda: [json.loads(line) for line in stderr.getvalue().split("\n")[:-1]]
    root.handlers, root.propagate = before[:2]
    root.setLevel(before[2])


def test_a_line_has_action_sentence_and_fields(lines: Lines) -> None:
    log.logger("rpc").warning("rpc.slow", "A call was slow", took_ms=12.5)
    (line,) = lines()
    assert line.pop("time")
    assert line == {
        "level": "warning",
        "logger": "atlas.rpc",
        "action": "rpc.slow",
        "message": "A call was slow",
        "took_ms": 12.5,
    }


def test_lower_levels_are_left_out(lines: Lines) -> None:
    log.logger("rpc").debug("rpc.detail", "not shown")
    log.logger("rpc").info("rpc.start", "shown")
    assert [line["action"] for line in lines()] == ["rpc.start"]


@pytest.mark.parametrize("text", ["%s %d %(name)s", "two\nlines\r\u2028", "\ud800 lone", "\0", '{"level": "error"}'])
def test_hostile_text_stays_one_line_and_as_it_is(lines: Lines, text: str) -> None:
    log.logger("functions").info("function.log", text, big=2**70, odd=object)
    (line,) = lines()
    assert (line["message"], line["level"]) == (text, "info")


def test_an_exception_carries_its_traceback(lines: Lines) -> None:
    try:
        raise LookupError("gone")
    except LookupError:
        log.logger("rpc").exception("rpc.fault", "It failed")
    (line,) = lines()
    assert line["level"] == "error"
    assert str(line["traceback"]).endswith("LookupError: gone")
