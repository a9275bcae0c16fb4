"""Order inside a key, limits of triggers over all workers, and fair shares."""

import asyncio
import json
from collections import defaultdict
from typing import Any

import pytest

from server.dispatch import queued, starter
from server.dispatch.consumer import DURABLE
from server.events import stream
from server.invocations.invoke import Call
from server.postgres.control import transaction
from tests.fix_dispatch import THREW, TYPE, Answer, Gate, Site
from tests.fix_runs import eventually


@pytest.fixture
def site(dispatch_site: Site) -> Site:
    return dispatch_site


class Log:
    """Work that notes when each run began and ended."""

    def __init__(self, fails: Any = lambda data, attempt: False) -> None:
        self.log: list[tuple[str, Any, str]] = []
        self.fails = fails

    async def __call__(self, call: Call) -> Answer:
        data, attempt = json.loads(call.body.data)["data"], json.loads(call.event or b"")["attempt"]
        self.log.append((call.trigger, data, "began"))
        await asyncio.sleep(0)
        await asyncio.sleep(0.002)
        failed = self.fails(data, attempt)
        self.log.append((call.trigger, data, "failed" if failed else "ended"))
        return THREW if failed else None

    def by_key(self) -> dict[Any, list[tuple[int, str]]]:
        found = defaultdict(list)
        for _, data, what in self.log:
            found[data["k"]].append((data["n"], what))
        return found


async def test_events_of_a_key_run_one_after_the_other_over_all_workers(site: Site) -> None:
    work = Log(fails=lambda data, attempt: data["n"] % 7 == 0 and attempt < 3)
    for _ in range(2):
        await (await site.worker(work)).start()
    await site.trigger(order_key="k")
    for number in range(20):
        await site.publish(*({"k": key, "n": number} for key in "abcde"))
    await site.until({"done": 100}, within_s=60)
    for seen in work.by_key().values():
        wanted: list[tuple[int, str]] = []
        for number in range(20):
            tries = 2 if number % 7 == 0 else 0
            wanted += [(number, "began"), (number, "failed")] * tries + [(number, "began"), (number, "ended")]
        assert seen == wanted


async def test_keys_do_not_wait_for_each_other_and_a_dead_head_lets_the_next_go(site: Site) -> None:
    gate = Gate()

    async def work(call: Call) -> Answer:
        data = json.loads(call.body.data)["data"]
        if data["k"] == "slow":
            await gate.open.wait()
        return THREW if data["n"] == 0 else None

    worker = await (await site.worker(work)).start()
    trigger_id = await site.trigger(order_key="k", retry={"attempts": 1})
    await site.publish({"k": "slow", "n": 1}, {"k": "slow", "n": 2}, {"k": "x", "n": 0}, {"k": "x", "n": 1})
    await site.until({"running": 1, "queued": 1, "dead": 1, "done": 1})
    assert sorted(data["k"] for data in worker.invoker.data()) == ["slow", "x", "x"]
    gate.open.set()
    await site.until({"done": 3, "dead": 1}, trigger_id)


async def test_events_without_a_key_wait_for_nothing(site: Site) -> None:
    gate = Gate()
    await (await site.worker(gate)).start()
    await site.trigger(order_key="k")
    await site.publish({"k": None}, {}, {"k": None})
    await site.until({"running": 3})
    gate.open.set()
    await site.until({"done": 3})


async def test_a_replayed_delivery_waits_for_what_runs_of_its_key(site: Site) -> None:
    gate, fail = Gate(), True

    async def work(call: Call) -> Answer:
        if fail:
            return THREW
        await gate.open.wait()
        return None

    await (await site.worker(work)).start()
    await site.trigger(order_key="k", retry={"attempts": 1})
    await site.publish({"k": 1})
    await site.until({"dead": 1})
    fail = False
    await site.publish({"k": 1.0})
    await site.until({"dead": 1, "running": 1})
    async with transaction(site.pool) as conn:
        await conn.execute("UPDATE deliveries SET state = 'queued', attempts = 0 WHERE state = 'dead'")
        await site.changes.announce(conn, "delivery", site.project_id)
    await site.taken()
    await asyncio.sleep(0.1)
    assert await site.states() == {"queued": 1, "running": 1}
    gate.open.set()
    await site.until({"done": 2})


async def test_what_is_still_on_its_way_goes_first(site: Site) -> None:
    """Another worker has an earlier event in hand: a later one of its key waits until that is in the ledger."""
    work = Log()
    trigger_id = await site.trigger(order_key="k")
    worker = await (await site.worker(work)).start()
    await site.publish({"k": "a", "n": -1})
    await site.until({"done": 1})
    await worker.dispatcher._intake.close()
    await site.publish({"k": "a", "n": 0})
    subscription = await site.bus.jetstream.pull_subscribe("", DURABLE, stream.NAME)

    async def in_hand() -> Any:
        try:
            return await subscription.fetch(1, 0.5)
        except TimeoutError:
            return None

    (message,) = await eventually(in_hand)  # the worker's last request may have swallowed it: then it comes again
    await worker.dispatcher._intake.start()
    await site.publish({"k": "a", "n": 1})
    await site.until({"done": 1, "queued": 1}, trigger_id)
    await asyncio.sleep(0.2)
    assert await site.states() == {"done": 1, "queued": 1}
    await message.nak()
    await site.until({"done": 3}, trigger_id)
    assert [number for number, what in work.by_key()["a"] if what == "began"] == [-1, 0, 1]
    await subscription.unsubscribe()


async def test_order_goes_on_when_the_stream_was_lost(site: Site) -> None:
    """What is left of the old stream has sequences that the new one has not come to."""
    await site.trigger(order_key="k")
    first = await (await site.worker(Gate())).start()
    await site.publish(*({"k": 1, "n": number} for number in range(5)))
    await site.until({"running": 1, "queued": 4})
    await first.dispatcher.close(drain_s=0)
    await site.bus.jetstream.delete_stream(stream.NAME)
    await (await site.worker()).start()
    await site.publish({"k": 2, "n": 0})
    await site.until({"done": 6})


async def test_many_keys_are_looked_at_in_pages(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queued, "KEYS", 3)
    work = Log(fails=lambda data, attempt: data["k"] % 5 == 0 and attempt == 1)
    await (await site.worker(work, slots=8)).start()
    await site.trigger(order_key="k")
    for number in range(3):
        await site.publish(*({"k": key, "n": number} for key in range(20)))
    await site.until({"done": 60}, within_s=60)
    for seen in work.by_key().values():
        assert [number for number, what in seen if what == "ended"] == [0, 1, 2]


async def test_a_look_at_many_keys_in_backoff_is_short_and_goes_on_where_it_ended(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queued, "KEYS", 3)
    monkeypatch.setattr(starter, "LOOKS", 2)
    looks: list[int] = []
    lock, heads = queued.lock, queued.heads

    async def locking(*given: Any) -> Any:
        looks.append(0)
        return await lock(*given)

    async def looking(*given: Any) -> Any:
        looks[-1] += 1
        return await heads(*given)

    monkeypatch.setattr(queued, "lock", locking)
    monkeypatch.setattr(queued, "heads", looking)

    worker = await (await site.worker(Log(fails=lambda data, attempt: data["n"] == 0))).start()
    await site.trigger(order_key="k", retry={"attempts": 5, "backoff_ms": 3_600_000, "max_backoff_ms": 3_600_000})
    await site.publish(*({"k": f"{key:02}", "n": 0} for key in range(40)))

    async def all_failed() -> bool:
        rows = await site.rows()
        return len(rows) == 40 and all(row["state"] == "queued" and row["attempts"] == 1 for row in rows)

    await eventually(all_failed, within_s=30)
    for key in ("zz", "20x", "00x"):
        await site.publish({"k": key, "n": 1})
    await site.until({"queued": 40, "done": 3}, within_s=30)
    assert 0 < max(looks) <= 2

    async def at_rest() -> bool:
        return not worker.dispatcher._starter._hungry

    await eventually(at_rest)


async def test_a_limit_holds_over_all_workers(site: Site) -> None:
    running = peak = 0

    async def work(call: Call) -> Answer:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.003)
        running -= 1
        return None

    for _ in range(3):
        await (await site.worker(work)).start()
    await site.trigger(concurrency=2)
    await site.publish(*range(60))
    await site.until({"done": 60}, within_s=60)
    assert peak == 2


async def test_a_limit_holds_for_ordered_deliveries(site: Site) -> None:
    gate = Gate()
    for _ in range(2):
        await (await site.worker(gate)).start()
    await site.trigger(concurrency=3, order_key="k")
    await site.publish(*({"k": number} for number in range(6)))
    await site.until({"running": 3, "queued": 3})
    await site.taken()
    gate.open.set()
    await site.until({"done": 6})

    async def forgotten() -> bool:
        return not any(worker.dispatcher._starter._passes for worker in site.workers)

    await eventually(forgotten)


async def test_a_slow_trigger_delays_no_other(site: Site) -> None:
    gate = Gate()

    async def work(call: Call) -> Answer:
        return await gate(call) if call.trigger == slow else None

    await (await site.worker(work, slots=16)).start()
    slow = await site.trigger(event_type="slow.one")
    await site.trigger(event_type="quick.one")
    await site.publish(*range(400), type="slow.one")
    (event_id,) = await site.publish(1, type="quick.one")

    async def quick_one_is_done() -> bool:
        return any(row["event_id"] == event_id and row["state"] == "done" for row in await site.rows())

    await eventually(quick_one_is_done, within_s=30)
    assert (await site.states(slow))["running"] == 4
    await site.taken()
    assert await site.states(slow) == {"running": 4, "queued": 396}
    gate.open.set()
    await site.until({"done": 401}, within_s=60)


async def test_a_failing_trigger_delays_no_other(site: Site) -> None:
    async def work(call: Call) -> Answer:
        return THREW if call.trigger == bad else None

    await (await site.worker(work, slots=8)).start()
    bad = await site.trigger(event_type=TYPE, retry={"attempts": 20, "backoff_ms": 60_000})
    good = await site.trigger(event_type=TYPE)
    await site.publish(*range(200))
    await site.until({"done": 200}, good, within_s=60)
    await site.until({"queued": 200}, bad, within_s=60)
