"""What becomes of the pairs in hand."""

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest

from server.dispatch import planning
from server.dispatch.planning import Fired, choose
from server.dispatch.room import FIRST_PATIENCE_S, LEAST_PATIENCE_S, PATIENCE_S, Room


def fired(trigger_id: str = "a", key: str | None = None, since_s: float = 0.0, **columns: Any) -> Fired:
    trigger = SimpleNamespace(**{"id": trigger_id, "paused": False, "concurrency": None, "bridge": None} | columns)
    event = SimpleNamespace(project_id="p", id="e", type="t")
    made: Any = (SimpleNamespace(sequence=7), event, SimpleNamespace(trigger=trigger), None, "id", key, since_s)
    return Fired(*made)


def states(pairs: list[Fired], room: Room, *, waiting: str = "", now_s: float = 0.0) -> tuple[Counter[str], set[str]]:
    chosen, spilled = choose(pairs, room, lambda trigger_id: trigger_id in waiting, now_s)
    assert all(each.armed.trigger.id == pair.trigger_id for each, pair in chosen)
    return Counter(cast(str, pair.state) for _, pair in chosen), spilled


def test_what_a_trigger_asks_for_goes_before_room() -> None:
    room = Room(16)
    pairs = [fired(paused=True, key="k"), fired(key="k"), fired(concurrency=1), fired()]
    assert states(pairs, room) == ({"held": 1, "queued": 2, "running": 1}, set())
    assert room.taken == 1


def test_pairs_without_a_slot_stay_until_their_patience_is_over() -> None:
    room = Room(16)
    pairs = [fired() for _ in range(10)]
    assert states(pairs, room) == ({"running": 4}, set())
    assert states(pairs[4:], room, now_s=FIRST_PATIENCE_S) == ({}, set())
    assert states(pairs[4:], room, now_s=FIRST_PATIENCE_S + 0.01) == ({"queued": 6}, {"a"})
    room.used("a", 0.001)
    assert states(pairs[4:], room) == ({"running": 4}, set())
    assert states(pairs[8:], room, now_s=PATIENCE_S) == ({}, set())
    for _ in range(30):
        room.used("a", 5.0)
    assert states(pairs[8:], room, now_s=LEAST_PATIENCE_S + 0.01) == ({"queued": 2}, {"a"})


def test_a_full_trigger_leaves_others_their_slots() -> None:
    room = Room(16)
    pairs = [*(fired("a") for _ in range(100)), fired("b"), fired("c")]
    assert states(pairs, room) == ({"running": 6}, set())


def test_slow_ones_go_behind_what_is_queued_and_quick_ones_by() -> None:
    room = Room(16)
    assert states([fired("a"), fired("b")], room, waiting="a") == ({"queued": 1, "running": 1}, set())
    room.used("a", 0.001)
    assert states([fired("a")], room, waiting="a") == ({"running": 1}, set())


def test_a_transaction_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "PAIRS", 3)
    assert states([fired(paused=True) for _ in range(10)], Room(16))[0] == {"held": 3}
