"""Each outcome tells its caller which limit, what was used and what was allowed, in words and in metadata."""

import pytest

from engines.contract import LimitHit, Metrics, Outcome, Result, ScriptError
from server.errors import DeadlineExceeded, FunctionFailed, ResourceExhausted, Unavailable
from server.functions.outcomes import TABLE, error_of, quantity


def test_every_outcome_but_ok_has_a_row() -> None:
    assert set(TABLE) == set(Outcome) - {Outcome.OK}
    reasons = [reason for _, reason, _ in TABLE.values()]
    assert len(set(reasons)) == len(reasons)


def test_a_throw_carries_message_stack_and_code() -> None:
    thrown = ScriptError(name="TypeError", message="x is not a function", stack="at main (hello.js:3)", code="E_X")
    error = error_of(Result(outcome=Outcome.EXCEPTION, error=thrown, metrics=Metrics(wall_ms=1.5, memory_bytes=9)))
    assert isinstance(error, FunctionFailed)
    assert error.message == "The function threw TypeError: x is not a function"
    assert error.metadata == {
        "name": "TypeError",
        "stack": "at main (hello.js:3)",
        "code": "E_X",
        "wall_ms": "1.500",
        "memory_bytes": "9",
    }


def test_braces_in_what_was_thrown_are_only_text() -> None:
    error = error_of(Result(outcome=Outcome.EXCEPTION, error=ScriptError(name="E", message="{0} {used} {{")))
    assert error.message == "The function threw E: {0} {used} {{"


LIMITS = [
    (Outcome.WALL_LIMIT, LimitHit(limit="wall_clock", used=5003.2, allowed=5000, unit="ms"), DeadlineExceeded, "5 s"),
    (Outcome.CPU_LIMIT, LimitHit(limit="cpu", used=251.5, allowed=250, unit="ms"), ResourceExhausted, "250 ms"),
    (
        Outcome.MEMORY_LIMIT,
        LimitHit(limit="memory", used=2**24, allowed=2**24, unit="bytes"),
        ResourceExhausted,
        "16 MiB",
    ),
    (
        Outcome.FETCH_LIMIT,
        LimitHit(limit="fetch_calls", used=6, allowed=5, unit="calls"),
        ResourceExhausted,
        "6 calls of 5",
    ),
    (
        Outcome.RESULT_LIMIT,
        LimitHit(limit="result_size", used=9e7, allowed=5e6, unit="bytes"),
        ResourceExhausted,
        "MiB",
    ),
]


@pytest.mark.parametrize(("outcome", "hit", "error_class", "text"), LIMITS)
def test_a_limit_says_used_and_allowed(outcome: Outcome, hit: LimitHit, error_class: type, text: str) -> None:
    error = error_of(Result(outcome=outcome, limit=hit))
    assert type(error) is error_class
    assert text in error.message
    assert (error.metadata["limit"], error.metadata["unit"]) == (hit.limit, hit.unit)
    assert float(error.metadata["used"]) == hit.used
    assert float(error.metadata["allowed"]) == hit.allowed


def test_overload_asks_to_come_back() -> None:
    hit = LimitHit(limit="queue", used=5000, allowed=5000, unit="ms")
    error = error_of(Result(outcome=Outcome.OVERLOADED, limit=hit))
    assert isinstance(error, Unavailable)
    assert error.retry_after_ms == 1000


@pytest.mark.parametrize(
    ("amount", "unit", "text"),
    [
        (1, "calls", "1 call"),
        (0, "calls", "0 calls"),
        (5000, "ms", "5 s"),
        (12.5, "ms", "12.5 ms"),
        (512, "bytes", "512 bytes"),
    ],
)
def test_quantities_read_as_people_write_them(amount: float, unit: str, text: str) -> None:
    assert quantity(amount, unit) == text
