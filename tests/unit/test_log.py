"""Log lines: one JSON object a line whatever is logged."""

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from server import log

Lines = Callable[[], list[dict[str, object]]]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    stderr = io.StringIO()
    loggers = (logging.root, logging.getLogger("atlas"))
    before = [(logger.handlers, logger.level) for logger in loggers]
    monkeypatch.setattr(sys, "stderr", stderr)
    log.configure("info")
    yield lambda: [json.loads(line) for line in stderr.getvalue().split("\n")[:-1]]
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers = handlers
        logger.setLevel(level)


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


def test_engines_and_libraries_write_the_same_lines(lines: Lines) -> None:
    logging.getLogger("engines.supervisor").error("It attacks: %s", "x", extra={"action": "sandbox_attack"})
    logging.getLogger("psycopg.pool").warning("error connecting")
    logging.getLogger("psycopg.pool").info("not shown")
    assert [(line["logger"], line["action"], line["message"]) for line in lines()] == [
        ("engines.supervisor", "sandbox_attack", "It attacks: x"),
        ("psycopg.pool", None, "error connecting"),
    ]


def test_what_a_terminal_would_obey_is_escaped(lines: Lines) -> None:
    text = "\x1b[2J \x9b31m \x7f \u2028 é"
    log.logger("functions").info("function.log", text)
    (line,) = lines()
    assert line["message"] == text
    assert not {*"\x1b\x9b\x7f\u2028"} & {
        *cast(logging.StreamHandler[io.StringIO], logging.root.handlers[0]).stream.getvalue()
    }
