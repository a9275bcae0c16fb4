"""Triggers in memory: what the database has, on every process, as soon as a change is fenced, and honest about gaps."""

import asyncio
import logging
import random

import psycopg
import pytest

from server.errors import Unavailable
from server.postgres.control import Pool, transaction
from server.triggers import cache as cache_module
from server.triggers.paths import Envelope
from server.triggers.patterns import CRON
from tests.fix_functions import add_project
from tests.fix_runs import eventually
from tests.fix_triggers import ORDER, Process, StartProcess, add_function, add_trigger, change_trigger

PAID = [{"field": "status", "op": "eq", "value": "paid"}]


def an_order(**data: object) -> Envelope:
    return {"id": "1", "type": ORDER, "data": data}


async def fired(process: Process, project_id: str, event: Envelope) -> set[str]:
    return {armed.trigger.id for armed in (await process.cache.of(project_id)).match(event)}


@pytest.fixture
async def function_id(pool: Pool, project_id: str) -> str:
    return await add_function(pool, project_id)


@pytest.fixture
async def process(start_process: StartProcess) -> Process:
    return await start_process()


async def test_what_is_stored_is_loaded_at_the_start(
    pool: Pool, project_id: str, function_id: str, process: Process, start_process: StartProcess
) -> None:
    every = await add_trigger(pool, process.changes, function_id)
    paid = await add_trigger(
        pool, process.changes, function_id, conditions=PAID, order_key="customer.id", retry={"attempts": 2}
    )
    await add_trigger(pool, process.changes, function_id, enabled=False)
    later = await start_process()
    assert await fired(later, project_id, an_order(status="new")) == {every}
    assert await fired(later, project_id, an_order(status="paid")) == {every, paid}
    triggers = await later.cache.of(project_id)
    armed = triggers.get(paid)
    assert armed is not None
    assert (triggers.tier, armed.slug, armed.trigger.retry.attempts) == ("free", "hello", 2)
    assert (armed.trigger.order_key, armed.trigger.function_id) == (("data", "customer", "id"), function_id)


async def test_a_project_without_triggers_has_none(process: Process, project_id: str) -> None:
    assert (await process.cache.of(project_id)).match(an_order()) == []


async def test_every_change_is_in_force_on_every_process_when_it_is_fenced(
    pool: Pool, project_id: str, function_id: str, start_process: StartProcess
) -> None:
    writer, other = await start_process(), await start_process()

    async def both() -> list[set[str]]:
        return [await fired(each, project_id, an_order(status="paid")) for each in (writer, other)]

    for _ in range(3):
        trigger_id = await add_trigger(pool, writer.changes, function_id, conditions=PAID)
        assert await both() == [{trigger_id}] * 2
        await change_trigger(pool, writer.changes, trigger_id, "event_type = %s", "cdc.UPDATE.orders")
        assert await both() == [set()] * 2
        await change_trigger(pool, writer.changes, trigger_id, "event_type = %s, conditions = '[]'", ORDER)
        assert await both() == [{trigger_id}] * 2
        await change_trigger(pool, writer.changes, trigger_id, "enabled = false")
        assert await both() == [set()] * 2
        await change_trigger(pool, writer.changes, trigger_id, "enabled = true, paused = true")
        assert await both() == [{trigger_id}] * 2
        async with transaction(pool) as conn:
            await conn.execute("DELETE FROM triggers")
        await writer.changes.fence()
        assert await both() == [set()] * 2


async def test_only_what_changed_is_loaded_and_nothing_when_nothing_did(
    pool: Pool, project_id: str, function_id: str, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await add_trigger(pool, process.changes, function_id)
    await add_trigger(pool, process.changes, function_id)
    before = await process.cache.of(project_id)
    kept = before.get(first)
    second = await add_trigger(pool, process.changes, function_id)
    asked = pool.get_stats()["requests_num"]
    for _ in range(100):
        assert (await process.cache.of(project_id)).get(second)
    assert pool.get_stats()["requests_num"] - asked <= 2
    assert (await process.cache.of(project_id)).get(first) is kept


async def test_a_tier_is_followed(
    pool: Pool, project_id: str, function_id: str, process: Process, start_process: StartProcess
) -> None:
    await add_trigger(pool, process.changes, function_id)
    assert (await process.cache.of(project_id)).tier == "free"
    async with transaction(pool) as conn:
        await conn.execute("UPDATE projects SET tier = 'pro' WHERE id = %s", [project_id])
        await process.changes.announce(conn, "project", project_id)
    await process.changes.fence()
    assert (await process.cache.of(project_id)).tier == "pro"
    async with transaction(pool) as conn:
        await conn.execute("UPDATE projects SET tier = NULL WHERE id = %s", [project_id])
        await process.changes.announce(conn, "project", project_id)
    await process.changes.fence()
    assert (await process.cache.of(project_id)).tier is None


async def test_triggers_go_with_their_function_and_with_their_project(
    pool: Pool, project_id: str, function_id: str, process: Process
) -> None:
    await add_trigger(pool, process.changes, function_id, event_type=CRON, config={"schedule": "0 * * * *"})
    kept = await add_function(pool, project_id, "kept")
    staying = await add_trigger(pool, process.changes, kept)
    assert len(await process.cache.scheduled()) == 1
    async with transaction(pool) as conn:
        await conn.execute("DELETE FROM functions WHERE id = %s", [function_id])
    await process.changes.fence()
    assert await process.cache.scheduled() == ()
    assert await fired(process, project_id, an_order()) == {staying}
    async with transaction(pool) as conn:
        await conn.execute("DELETE FROM projects WHERE id = %s", [project_id])
        await process.changes.announce(conn, "project", project_id)
    await process.changes.fence()
    assert await fired(process, project_id, an_order()) == set()


async def test_schedules_of_all_projects_are_listed_also_those_of_paused_triggers(
    pool: Pool, function_id: str, process: Process
) -> None:
    other = await add_function(pool, await add_project(pool))
    config = {"schedule": "*/5 * * * *", "timezone": "Europe/Berlin"}
    first = await add_trigger(pool, process.changes, function_id, event_type=CRON, config=config)
    second = await add_trigger(pool, process.changes, other, event_type=CRON, config=config, paused=True)
    await add_trigger(pool, process.changes, other)
    assert {trigger.id for trigger in await process.cache.scheduled()} == {first, second}
    tick: Envelope = {"type": CRON, "trigger_id": first, "data": {}}
    project_id = (await process.cache.scheduled())[0].project_id
    assert await fired(process, project_id, tick) == {first}
    await change_trigger(pool, process.changes, first, "event_type = %s, config = '{}'", ORDER)
    assert {trigger.id for trigger in await process.cache.scheduled()} == {second}


@pytest.mark.parametrize(
    ("assignments", "value"),
    [
        ("conditions = %s", '[{"field": "a", "op": "of the future", "value": 1}]'),
        ("conditions = %s", "{}"),
        ("conditions = %s", "1" * 5000),
        ("event_type = %s", "cdc.MERGE.orders"),
        ("retry = %s", '{"budget": 7}'),
        ("order_key = %s", "$tomorrow.id"),
        ("event_type = 'cron', config = %s", '{"schedule": "every full moon"}'),
    ],
)
async def test_a_row_of_a_newer_version_is_left_out_and_blocks_no_other(
    pool: Pool,
    project_id: str,
    function_id: str,
    process: Process,
    start_process: StartProcess,
    caplog: pytest.LogCaptureFixture,
    assignments: str,
    value: str,
) -> None:
    staying = await add_trigger(pool, process.changes, function_id)
    odd = await add_trigger(pool, process.changes, function_id)
    with caplog.at_level(logging.ERROR, "atlas"):
        await change_trigger(pool, process.changes, odd, assignments, value)
        assert await fired(process, project_id, an_order()) == {staying}
        assert await fired(await start_process(), project_id, an_order()) == {staying}
    assert {record.action for record in caplog.records} == {"triggers.unreadable"}  # type: ignore[attr-defined]
    await change_trigger(
        pool,
        process.changes,
        odd,
        "event_type = %s, conditions = '[]', retry = '{}', order_key = NULL, config = '{}'",
        ORDER,
    )
    assert await fired(process, project_id, an_order()) == {staying, odd}


async def test_after_a_gap_everything_is_as_in_the_database(
    pool: Pool, control_url: str, project_id: str, function_id: str, process: Process
) -> None:
    """Changes are written behind the back of the listener, as if it had been away."""
    gone, changed, same = [await add_trigger(pool, process.changes, function_id) for _ in range(3)]
    triggers = await process.cache.of(project_id)
    kept = triggers.get(same)
    async with transaction(pool) as conn:
        await conn.execute("ALTER TABLE triggers DISABLE TRIGGER triggers_gone")
        await conn.execute("DELETE FROM triggers WHERE id = %s", [gone])
        await conn.execute(
            "UPDATE triggers SET event_type = 'order.paid', updated_at = clock_timestamp() WHERE id = %s", [changed]
        )
        cursor = await conn.execute(
            "INSERT INTO triggers (project_id, event_type, target_type, function_id) VALUES (%s, %s, 'function', %s)"
            " RETURNING id",
            [project_id, ORDER, function_id],
        )
        ((made,),) = await cursor.fetchall()
        await conn.execute("UPDATE projects SET tier = 'enterprise' WHERE id = %s", [project_id])
    assert await fired(process, project_id, an_order()) == {gone, changed, same}
    with psycopg.connect(control_url, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'atlas-listener:%'"
        )

    async def reconciled() -> bool:
        try:
            return await fired(process, project_id, an_order()) == {same, made}
        except Unavailable:
            return False

    await eventually(reconciled)
    triggers = await process.cache.of(project_id)
    assert triggers.tier == "enterprise"
    assert triggers.get(same) is kept, "what did not change is not read again"


async def test_nothing_is_answered_while_nobody_vouches_for_it(pool: Pool, project_id: str, process: Process) -> None:
    await process.changes.close()
    with pytest.raises(Unavailable):
        await process.cache.of(project_id)
    with pytest.raises(Unavailable):
        await process.cache.scheduled()


async def test_many_triggers_are_loaded_in_pieces_without_keeping_others_waiting(
    pool: Pool, project_id: str, function_id: str, start_process: StartProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "LOADED_AT_ONCE", 70)
    monkeypatch.setattr(cache_module, "COMPARED_AT_ONCE", 300)
    async with transaction(pool) as conn:
        await conn.execute(
            "INSERT INTO triggers (project_id, event_type, target_type, function_id, conditions)"
            """ SELECT %s, 'order.paid', 'function', %s,"""
            """ format('[{"field": "customer", "op": "eq", "value": "c-%%s"}]', n)::json"""
            " FROM generate_series(1, 2000) n",
            [project_id, function_id],
        )
    process = await start_process()
    triggers = await process.cache.of(project_id)
    assert len(triggers) == 2000
    assert len(triggers.match({"type": "order.paid", "data": {"customer": "c-1234"}})) == 1

    other = await add_project(pool)
    other_trigger = await add_trigger(pool, process.changes, await add_function(pool, other))
    async with transaction(pool) as conn:
        await conn.execute("DELETE FROM triggers WHERE project_id = %s", [project_id])
    await process.changes.fence()
    many = asyncio.create_task(process.cache.of(project_id))
    assert await fired(process, other, an_order()) == {other_trigger}
    assert not many.done()
    assert len(await many) == 0


async def test_a_change_while_its_row_is_loaded_is_not_lost(
    pool: Pool, project_id: str, function_id: str, process: Process
) -> None:
    """A writer that never rests: whatever a reader was told to be committed, it sees."""
    trigger_id = await add_trigger(pool, process.changes, function_id)
    written = 0

    async def write() -> None:
        nonlocal written
        for number in range(1, 21):
            await change_trigger(pool, process.changes, trigger_id, "concurrency = %s", number)
            written = number

    writer = asyncio.create_task(write())
    while not writer.done():
        known = written
        armed = (await process.cache.of(project_id)).get(trigger_id)
        assert armed is not None
        assert (armed.trigger.concurrency or 0) >= known
        await asyncio.sleep(0)
    await writer


async def test_whatever_happens_memory_is_what_the_database_has(
    pool: Pool, project_id: str, start_process: StartProcess
) -> None:
    """Random changes of two projects, several of them in one transaction, and gaps in between."""
    chance = random.Random(7)
    projects = [project_id, await add_project(pool)]
    functions = [await add_function(pool, each) for each in projects]
    processes = [await start_process(), await start_process()]
    writer = processes[0].changes
    changes = (
        "event_type = 'order.paid', config = '{}'",
        """event_type = 'cron', config = '{"schedule": "@hourly"}'""",
        "enabled = NOT enabled",
        "paused = NOT paused",
        "event_type = 'order.>', config = '{}'",
    )
    for _ in range(60):
        async with transaction(pool) as conn:
            for _ in range(chance.randint(1, 3)):
                which = chance.randrange(2)
                cursor = await conn.execute("SELECT id FROM triggers WHERE project_id = %s", [projects[which]])
                ids = [row[0] for row in await cursor.fetchall()]
                if chance.random() < 0.4 or not ids:
                    cursor = await conn.execute(
                        "INSERT INTO triggers (project_id, event_type, target_type, function_id)"
                        " VALUES (%s, 'order.paid', 'function', %s) RETURNING id",
                        [projects[which], functions[which]],
                    )
                    ids = [row[0] for row in await cursor.fetchall()]
                elif chance.random() < 0.2:
                    await conn.execute("DELETE FROM triggers WHERE id = %s", [ids[0]])
                    continue
                await conn.execute(
                    f"UPDATE triggers SET {chance.choice(changes)}, updated_at = clock_timestamp()"
                    " WHERE id = %s".encode(),
                    [ids[0]],
                )
                await writer.announce(conn, "trigger", f"{projects[which]}/{ids[0]}")
        await writer.fence()
        if chance.random() < 0.2:
            chance.choice(processes).cache._missed()
        async with transaction(pool) as conn:
            cursor = await conn.execute("SELECT project_id, id, event_type, paused FROM triggers WHERE enabled")
            stored = set(await cursor.fetchall())
        for process in processes:
            known: set[tuple[object, ...]] = set()
            for each in projects:
                triggers = await process.cache.of(each)
                for trigger in (armed.trigger for trigger_id in triggers if (armed := triggers.get(trigger_id))):
                    known.add((each, trigger.id, trigger.event_type, trigger.paused))
            assert known == stored
            scheduled = {(trigger.project_id, trigger.id) for trigger in await process.cache.scheduled()}
            assert scheduled == {row[:2] for row in stored if row[2] == CRON}
