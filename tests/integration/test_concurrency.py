"""Slots of a function over two processes and a real Valkey: never more than allowed, in turn, and given back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from server.invocations import concurrency
from server.invocations.concurrency import NoSlot, Slots

WALL_MS = 1_000


@pytest.fixture
async def pair(valkey_url: str) -> AsyncIterator[tuple[Slots, Slots]]:
    """Two processes."""
    made = (Slots(valkey_url, queue_ms=10_000), Slots(valkey_url, queue_ms=10_000))
    yield made
    for each in made:
        await each.close()


@pytest.fixture
async def redis(valkey_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(valkey_url) as client:
        yield client


@pytest.fixture
def function_id() -> str:
    return str(uuid4())


async def leases(redis: Redis, function_id: str, kind: str = "running") -> int:
    return int(await redis.zcard(f"slots:{{{function_id}}}:{kind}"))


async def until_leases(redis: Redis, function_id: str, count: int, kind: str = "running") -> None:
    async with asyncio.timeout(10):
        while await leases(redis, function_id, kind) != count:  # noqa: ASYNC110 - Valkey has no event for it
            await asyncio.sleep(0.002)


async def test_never_more_than_allowed_over_both_and_all_have_their_turn(
    pair: tuple[Slots, Slots], function_id: str
) -> None:
    running = peak = 0

    async def run(number: int) -> int:
        nonlocal running, peak
        async with pair[number % 2].hold(function_id, 3, WALL_MS):
            running += 1
            peak = max(peak, running)
            await asyncio.sleep(0.003)
            running -= 1
        return number

    assert await asyncio.gather(*(run(number) for number in range(40))) == [*range(40)]
    assert (peak, running) == (3, 0)


async def test_within_a_process_who_came_first_goes_first(pair: tuple[Slots, Slots], function_id: str) -> None:
    order: list[int] = []

    async def run(number: int) -> None:
        async with pair[0].hold(function_id, 1, WALL_MS):
            order.append(number)

    async with pair[0].hold(function_id, 1, WALL_MS):
        waiting = [asyncio.create_task(run(number)) for number in range(8)]
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    assert order == [*range(8)]


async def test_a_busy_process_does_not_keep_the_other_from_its_turn(
    pair: tuple[Slots, Slots], redis: Redis, function_id: str
) -> None:
    """The one slot is always taken by `busy`, which has a long line; `other` comes second and gets it second."""
    busy, other = pair
    order: list[str] = []

    async def run(slots: Slots, name: str) -> None:
        async with slots.hold(function_id, 1, WALL_MS):
            order.append(name)

    async with busy.hold(function_id, 1, WALL_MS):
        first = asyncio.create_task(run(busy, "busy"))
        await until_leases(redis, function_id, 1, "waiting")
        second = asyncio.create_task(run(other, "other"))
        await until_leases(redis, function_id, 2, "waiting")
        rest = [asyncio.create_task(run(busy, "busy")) for _ in range(20)]
        await asyncio.sleep(0)
    await asyncio.gather(first, second, *rest)
    assert order[:2] == ["busy", "other"]


async def test_who_waits_too_long_is_refused_and_leaves_nothing(
    pair: tuple[Slots, Slots], redis: Redis, function_id: str, valkey_url: str
) -> None:
    hasty = Slots(valkey_url, queue_ms=30)
    async with pair[0].hold(function_id, 2, WALL_MS), pair[1].hold(function_id, 2, WALL_MS):
        refused = await asyncio.gather(*(_once(hasty, function_id, 2) for _ in range(3)), return_exceptions=True)
        assert [type(each) for each in refused] == [NoSlot] * 3
        assert "2 invocations run already" in str(refused[0])
        await until_leases(redis, function_id, 0, "waiting")
        assert await leases(redis, function_id) == 2
    await until_leases(redis, function_id, 0)
    await _once(hasty, function_id, 2)
    await hasty.close()


async def test_no_wait_at_all_takes_what_is_free(
    valkey_url: str, function_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concurrency, "LEAST_WAIT_MS", 10_000)  # five round trips, however busy the machine is
    slots = Slots(valkey_url, queue_ms=0)
    await asyncio.gather(*(_once(slots, function_id, 5) for _ in range(5)))
    await slots.close()


async def test_cancelled_while_running_or_waiting_it_holds_nothing(
    pair: tuple[Slots, Slots], redis: Redis, function_id: str
) -> None:
    started = asyncio.Event()

    async def run() -> None:
        async with pair[0].hold(function_id, 1, WALL_MS):
            started.set()
            await asyncio.Event().wait()

    running = asyncio.create_task(run())
    await started.wait()
    waiting = asyncio.create_task(_once(pair[1], function_id, 1))
    await until_leases(redis, function_id, 1, "waiting")
    for task in (waiting, running):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await until_leases(redis, function_id, 0)
    await until_leases(redis, function_id, 0, "waiting")
    async with asyncio.timeout(5):
        await _once(pair[1], function_id, 1)


async def test_a_server_that_died_gives_its_slots_back_when_their_time_is_over(
    pair: tuple[Slots, Slots], redis: Redis, function_id: str
) -> None:
    await redis.zadd(f"slots:{{{function_id}}}:running", {"of a dead one": 1})
    await redis.zadd(f"slots:{{{function_id}}}:waiting", {"of another": 1})
    async with asyncio.timeout(5):
        await _once(pair[0], function_id, 1)


async def test_nothing_is_left_in_valkey_for_ever(pair: tuple[Slots, Slots], redis: Redis, function_id: str) -> None:
    async with pair[0].hold(function_id, 1, WALL_MS):
        waiting = asyncio.create_task(_once(pair[1], function_id, 1))
        await until_leases(redis, function_id, 1, "waiting")
        for kind in ("running", "waiting"):
            assert 0 < await redis.pttl(f"slots:{{{function_id}}}:{kind}") <= WALL_MS + 15_000
    await waiting


async def test_functions_do_not_wait_for_each_other(pair: tuple[Slots, Slots], function_id: str) -> None:
    async with pair[0].hold(function_id, 1, WALL_MS), asyncio.timeout(5):
        await _once(pair[0], str(uuid4()), 1)


async def test_without_valkey_each_process_keeps_to_the_limit_alone(
    tmp_path: Path, function_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    slots = Slots(f"unix://{tmp_path}/nobody.sock", queue_ms=60)
    async with slots.hold(function_id, 2, WALL_MS), slots.hold(function_id, 2, WALL_MS):
        assert repr(slots) == "<Slots 2 held>"
        with pytest.raises(NoSlot):
            await _once(slots, function_id, 2)
    await _once(slots, function_id, 2)
    assert [record.levelname for record in caplog.records if "this process alone" in record.message] == ["WARNING"]
    await slots.close()


async def test_what_was_released_while_valkey_was_away_is_given_back_afterwards(
    valkey_url: str, redis: Redis, function_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = Slots(valkey_url, queue_ms=10_000)
    async with slots.hold(function_id, 1, 60_000):
        monkeypatch.setattr(slots, "_away_until_s", float("inf"))
    await _once(slots, function_id, 1)
    assert await leases(redis, function_id) == 1
    monkeypatch.setattr(slots, "_away_until_s", 0.0)
    async with asyncio.timeout(5):
        await _once(slots, function_id, 1)
    await slots.close()
    assert await leases(redis, function_id) == 0


async def test_cancelled_at_any_moment_nothing_is_left(
    pair: tuple[Slots, Slots], redis: Redis, function_id: str
) -> None:
    for turns in range(40):
        task = asyncio.create_task(_once(pair[turns % 2], function_id, 1))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await until_leases(redis, function_id, 0)
    await until_leases(redis, function_id, 0, "waiting")


async def _once(slots: Slots, function_id: str, limit: int) -> None:
    async with slots.hold(function_id, limit, WALL_MS):
        pass
