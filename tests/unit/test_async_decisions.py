"""What is decided about asynchronous and idempotent calls, without any database."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from engines.contract import LimitHit, Metrics, Outcome, Response, Result, ScriptError
from server.errors import AtlasError, InvalidArgument, NotFound, Unavailable
from server.functions.outcomes import error_of
from server.invocations.answers import pack, unpack
from server.invocations.async_queue import Claimed, shares
from server.invocations.attempts import BACKOFF_S, GIVE_UP_S, Attempts, Retry, died, fault, outcome_of, retry
from server.invocations.idempotency import counts, fingerprint, parse_key
from server.invocations.invoke import Body, Call, Finished, Request
from server.runs.record import RunRecord
from tests.fix_runs import a_record

RUN_ID = str(uuid4())
CALL = Call(
    project_id=str(uuid4()), tier=None, slug="f", body=Body(kind="json", data=b"1"), request=Request(), run_id=RUN_ID
)
CLAIMED = Claimed(call=CALL, lease=str(uuid4()), attempts=1, refusals=0, created_at=datetime.now(UTC))
DONE = Finished(RUN_ID, Result(outcome=Outcome.OK))


def error(outcome: Outcome) -> AtlasError:
    hit = LimitHit(limit="wall_clock", used=5001, allowed=5000, unit="ms")
    return error_of(Result(outcome=outcome, limit=hit, error=ScriptError(name="Error", message="no", stack="at f")))


@pytest.mark.parametrize(
    ("free", "running", "given"),
    [
        (0, {"a": 0}, {}),
        (3, {}, {}),
        (3, {"a": 0}, {"a": 3}),
        (4, {"a": 0, "b": 0}, {"a": 2, "b": 2}),
        (4, {"a": 5, "b": 2}, {"b": 3, "a": 1}),
        (5, {"a": 3, "b": 1, "c": 0}, {"c": 3, "b": 2}),
    ],
)
def test_places_go_to_whoever_has_the_fewest(free: int, running: dict[str, int], given: dict[str, int]) -> None:
    assert shares(free, running) == given


@pytest.mark.parametrize(
    ("free", "running", "given"),
    [
        (5, {"a": 0}, {"a": 3}),
        (2, {"a": 0}, {"a": 1}),
        (2, {"a": 1}, {}),
        (3, {"a": 1}, {"a": 1}),
        (3, {"a": 9, "b": 0, "c": 0, "d": 0}, {"b": 1, "c": 1, "d": 1}),
        (2, {"a": 9, "b": 0}, {"b": 1}),
    ],
)
def test_the_last_places_are_for_whoever_has_none(free: int, running: dict[str, int], given: dict[str, int]) -> None:
    assert shares(free, running, reserved=2) == given


def test_what_ended_is_not_tried_again() -> None:
    for outcome in Outcome:
        if outcome not in (Outcome.OK, Outcome.OVERLOADED):
            assert retry(error(outcome), CLAIMED, age_s=0) is None
    assert retry(DONE, CLAIMED, age_s=0) is None
    assert retry(NotFound("gone", reason="FUNCTION_NOT_FOUND"), CLAIMED, age_s=0) is None
    assert retry(died(RUN_ID), replace(CLAIMED, attempts=4), age_s=0) is None


def test_what_found_no_sandbox_comes_back_later_and_later_for_a_day() -> None:
    overloaded = error(Outcome.OVERLOADED)
    assert retry(overloaded, CLAIMED, age_s=0) == Retry(BACKOFF_S[0], attempts=0, refusals=1)
    assert retry(overloaded, replace(CLAIMED, refusals=99), age_s=0) == Retry(BACKOFF_S[-1], attempts=0, refusals=100)
    assert retry(overloaded, CLAIMED, age_s=GIVE_UP_S) is None
    assert outcome_of(overloaded) is Outcome.OVERLOADED


def test_a_fault_of_ours_counts_as_an_attempt() -> None:
    assert retry(fault(RUN_ID), CLAIMED, age_s=0) == Retry(BACKOFF_S[1], attempts=1, refusals=0)
    assert retry(fault(RUN_ID), replace(CLAIMED, attempts=3), age_s=0) is None
    assert outcome_of(fault(RUN_ID)) is Outcome.CRASHED


def test_only_the_record_of_the_last_attempt_leaves() -> None:
    seen: list[RunRecord] = []

    class Seen:
        def add(self, record: RunRecord) -> None:
            seen.append(record)

    attempts, mine, other = Attempts(Seen()), a_record(CALL.project_id), a_record(CALL.project_id)
    attempts.begin(mine.run.id)
    attempts.add(mine)
    attempts.add(other)
    assert (seen, attempts.end(mine.run.id), attempts.end(mine.run.id)) == ([other], mine, None)


@pytest.mark.parametrize(
    "result",
    [
        Result(outcome=Outcome.OK, value=b'{"a":\n[1]}', metrics=Metrics(wall_ms=1.5, memory_bytes=7)),
        Result(outcome=Outcome.OK, value=b"", metrics=Metrics(fuel_consumed=2**60)),
        Result(
            outcome=Outcome.OK,
            response=Response(status=201, headers=(("a", "\ud800\n"), ("a", "2")), body=b"\x00\n\xff"),
        ),
    ],
)
def test_answers_survive_storage(result: Result) -> None:
    assert unpack(pack(Finished(RUN_ID, result))) == Finished(RUN_ID, result)


@pytest.mark.parametrize(
    "told",
    [
        *(error(outcome) for outcome in Outcome if outcome is not Outcome.OK),
        InvalidArgument("body", "bad \ud800", reason="X", used="1"),
        NotFound("gone", reason="FUNCTION_NOT_FOUND", metadata={"slug": "\0"}),
    ],
    ids=lambda told: told.reason,
)
def test_errors_survive_storage(told: AtlasError) -> None:
    seen = unpack(pack(told))
    assert type(seen) is type(told)
    assert vars(seen) == vars(told)


def test_what_counts_as_an_answer() -> None:
    by_outcome = {outcome: counts(error(outcome)) for outcome in Outcome if outcome is not Outcome.OK}
    assert {outcome for outcome, stored in by_outcome.items() if not stored} == {
        Outcome.CANCELLED,
        Outcome.OVERLOADED,
    }
    for before in (
        NotFound("gone", reason="FUNCTION_NOT_FOUND"),
        Unavailable("away", reason="CONTROL_DATABASE_UNAVAILABLE"),
        fault(RUN_ID),
    ):
        assert not counts(before)


def test_the_fingerprint_is_of_all_that_a_function_is_told_to_do() -> None:
    def changed(**fields: Any) -> bytes:
        return fingerprint(replace(CALL, **fields), "sync")

    same = changed(run_id=str(uuid4()), request_id="x", request=Request(headers={"a": "b"}))
    assert same == fingerprint(CALL, "sync")
    prints = [
        same,
        fingerprint(CALL, "async"),
        changed(body=Body(kind="text", data=b"1")),
        changed(body=Body(kind="json", data=b"2")),
        changed(request=Request(method="PUT")),
        changed(request=Request(path="/a")),
        changed(request=Request(query={"amount": "5"})),
        changed(request=Request(query={"amount": "500"})),
    ]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("key", ["", "x" * 256, "a\n", "ä", "\x7f"])
def test_bad_keys(key: str) -> None:
    with pytest.raises(InvalidArgument, match="idempotency key"):
        parse_key(key)


def test_good_keys() -> None:
    assert [parse_key(key) for key in ("a", "x" * 255, "a b~")] == ["a", "x" * 255, "a b~"]
