"""A part of `make chaos-cdc`: pgbench changes rows while all on their way is killed, and each is an event once."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from server.cdc.position import Position
from server.events.envelope import Change, Event
from server.events.json_text import Json, read
from tests.acceptance.chaos_cdc import VICTIMS, Plan, run
from tests.acceptance.chaos_pgbench import CHANGES
from tests.acceptance.chaos_replay import Replay, follows, spelled

SEED = 5
TRANSACTIONS = 400
SECONDS = 6.0


def test_every_change_is_an_event_once_whatever_is_killed_meanwhile() -> None:
    plan = Plan(TRANSACTIONS * CHANGES, SECONDS, SEED, whole=False)
    print(plan)
    report = run(plan)
    print(report)
    assert not report.problems, report.problems[:20]
    assert report.changes >= plan.changes
    assert report.kills.keys() == {*VICTIMS}
    assert report.turns > 1


ONE, TWO, THREE = ({"id": 1, "v": v} for v in (1, 2, 3))
LIFE = [("INSERT", ONE, None), ("UPDATE", TWO, ONE), ("UPDATE", THREE, TWO), ("DELETE", THREE, THREE)]
PLACES = [(1, 1), (1, 2), (2, 1), (3, 1)]
"""Commit and number of the change in it."""


def replayed(changes: list[tuple[str, Any, Any]], places: list[tuple[int, int]], table: str = "t") -> Replay:
    replay = Replay({"t": "id", "loose": None})
    for (op, data, old), place in zip(changes, places, strict=True):
        change = Change(op=op, schema="s", table=table, old=None if old is None else json_of(old))
        replay.take(an_event(f"atlas_cdc_1_2-{place[0]:x}-{place[1]}", op, data, change))
    return replay


def an_event(event_id: str, op: str, data: Any, change: Change | None = None) -> Event:
    told: dict[str, Any] = {"time": datetime.now(UTC), "source": "cdc", "data": json_of(data)}
    return Event(id=event_id, type=f"cdc.{op}.t", project_id="p", change=change, **told)


def json_of(value: Any) -> Json:
    return read(json.dumps(value).encode())


def without(number: int) -> Replay:
    return replayed(*([*each[:number], *each[number + 1 :]] for each in (LIFE, PLACES)))  # type: ignore[arg-type]


class TestReplay:
    """So that the test above can fail."""

    def test_what_is_right(self) -> None:
        replay = replayed(LIFE, PLACES)
        replay.compare(("p", "t"), [])
        replay.expect("p", {"cdc.INSERT.t": 1, "cdc.UPDATE.t": 2, "cdc.DELETE.t": 1, "cdc.TRUNCATE.t": 0})
        assert replay.problems == []
        replay = replayed(LIFE[:2], PLACES[:2])
        replay.compare(("p", "t"), [TWO])
        assert replay.problems == []

    @pytest.mark.parametrize("lost", range(3))
    def test_a_lost_change(self, lost: int) -> None:
        assert without(lost).problems

    def test_the_last_change_lost(self) -> None:
        replay = without(3)
        replay.compare(("p", "t"), [])
        assert replay.problems == [f"t has no {spelled(THREE)}, of which an event tells"]

    def test_rows_that_are_in_no_event(self) -> None:
        replay = replayed([], [])
        replay.compare(("p", "t"), [ONE])
        replay.expect("p", {"cdc.INSERT.t": 1})
        assert replay.problems == [
            f"t has {spelled(ONE)}, of which no event tells",
            "there are 0 cdc.INSERT.t, not 1",
        ]

    def test_one_that_is_there_twice(self) -> None:
        assert "atlas_cdc_1_2-2-1 is there twice" in replayed([*LIFE[:3], LIFE[2]], [*PLACES[:3], PLACES[2]]).problems

    def test_one_that_is_there_twice_under_another_id(self) -> None:
        assert replayed([*LIFE[:3], LIFE[2]], PLACES).problems
        replay = replayed([LIFE[0], LIFE[0]], [(1, 1), (2, 1)], "loose")
        replay.compare(("p", "loose"), [ONE])
        assert replay.problems == [f"loose has no {spelled(ONE)}, of which an event tells"]

    def test_one_out_of_order(self) -> None:
        assert replayed([LIFE[0], LIFE[2], LIFE[1]], [(1, 1), (3, 1), (2, 1)]).problems

    def test_a_gap(self) -> None:
        replay = Replay({})
        replay.take(an_event("atlas_cdc_1_2-0-1", "gap", {"reason": "lost"}))
        assert replay.problems

    @pytest.mark.parametrize(
        ("position", "right"),
        [
            (Position("a", 5, 3), True),
            (Position("a", 6, 1), True),
            (Position("a", 5, 4), False),
            (Position("a", 5, 2), False),
            (Position("a", 6, 2), False),
            (Position("a", 4, 1), False),
            (Position("b", 6, 1), False),
        ],
    )
    def test_what_follows(self, position: Position, right: bool) -> None:
        assert follows(position, Position("a", 5, 2)) is right
