"""Triggers that begin with events of the past: each event once, in its order, whatever happens in between."""

import asyncio
import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from nats.js.api import AckPolicy, ConsumerConfig

from server.dispatch import backfills
from server.dispatch.backfill_rows import kept_from, note_removed
from server.errors import InvalidArgument, ResourceExhausted
from server.events import stream
from server.events.envelope import Change
from server.events.json_text import Json, read
from server.events.types import escape
from server.postgres.control import transaction
from server.settings import Settings
from server.triggers import backfill
from server.triggers.definition import Trigger
from server.triggers.rows import Record
from server.triggers.store import Triggers
from tests.fix_dispatch import SETTINGS, TYPE, Gate, Site
from tests.fix_functions import add_project
from tests.fix_runs import eventually
from tests.fix_triggers import add_function


@pytest.fixture
def site(dispatch_site: Site) -> Site:
    return dispatch_site


def members(site: Site, **fields: Any) -> dict[str, Json]:
    values = {"event_type": TYPE, "target_type": "function", "function_id": site.function_id} | fields
    return {name: read(json.dumps(value).encode()) for name, value in values.items()}


async def create(site: Site, start_from: datetime | None = None, **fields: Any) -> Record:
    start = start_from or datetime.now(UTC) - timedelta(minutes=1)
    triggers = Triggers(site.pool, site.changes, events_keep_hours=SETTINGS.events_keep_hours)
    return await triggers.create(site.project_id, members(site, start_from=start.isoformat(), **fields))


async def create_in(site: Site, project_id: str) -> Record:
    function_id = await add_function(site.pool, project_id)
    given = members(site, function_id=function_id, start_from=(datetime.now(UTC) - timedelta(minutes=1)).isoformat())
    return await Triggers(site.pool, site.changes).create(project_id, given)


async def state_of(site: Site, trigger_id: str) -> tuple[str, int, int] | None:
    async with transaction(site.pool) as conn:
        cursor = await conn.execute(
            "SELECT state, looked_at, fired FROM trigger_backfills WHERE trigger_id = %s", [trigger_id]
        )
        return await cursor.fetchone()


async def until_over(site: Site, trigger_id: str) -> tuple[str, int, int]:
    async def over() -> tuple[str, int, int] | None:
        found = await state_of(site, trigger_id)
        return found if found is not None and found[0] != "running" else None

    return await eventually(over)


async def test_the_past_and_what_comes_each_once(site: Site) -> None:
    worker = await site.worker()
    await worker.start()
    await site.publish(*range(100))
    await site.publish("other", type="order.sent")
    made = await create(site)
    assert made.backfill is not None
    assert made.backfill.state == "running"
    await site.publish(*range(100, 120))
    await site.until({"done": 120})
    assert sorted(worker.invoker.data()) == [*range(120)]
    state, looked_at, fired = await until_over(site, made.id)
    assert state == "done"
    assert 100 <= looked_at == fired <= 120


async def test_events_that_come_while_it_is_made(site: Site) -> None:
    worker, other = await site.worker(), await site.worker()
    await worker.start()
    await other.start()
    published: list[int] = []

    async def publish_all() -> None:
        for number in range(300):
            await site.publish(number)
            published.append(number)

    publishing = asyncio.create_task(publish_all())
    await eventually(lambda: _some(published, 50))
    made = await create(site)
    await publishing
    await until_over(site, made.id)
    await site.until({"done": 300})
    ran = worker.invoker.data() + other.invoker.data()
    assert len(ran) == len(set(ran))
    assert set(published) == set(ran)


async def _some(published: list[int], count: int) -> bool:
    return len(published) >= count


async def test_from_a_time_on_and_conditions(site: Site) -> None:
    worker = await site.worker()
    await worker.start()
    await site.publish({"n": 1})
    await asyncio.sleep(0.05)  # the stream's clock must tell the two apart
    start = datetime.now(UTC)
    await asyncio.sleep(0.05)
    await site.publish({"n": 2}, {"n": 3})
    await create(site, start, conditions=[{"field": "n", "op": "eq", "value": 3}])
    await site.until({"done": 1})
    assert worker.invoker.data() == [{"n": 3}]


async def test_order_keys_hold_over_past_and_present(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Live events wait until the past is read up to them."""
    worker = await site.worker()
    await site.publish(*({"key": number % 3, "n": number} for number in range(90)))
    await worker.start()
    await create(site, order_key="key")
    await site.publish(*({"key": number % 3, "n": number} for number in range(90, 120)))
    await site.until({"done": 120})
    for key in range(3):
        ran = [each["n"] for each in worker.invoker.data() if each["key"] == key]
        assert ran == [*range(key, 120, 3)]


async def test_another_process_goes_on(site: Site) -> None:
    first = await site.worker(lease_s=1.0)
    second = await site.worker(lease_s=1.0)
    await site.publish(*range(400))
    await first.start()
    made = await create(site)

    async def begun() -> bool:
        found = await state_of(site, made.id)
        return found is not None and found[1] > 0

    await eventually(begun)
    await first.dispatcher._backfills.close()
    await second.start()
    await until_over(site, made.id)
    await site.until({"done": 400})
    ran = first.invoker.data() + second.invoker.data()
    assert sorted(ran) == [*range(400)]


async def test_paused_ones_hold_and_disabled_ones_stop(site: Site) -> None:
    worker = await (await site.worker()).start()
    await site.publish(1, 2)
    held = await create(site, paused=True)
    await site.until({"held": 2}, held.id)
    await until_over(site, held.id)
    await site.change(held.id, "enabled = false")

    async def disarmed() -> bool:
        return held.id not in await worker.triggers.of(site.project_id)

    await eventually(disarmed)
    async with transaction(site.pool) as conn:  # as if it had only begun
        await conn.execute("UPDATE trigger_backfills SET state = 'running' WHERE trigger_id = %s", [held.id])
    assert (await until_over(site, held.id))[0] == "stopped"


async def test_another_projects_events_are_passed_over(site: Site) -> None:
    worker = await site.worker()
    await worker.start()
    other = await add_project(site.pool)
    forged = {"hint": site.project_id}
    await site.publish(forged, project_id=other)
    await site.publish("mine")
    await create(site)
    await site.until({"done": 1})
    assert worker.invoker.data() == ["mine"]


async def test_a_table_of_users(site: Site) -> None:
    worker = await site.worker()
    await worker.start()
    change = Change(op="INSERT", schema="proj_x", table="users")
    await site.publish({"id": 1}, type=f"cdc.INSERT.{escape('users')}", change=change)
    made = await create(site, event_type="auth.signup", config={"table": "users"})
    await site.until({"done": 1}, made.id)
    assert worker.invoker.data() == [{"user_id": "1"}]


async def test_what_is_still_to_be_read_is_kept(site: Site) -> None:
    assert await kept_from(site.pool) is None
    await site.publish(1)
    made = await create(site)
    assert await kept_from(site.pool) == 0
    await (await site.worker()).start()
    await until_over(site, made.id)
    assert await kept_from(site.pool) is None
    assert await stream.trim(site.bus, SETTINGS, 0) == 0


async def test_a_full_stream_goes_on_and_what_lost_events_says_so(site: Site) -> None:
    """Publishing comes before the past: above 90 % of its size what is not read is removed all the same."""
    other = await create_in(site, await add_project(site.pool))
    async with transaction(site.pool) as conn:  # as if it had come so far
        await conn.execute("UPDATE trigger_backfills SET next_sequence = 20")
    consumer = ConsumerConfig(durable_name="d", ack_policy=AckPolicy.ALL)
    await site.bus.jetstream.add_consumer(stream.NAME, consumer)
    made = await create(site)
    settings = Settings(events_keep_mb=1, events_keep_hours=1)

    async def fill(of: float) -> None:
        while (state := (await site.bus.jetstream.stream_info(stream.NAME)).state).bytes < of * 1024**2:
            await site.publish("x" * 20_000)
        subscription = await site.bus.jetstream.pull_subscribe_bind("d", stream.NAME)
        with suppress(TimeoutError):
            last = await subscription.fetch(state.messages, timeout=1)
            await last[-1].ack_sync()
        await subscription.unsubscribe()

    async def trim() -> int:
        return await stream.trim(site.bus, settings, await kept_from(site.pool), partial(note_removed, site.pool))

    await fill(0.85)
    assert await trim() == 0
    await fill(1.0)
    late = await create(site, datetime.now(UTC))
    removed = await trim()
    assert 0 < removed < 20
    assert (await site.bus.jetstream.stream_info(stream.NAME)).state.bytes <= 0.9 * 1024**2
    await (await site.worker()).start()
    assert (await until_over(site, made.id))[0] == "truncated"
    assert (await until_over(site, other.id))[0] == "done"
    assert (await until_over(site, late.id))[0] == "done"


async def expire(site: Site) -> None:
    """What is in the stream reaches its age."""
    config = (await site.bus.jetstream.stream_info(stream.NAME)).config
    await site.bus.jetstream.update_stream(replace(config, max_age=0.1, duplicate_window=0.1))

    async def gone() -> bool:
        return not (await site.bus.jetstream.stream_info(stream.NAME)).state.messages

    await eventually(gone)
    await site.bus.jetstream.update_stream(config)


@pytest.mark.parametrize(("read", "state"), [(1, "truncated"), (3, "done")])
async def test_what_lost_events_to_their_age_says_so(site: Site, read: int, state: str) -> None:
    await site.publish(1, 2, 3)
    made = await create(site)
    async with transaction(site.pool) as conn:  # as if it had come so far
        await conn.execute("UPDATE trigger_backfills SET next_sequence = %s, last_sequence = 3", [read + 1])
    await expire(site)
    await site.publish(4)
    worker = await (await site.worker()).start()
    assert (await until_over(site, made.id))[0] == state
    await site.until({"done": 1})
    assert worker.invoker.data() == [4]


@pytest.mark.parametrize(("late_h", "state"), [(2.0, "truncated"), (0.5, "done")])
async def test_one_whose_beginning_reached_its_age_before_anybody_looked_says_so(
    site: Site, late_h: float, state: str
) -> None:
    await site.publish(1)
    await expire(site)
    await site.publish(2)
    made = await create(site)
    async with transaction(site.pool) as conn:  # as if that was long ago
        await conn.execute(
            "UPDATE trigger_backfills SET start_from = now() - make_interval(mins => %s)", [int(60 * late_h)]
        )
    await (await site.worker()).start()
    assert (await until_over(site, made.id))[0] == state


async def test_what_was_never_there_is_not_said_to_be_lost(site: Site) -> None:
    await site.publish(1)
    made = await create(site)
    async with transaction(site.pool) as conn:
        await conn.execute("UPDATE trigger_backfills SET start_from = now() - interval '2 hours'")
    await (await site.worker()).start()
    assert (await until_over(site, made.id))[0] == "done"


@pytest.mark.parametrize(
    "wrong",
    [
        {"start_from": "yesterday"},
        {"start_from": 5},
        {"start_from": (datetime.now(UTC) + timedelta(hours=1)).isoformat()},
        {"start_from": (datetime.now(UTC) - timedelta(hours=3)).isoformat()},
        {"enabled": False},
        {"event_type": "cron", "config": {"schedule": "@hourly"}},
    ],
)
async def test_what_is_refused_leaves_nothing(site: Site, wrong: dict[str, Any]) -> None:
    triggers = Triggers(site.pool, site.changes, events_keep_hours=1)
    given = members(site, **{"start_from": datetime.now(UTC).isoformat()} | wrong)
    with pytest.raises(InvalidArgument) as caught:
        await triggers.create(site.project_id, given)
    assert caught.value.field == "start_from"
    assert not (await triggers.list(site.project_id)).items


async def test_a_project_has_so_many_at_a_time_and_no_more(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill, "MAX_RUNNING", 2)
    first = await create(site)
    made = await asyncio.gather(*(create(site) for _ in range(3)), return_exceptions=True)
    refused = [each for each in made if isinstance(each, ResourceExhausted)]
    assert len(refused) == 2
    assert refused[0].reason == "BACKFILL_LIMIT"
    assert refused[0].metadata == {"limit": "backfills", "used": "2", "allowed": "2"}
    triggers = Triggers(site.pool, site.changes)
    assert len((await triggers.list(site.project_id)).items) == 2
    await triggers.delete(site.project_id, first.id)
    await create(site)


async def test_one_of_each_project_comes_first(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfills, "AT_ONCE", 2)
    await site.publish(*range(100))
    greedy = [await create(site) for _ in range(4)]
    other = await create_in(site, await add_project(site.pool))
    await (await site.worker()).start()
    for each in (other, *greedy):
        await until_over(site, each.id)
    async with transaction(site.pool) as conn:
        cursor = await conn.execute("SELECT trigger_id FROM trigger_backfills ORDER BY finished_at")
        ended = [str(trigger_id) for (trigger_id,) in await cursor.fetchall()]
    assert {*ended[:2]} == {greedy[0].id, other.id}


async def test_a_long_one_does_not_keep_others_waiting(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfills, "AT_ONCE", 1)
    monkeypatch.setattr(backfills, "TURN_S", 0.0)
    await site.publish(*range(100))
    first, second = await create(site), await create(site)
    worker = await site.worker()
    step, steps = worker.dispatcher._backfills._step, []

    async def noted(job: Any, trigger: Trigger) -> None:
        steps.append(trigger.id)
        await step(job, trigger)

    monkeypatch.setattr(worker.dispatcher._backfills, "_step", noted)
    await worker.start()
    for each in (first, second):
        assert await until_over(site, each.id) == ("done", 100, 100)
    assert steps[:6] == [first.id, second.id] * 3


async def test_a_deleted_trigger_is_forgotten(site: Site) -> None:
    gate = Gate()
    await (await site.worker(gate)).start()
    await site.publish(*range(10))
    made = await create(site)
    triggers = Triggers(site.pool, site.changes)
    await triggers.delete(site.project_id, made.id)
    gate.open.set()

    async def gone() -> bool:
        return await state_of(site, made.id) is None

    await eventually(gone)
    later = await create(site)
    await until_over(site, later.id)
