"""Who may have a slot, and when runs take their turn."""

import asyncio

from server.dispatch.room import LEAST_PATIENCE_S, PATIENCE_S, Room
from server.dispatch.runs import Line
from tests.fix_runs import eventually


def test_one_trigger_has_half_of_the_slots_at_most() -> None:
    room = Room(16)
    assert [room.take("a") for _ in range(9)] == [True] * 8 + [False]
    assert (room.free, room.left("a"), room.left("b")) == (8, 0, 6)
    room.give_back("a")
    assert room.left("a") == 1


def test_the_last_slots_are_for_triggers_of_which_nothing_runs() -> None:
    room = Room(16)
    for trigger_id in "ab":
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
    room = Room(16)
    assert room.shares({}) == {}
    assert room.shares({"a": 100}) == {"a": 8}
    assert room.shares({"a": 100, "b": 2, "c": 0}) == {"a": 8, "b": 2}
    for _ in range(6):
        room.take("a")
    assert room.shares({"a": 100, "b": 100}) == {"a": 1, "b": 7}
    assert room.shares(dict.fromkeys("bcdefghijklm", 1)) == dict.fromkeys("bcdefghijk", 1)


def test_what_must_have_a_slot_has_one() -> None:
    room = Room(2)
    assert [room.take("a", however=True) for _ in range(4)] == [True] * 4
    assert (room.free, room.shares({"b": 1})) == (-2, {})
    for _ in range(4):
        room.give_back("a")
    assert room.free == 2


def test_pairs_wait_longer_where_runs_are_quick() -> None:
    room = Room(8)
    assert room.patience_s("a") == LEAST_PATIENCE_S
    room.used("a", 0.01)
    assert room.patience_s("a") == PATIENCE_S
    for _ in range(20):
        room.used("a", 1.0)
    assert room.patience_s("a") == LEAST_PATIENCE_S


async def test_a_few_at_a_time_and_nobody_for_long() -> None:
    line, inside = Line(2), list[int]()

    async def run(number: int, leave: asyncio.Event) -> None:
        await line.wait()
        inside.append(number)
        await leave.wait()
        line.leave()

    slow, quick = asyncio.Event(), asyncio.Event()
    quick.set()
    tasks = [asyncio.create_task(run(number, quick)) for number in range(6)]
    await asyncio.gather(*tasks)
    assert inside == list(range(6))
    inside.clear()
    tasks = [asyncio.create_task(run(number, slow)) for number in range(6)]

    async def all_inside() -> bool:
        return len(inside) == 6

    await eventually(all_inside)
    slow.set()
    await asyncio.gather(*tasks)
    tasks = [asyncio.create_task(run(number, quick)) for number in range(3)]
    tasks[0].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(inside) == 8
