"""The cache in front of the control database, with a loader that the test releases by hand."""

import asyncio

import pytest

from server.postgres.cache import ABSENT_CAPACITY, ABSENT_S, Cache


class Clock:
    def __init__(self) -> None:
        self.at_s = 100.0

    def monotonic_s(self) -> float:
        return self.at_s

    def now(self) -> None:
        raise AssertionError("a cache does not ask for the time of day")


class Rows:
    """What the database holds, and who asked for it. With `gate` closed a load hangs after it has read."""

    def __init__(self) -> None:
        self.rows: dict[str, str] = {}
        self.loads: list[tuple[str, str | None]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.trusted = True
        self.clock = Clock()
        self.cache: Cache[str, str] = Cache(
            self.load,
            trusted=lambda: self.trusted,
            capacity=10,
            weigh=len,
            clock=self.clock,  # type: ignore[arg-type]
        )

    async def load(self, key: str, kept: str | None) -> str | None:
        self.loads.append((key, kept))
        value = self.rows.get(key)
        await self.gate.wait()
        return value

    @property
    def asked(self) -> list[str]:
        return [key for key, _ in self.loads]


@pytest.fixture
def rows() -> Rows:
    return Rows()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_kept_value_is_not_loaded_again(rows: Rows) -> None:
    rows.rows["a"] = "1"
    assert [await rows.cache.get("a") for _ in range(3)] == ["1"] * 3
    assert rows.asked == ["a"]


async def test_many_at_once_load_once(rows: Rows) -> None:
    rows.rows["a"] = "1"
    rows.gate.clear()
    asking = [asyncio.create_task(rows.cache.get("a")) for _ in range(50)]
    await turns()
    rows.gate.set()
    assert await asyncio.gather(*asking) == ["1"] * 50
    assert rows.asked == ["a"]


async def test_one_who_leaves_does_not_take_the_value_from_the_others(rows: Rows) -> None:
    rows.rows["a"] = "1"
    rows.gate.clear()
    first, second = (asyncio.create_task(rows.cache.get("a")) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    rows.gate.set()
    assert await second == "1"
    assert first.cancelled()


async def test_a_change_during_a_load_is_not_lost(rows: Rows) -> None:
    rows.rows["a"] = "old"
    rows.gate.clear()
    before = asyncio.create_task(rows.cache.get("a"))
    await turns()
    rows.rows["a"] = "new"
    rows.cache.forget("a")
    after = asyncio.create_task(rows.cache.get("a"))
    await turns()
    rows.gate.set()
    assert await before == "old", "it asked before the change"
    assert await after == "new", "it asked after the change and must not join the older load"
    assert await rows.cache.get("a") == "new", "the older load must not have been kept"


async def test_a_load_from_before_a_change_never_replaces_what_was_loaded_after_it() -> None:
    values = {"old": asyncio.Event(), "new": asyncio.Event()}
    answers = iter(values.items())

    async def load(key: str, kept: str | None) -> str | None:
        value, gate = next(answers)
        await gate.wait()
        return value

    cache: Cache[str, str] = Cache(load, trusted=lambda: True, capacity=10)
    before = asyncio.create_task(cache.get("a"))
    await turns()
    cache.forget("a")
    after = asyncio.create_task(cache.get("a"))
    await turns()
    for value, task in (("new", after), ("old", before)):
        values[value].set()
        assert await task == value
    assert await cache.get("a") == "new"


@pytest.mark.parametrize("how", ["forget", "forget_where", "clear"])
async def test_every_way_to_forget_loads_anew(rows: Rows, how: str) -> None:
    rows.rows["a"] = "old"
    await rows.cache.get("a")
    rows.rows["a"] = "new"
    {
        "forget": lambda: rows.cache.forget("a"),
        "forget_where": lambda: rows.cache.forget_where(lambda value: value == "old"),
        "clear": rows.cache.clear,
    }[how]()
    assert await rows.cache.get("a") == "new"


async def test_without_trust_every_get_loads_and_may_reuse_what_was_kept(rows: Rows) -> None:
    rows.rows["a"] = "1"
    await rows.cache.get("a")
    rows.trusted = False
    rows.rows["a"] = "2"
    assert await rows.cache.get("a") == "2"
    assert await rows.cache.get("a") == "2"
    assert rows.loads == [("a", None), ("a", "1"), ("a", "2")]


async def test_the_least_recently_used_go_first_and_the_weight_stays_bounded(rows: Rows) -> None:
    rows.rows = {"a": "aaaa", "b": "bbbb", "c": "cccc"}
    for key in ("a", "b", "a", "c"):
        await rows.cache.get(key)
    assert repr(rows.cache) == "<Cache 2 kept, weight 8 of 10>"
    await rows.cache.get("a")
    assert rows.asked == ["a", "b", "c"], "b was evicted, a was used later"


async def test_a_value_larger_than_the_cache_is_answered_and_not_kept(rows: Rows) -> None:
    rows.rows["a"] = "x" * 11
    assert await rows.cache.get("a") == "x" * 11
    assert repr(rows.cache) == "<Cache 0 kept, weight 0 of 10>"


async def test_absence_is_kept_briefly(rows: Rows) -> None:
    assert [await rows.cache.get("no") for _ in range(3)] == [None] * 3
    assert rows.asked == ["no"]
    rows.rows["no"] = "1"
    rows.clock.at_s += ABSENT_S
    assert await rows.cache.get("no") == "1"


async def test_random_keys_evict_only_random_keys(rows: Rows) -> None:
    rows.rows["a"] = "1"
    await rows.cache.get("a")
    for number in range(ABSENT_CAPACITY + 100):
        await rows.cache.get(f"random-{number}")
    loads = len(rows.loads)
    await rows.cache.get("a")
    assert len(rows.loads) == loads, "the good key is still kept"
    await rows.cache.get("random-0")
    assert len(rows.loads) == loads + 1, "the oldest random key is forgotten"


async def test_a_failure_reaches_all_who_wait_and_is_not_kept(rows: Rows) -> None:
    failures = iter([RuntimeError("down")])

    async def load(key: str, kept: str | None) -> str | None:
        await asyncio.sleep(0)
        if (failure := next(failures, None)) is not None:
            raise failure
        return "1"

    cache: Cache[str, str] = Cache(load, trusted=lambda: True, capacity=10)
    both = await asyncio.gather(cache.get("a"), cache.get("a"), return_exceptions=True)
    assert [str(one) for one in both] == ["down", "down"]
    assert await cache.get("a") == "1"
