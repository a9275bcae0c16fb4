"""Who may have a slot, and how long a pair waits for one."""

import pytest

from server.dispatch import room as rooms
from server.dispatch.room import FIRST_PATIENCE_S, LEAST_PATIENCE_S, PATIENCE_S, Room


def test_one_trigger_has_a_quarter_of_the_slots_at_most_and_half_while_it_is_quick() -> None:
    room = Room(32)
    assert [room.take("a") for _ in range(9)] == [True] * 8 + [False]
    assert (room.free, room.left("a"), room.left("b")) == (24, 0, 8)
    room.used("a", 0.01)
    assert [room.take("a") for _ in range(9)] == [True] * 8 + [False]
    room.give_back("a")
    assert room.left("a") == 1
    for _ in range(20):
        room.used("a", 1.0)
    assert room.left("a") == 0


def test_the_last_slots_are_for_triggers_of_which_nothing_runs() -> None:
    room = Room(16)
    for trigger_id in "xyab":
        while room.take(trigger_id):
            pass
    assert room.free == 2
    assert [room.take(trigger_id) for trigger_id in "abcde"] == [False, False, True, True, False]
    assert (room.free, room.left("f")) == (0, 0)


def test_the_smallest_number_of_slots_serves() -> None:
    room = Room(1)
    assert room.take("a")
    assert not room.take("b")
    room.give_back("a")
    assert room.take("b")


def test_shares_go_one_by_one_to_the_one_of_which_the_fewest_run() -> None:
    room = Room(32)
    assert room.shares({}) == {}
    assert room.shares({"a": 100}) == {"a": 8}
    assert room.shares({"a": 100, "b": 2, "c": 0}) == {"a": 8, "b": 2}
    for _ in range(6):
        room.take("a")
    assert room.shares({"a": 100, "b": 100}) == {"a": 2, "b": 8}
    room.used("b", 0.01)
    assert room.shares({"b": 100}) == {"b": 16}
    for _ in range(16):
        room.take("c", however=True)
    assert room.shares(dict.fromkeys("bdefghijklmno", 1)) == dict.fromkeys("bdefghijkl", 1)


def test_what_must_have_a_slot_has_one() -> None:
    room = Room(2)
    assert [room.take("a", however=True) for _ in range(4)] == [True] * 4
    assert (room.free, room.shares({"b": 1})) == (-2, {})
    for _ in range(4):
        room.give_back("a")
    assert room.free == 2


def test_pairs_wait_longer_where_runs_are_quick() -> None:
    room = Room(8)
    assert room.patience_s("a") == FIRST_PATIENCE_S
    room.used("a", 0.5)  # its sandbox was made
    assert room.patience_s("a") == PATIENCE_S
    for _ in range(20):
        room.used("a", 1.0)
    assert room.patience_s("a") == LEAST_PATIENCE_S


def test_only_the_triggers_that_ran_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "REMEMBERED", 2)
    room = Room(32)
    for trigger_id in "abac":
        room.used(trigger_id, 0.01)
    assert [room.is_quick(trigger_id) for trigger_id in "abc"] == [True, False, True]
