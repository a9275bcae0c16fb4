"""A part of `make chaos-cdc`: pgbench changes rows while everything on their way is killed, and each is an event once."""

from datetime import UTC, datetime
from typing import Any

import pytest

from server.cdc.position import Position
from server.events.envelope import Change, Event
from server.events.json_text import from_value
from tests.acceptance.chaos_cdc import VICTIMS, Plan, run
from tests.acceptance.chaos_pgbench import CHANGES, OPS
from tests.acceptance.chaos_replay import Replay

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


def replayed(*changes: tuple[str, Any, Any], of: tuple[int, ...] = (), leave_out: int | None = None) -> Replay:
    """Changes of a table by operation, row and row before, each its own transaction, or as `of` says."""
    replay = Replay({"t": "id", "loose": None})
    for number, (op, data, old) in enumerate(changes):
        if number == leave_out:
            continue
        lsn = of[number] if of else number + 1
        position = Position("atlas_cdc_1_2", lsn, 1 + of[:number].count(lsn))
        change = Change(op=op, schema="s", table="t", old=None if old is None else from_value(old))
        told = {"time": datetime.now(UTC), "source": "cdc", "data": from_value(data), "change": change}
        replay.take(Event(id=position.event_id, type=f"cdc.{op}.t", project_id="p", **told))
    return replay


ONE, TWO, THREE = ({"id": 1, "v": v} for v in (1, 2, 3))
LIFE = (("INSERT", ONE, None), ("UPDATE", TWO, ONE), ("UPDATE", THREE, TWO), ("DELETE", THREE, THREE))
