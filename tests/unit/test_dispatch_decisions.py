"""What an attempt makes of a delivery, and how order keys are spelled."""

from typing import Any

import pytest

from engines.contract import Outcome, Response, Result
from server.dispatch import decisions
from server.dispatch.decisions import Ended, Verdict, decide, ended, may_begin
from server.dispatch.order import MAX_CHARS, order_key
from server.errors import AtlasError, Cancelled, Internal, NotFound, Unavailable, Unimplemented
from server.functions.outcomes import error_of
from server.invocations.invoke import Finished
from server.triggers.definition import NEVER_RETRIED, RETRIED, RetryPolicy

POLICY = RetryPolicy(attempts=3, backoff_ms=1_000, max_backoff_ms=3_000, max_age_s=60)
THREW = Ended(Outcome.EXCEPTION, "FUNCTION_EXCEPTION")
FULL = Ended(Outcome.OVERLOADED, "OVERLOADED", refused=True)


def verdict(end: Ended, **fields: Any) -> Verdict:
    given: dict[str, Any] = {"attempts": 1, "refusals": 0, "age_s": 0.0, "chance": 1.0}
    policy = fields.pop("policy", POLICY)
    return decide(end, policy, **given | fields)


def test_how_an_attempt_ended() -> None:
    assert ended(Finished("r", Result(outcome=Outcome.OK))) == decisions.OK
    for status, outcome in ((399, Outcome.OK), (400, Outcome.EXCEPTION), (503, Outcome.EXCEPTION)):
        response = Response(status=status, headers=(), body=b"")
        assert ended(Finished("r", Result(outcome=Outcome.OK, response=response))).outcome is outcome
    cases: list[tuple[AtlasError, Outcome, bool]] = [
        (error_of(Result(outcome=outcome)), outcome, outcome is Outcome.OVERLOADED)
        for outcome in Outcome
        if outcome is not Outcome.OK
    ]
    cases += [
        (NotFound("", reason="FUNCTION_NOT_FOUND"), Outcome.LOAD_FAILED, False),
        (Unimplemented("", reason="RUNTIME_UNAVAILABLE"), Outcome.LOAD_FAILED, False),
        (Unavailable("", reason="CONTROL_DATABASE_UNAVAILABLE"), Outcome.OVERLOADED, True),
        (Cancelled("", reason="X"), Outcome.CANCELLED, False),
        (Internal("", reason="SECRET_UNREADABLE"), Outcome.CRASHED, False),
    ]
    for error, outcome, refused in cases:
        assert (ended(error).outcome, ended(error).refused) == (outcome, refused), error.reason


def test_success_and_cancellation_are_the_end() -> None:
    assert verdict(decisions.OK).state == "done"
    assert verdict(Ended(Outcome.CANCELLED)).state == "cancelled"


def test_the_wait_doubles_to_its_most_and_is_drawn_from_nothing_on() -> None:
    policy = RetryPolicy(attempts=20, backoff_ms=1_000, max_backoff_ms=3_000, max_age_s=604_800)
    waits = [verdict(THREW, attempts=attempt, policy=policy).delay_s for attempt in (1, 2, 3, 19)]
    assert waits == [1.0, 2.0, 3.0, 3.0]
    assert verdict(THREW, chance=0.0).delay_s == 0.0
    assert verdict(THREW, attempts=2, chance=0.25).delay_s == 0.5


def test_attempts_and_age_end() -> None:
    assert [verdict(THREW, attempts=attempt).state for attempt in (1, 2, 3)] == ["queued", "queued", "dead"]
    assert verdict(THREW, age_s=59.0).state == "queued"
    late = verdict(THREW, age_s=59.5)
    assert (late.state, late.late) == ("dead", True)


@pytest.mark.parametrize("outcome", sorted(set(Outcome) - {Outcome.OK, Outcome.CANCELLED, Outcome.OVERLOADED}))
def test_which_outcomes_are_tried_again(outcome: Outcome) -> None:
    assert verdict(Ended(outcome)).state == ("queued" if outcome in RETRIED else "dead")
    everything = RetryPolicy(on=frozenset(Outcome))
    assert verdict(Ended(outcome), policy=everything).state == ("dead" if outcome in NEVER_RETRIED else "queued")


def test_a_refusal_is_no_attempt_and_ends_with_age_alone() -> None:
    assert verdict(FULL, attempts=1, refusals=500, age_s=10) == Verdict("queued", 0, 501, 15.0)
    assert verdict(FULL, refusals=0).delay_s == 0.25
    assert verdict(FULL, age_s=60).state == "dead"
    never = RetryPolicy(on=frozenset((Outcome.EXCEPTION,)))
    assert verdict(FULL, policy=never).state == "dead"
    assert verdict(Ended(Outcome.OVERLOADED, "AWAY", refused=True), policy=never).state == "queued"


def test_lost_attempts_count_and_the_first_is_never_too_late() -> None:
    assert may_begin(POLICY, attempts=1, age_s=1e9)
    assert not may_begin(POLICY, attempts=2, age_s=61)
    assert may_begin(POLICY, attempts=3, age_s=1)
    assert not may_begin(POLICY, attempts=4, age_s=1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a b", "a b"),
        (1, "1"),
        (1.0, "1"),
        (1.5, "1.5"),
        (-0.0, "0"),
        (2**70, str(2**70)),
        (True, "true"),
        ("é", "é"),
        ({"b": 1, "a": [None]}, '{"a":[null],"b":1}'),
        (None, None),
    ],
)
def test_the_spelling_of_an_order_key(value: object, text: str | None) -> None:
    assert order_key(("data", "k"), {"data": {"k": value}}) == text


@pytest.mark.parametrize("value", ["", "\0", "\ud800", "x" * (MAX_CHARS + 1), [[1] * 100], 10**200, "é\0"])
def test_what_cannot_be_stored_is_told_apart_by_its_hash(value: object) -> None:
    key = order_key(("data", "k"), {"data": {"k": value}})
    assert key is not None
    assert key.startswith("sha256:")
    assert len(key) == 71
    assert key != order_key(("data", "k"), {"data": {"k": [value]}})


def test_nothing_at_the_path_is_no_key() -> None:
    assert order_key(("data", "k"), {"data": 5}) is None
    assert order_key(("subject",), {}) is None
