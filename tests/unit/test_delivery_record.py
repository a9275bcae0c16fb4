"""Deliveries as they come out of their rows, and which dead letters a filter admits."""

from datetime import UTC, datetime
from typing import Any

import pytest

from server.dispatch.delivery import Trouble, delivery_of
from server.dispatch.parked_messages import ParkedMessage
from server.dispatch.replay import MAX_IDS, DeadLetters, refused
from server.errors import InvalidArgument

ID = "5f0f9f0e-0000-4000-8000-000000000001"
OTHER = "5f0f9f0e-0000-4000-8000-000000000002"
T0 = datetime(2026, 3, 1, tzinfo=UTC)


def a_row(**columns: Any) -> dict[str, Any]:
    return {
        "id": ID,
        "project_id": ID,
        "trigger_id": ID,
        "event_id": "e",
        "event_type": "order.paid",
        "state": "queued",
        "order_key": None,
        "due_at": T0,
        "run_id": None,
        "began_at": None,
        "attempts": 0,
        "replays": 0,
        "outcome": "",
        "error": None,
        "created_at": T0,
        "finished_at": None,
        "replayed_at": None,
        **columns,
    }


def test_without_history_it_has_none() -> None:
    found = delivery_of(a_row(state="running", run_id=ID, error={"reason": "R", "message": "m"}))
    assert (found.history, found.error) == ((), Trouble(reason="R", message="m"))


@pytest.mark.parametrize("state", ["queued", "dead", "done"])
def test_the_present_attempt_is_there_only_while_it_runs(state: str) -> None:
    ended = {"attempt": 1, "run_id": ID, "began_at": T0.isoformat(), "ended_at": None, "outcome": "lost"}
    columns = {"run_id": OTHER, "began_at": T0, "attempts": 2, "history": [ended]}
    assert [item.number for item in delivery_of(a_row(state=state, **columns)).history] == [1]
    first, now = delivery_of(a_row(state="running", **columns)).history
    assert (first.outcome, first.began_at, first.ended_at, first.error) == ("lost", T0, None, None)
    assert (now.number, now.run_id, now.began_at, now.outcome, now.ended_at) == (2, OTHER, T0, "", None)


def test_moments_of_the_history_are_in_utc_however_they_are_written() -> None:
    entry = {"attempt": 1, "outcome": "ok", "began_at": "2026-03-01T02:00:00.5+02:00"}
    (attempt,) = delivery_of(a_row(history=[entry])).history
    assert attempt.began_at == T0.replace(microsecond=500_000)
    assert (attempt.run_id, attempt.began_at.tzinfo) == ("", UTC)


@pytest.mark.parametrize(
    ("wanted", "admitted"),
    [
        (DeadLetters(), True),
        (DeadLetters(trigger=ID, event_type="order.paid", outcome="lost", reason="R"), True),
        (DeadLetters(trigger=OTHER), False),
        (DeadLetters(event_type="order"), False),
        (DeadLetters(outcome="exception"), False),
        (DeadLetters(reason="r"), False),
    ],
)
def test_all_that_is_named_has_to_be_so(wanted: DeadLetters, admitted: bool) -> None:
    row = {"trigger_id": ID, "event_type": "order.paid", "outcome": "lost", "error": {"reason": "R", "message": ""}}
    assert wanted.admits(row) is admitted


def test_one_without_an_error_has_no_reason() -> None:
    row = {"trigger_id": ID, "event_type": "order.paid", "outcome": "lost", "error": None}
    assert not DeadLetters(reason="R").admits(row)


def test_ids_are_checked_and_bounded() -> None:
    assert DeadLetters(ids=[ID.upper()] * MAX_IDS).checked().ids == (ID,) * MAX_IDS
    with pytest.raises(InvalidArgument, match="1000 are allowed"):
        DeadLetters(ids=[ID] * (MAX_IDS + 1)).checked()


@pytest.mark.parametrize(("state", "says"), [("done", "not run twice"), ("held", "resume"), ("running", "already")])
def test_a_refusal_says_what_to_do(state: str, says: str) -> None:
    assert says in refused(delivery_of(a_row(state=state))).message


@pytest.mark.parametrize(
    ("body", "whole", "text"),
    [
        (b"", 0, ""),
        ("ü\0".encode(), 3, "ü\0"),
        ("aü".encode()[:2], 3, "a"),
        ("a\N{GRINNING FACE}".encode()[:4], 5, "a"),
        ("aü".encode()[:2], 2, None),
        (b"\xffa", 100, None),
        (b"a\xff", 100, None),
    ],
)
def test_a_parked_body_is_text_but_for_a_character_that_was_cut(body: bytes, whole: int, text: str | None) -> None:
    parked = ParkedMessage(sequence=1, subject="s", reason="r", body=body, body_bytes=whole, parked_at=T0)
    assert parked.text == text
