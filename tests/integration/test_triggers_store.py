"""Triggers in a real database: what is written comes back, changes are heard, no other project's are reached."""

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import orjson
import pytest

from server.errors import InvalidArgument, NotFound, ResourceExhausted
from server.events.json_text import Json, read
from server.postgres.control import Pool, transaction
from server.triggers import totals
from server.triggers.diagnosis import READ_AT_ONCE, Diagnostician, Verdict
from server.triggers.rows import Record
from server.triggers.samples import event_of
from server.triggers.store import Triggers
from tests.fix_functions import add_project
from tests.fix_triggers import ORDER, Process, StartProcess, add_function, add_workflow

HOURLY = {"schedule": "0 * * * *"}


def members(**fields: Any) -> dict[str, Json]:
    return {name: read(value if isinstance(value, bytes) else orjson.dumps(value)) for name, value in fields.items()}


@pytest.fixture
async def process(start_process: StartProcess) -> Process:
    return await start_process()


@pytest.fixture
def triggers(pool: Pool, process: Process) -> Triggers:
    return Triggers(pool, process.changes)


@pytest.fixture
async def function_id(pool: Pool, project_id: str) -> str:
    return await add_function(pool, project_id)


@pytest.fixture
def on_function(function_id: str) -> dict[str, Any]:
    return {"event_type": ORDER, "target_type": "function", "function_id": function_id}


@pytest.fixture
async def on_workflow(pool: Pool, project_id: str) -> dict[str, Any]:
    workflow_id = await add_workflow(pool, project_id)
    return {"event_type": "cron", "config": HOURLY, "target_type": "workflow", "workflow_id": workflow_id}


async def test_ticks_are_made_good_no_longer_than_it_is_known_which_have_run(
    pool: Pool, process: Process, project_id: str, on_workflow: dict[str, Any]
) -> None:
    triggers = Triggers(pool, process.changes, events_keep_hours=2)
    most, more = (members(**on_workflow | {"config": {**HOURLY, "catch_up_s": seconds}}) for seconds in (7_200, 7_201))
    message = "config.catch_up_s is 7201; events are kept for 2 hours, so that it must be at most 7200"
    with pytest.raises(InvalidArgument, match=message) as refused:
        await triggers.create(project_id, more)
    assert (refused.value.field, refused.value.metadata["allowed"]) == ("config.catch_up_s", "7200")
    made = await triggers.create(project_id, most)
    with pytest.raises(InvalidArgument, match=message):
        await triggers.update(project_id, made.id, members(config={**HOURLY, "catch_up_s": 7_201}))
    of_old = Triggers(pool, process.changes, events_keep_hours=1)
    assert not (await of_old.update(project_id, made.id, members(enabled=False))).enabled, "it is not checked again"


async def test_what_is_created_comes_back_with_its_digits(
    triggers: Triggers, project_id: str, on_function: dict[str, Any]
) -> None:
    conditions = rb'[ {"value": 12345678901234567890.10, "op": "eq", "field": "odd \ud800 \u0000"} ]'
    given = members(
        **on_function,
        conditions=conditions,
        order_key="customer.id",
        concurrency=7,
        retry={"attempts": 2},
        enabled=False,
        paused=True,
    )
    made = await triggers.create(project_id, given)
    assert made.conditions == conditions.decode()
    assert (made.project_id, made.event_type, made.function_id) == (project_id, ORDER, on_function["function_id"])
    assert (made.order_key, made.concurrency, made.enabled, made.paused) == ("customer.id", 7, False, True)
    assert orjson.loads(made.retry) == {"attempts": 2}
    assert made == await triggers.get(project_id, made.id)
    assert made == await triggers.get(project_id, made.id.upper())
    assert [*(await triggers.list(project_id)).items] == [made]


async def test_pages_are_newest_first(triggers: Triggers, project_id: str, on_function: dict[str, Any]) -> None:
    made = [(await triggers.create(project_id, members(**on_function))).id for _ in range(5)]
    first = await triggers.list(project_id, 2)
    second = await triggers.list(project_id, 2, first.next_page_token)
    third = await triggers.list(project_id, 2, second.next_page_token)
    assert [record.id for page in (first, second, third) for record in page.items] == made[::-1]
    assert third.next_page_token == ""
    with pytest.raises(InvalidArgument, match="page_token"):
        await triggers.list(await add_project(triggers._pool), 2, first.next_page_token)


async def test_every_change_is_in_force_on_another_process_when_it_returns(
    triggers: Triggers, project_id: str, on_function: dict[str, Any], start_process: StartProcess
) -> None:
    other = await start_process()

    async def there(trigger_id: str) -> tuple[str, bool] | None:
        armed = (await other.cache.of(project_id)).get(trigger_id)
        return None if armed is None else (armed.trigger.event_type, armed.trigger.paused)

    made = await triggers.create(project_id, members(**on_function))
    assert await there(made.id) == (ORDER, False)
    await triggers.update(project_id, made.id, members(event_type="order.paid"))
    assert await there(made.id) == ("order.paid", False)
    assert (await triggers.pause(project_id, made.id)).paused
    assert await there(made.id) == ("order.paid", True)
    assert not (await triggers.resume(project_id, made.id)).paused
    assert await there(made.id) == ("order.paid", False)
    await triggers.update(project_id, made.id, members(enabled=False))
    assert await there(made.id) is None
    await triggers.update(project_id, made.id, members(enabled=True))
    await triggers.delete(project_id, made.id)
    assert await there(made.id) is None
    with pytest.raises(NotFound):
        await triggers.delete(project_id, made.id)


async def test_an_update_changes_what_is_given(
    triggers: Triggers, project_id: str, on_function: dict[str, Any], on_workflow: dict[str, Any]
) -> None:
    given = members(**on_function, order_key="id", concurrency=2, conditions=[{"field": "a", "op": "exists"}])
    made = await triggers.create(project_id, given)
    nothing = await triggers.update(project_id, made.id, {})
    assert (nothing.conditions, nothing.order_key, nothing.since) == (made.conditions, "id", made.since)
    assert nothing.updated_at > made.updated_at
    cleared = await triggers.update(project_id, made.id, members(order_key=None, concurrency=None, conditions=[]))
    assert (cleared.order_key, cleared.concurrency, cleared.conditions) == (None, None, "[]")
    workflow_id = on_workflow["workflow_id"]
    moved = await triggers.update(project_id, made.id, members(target_type="workflow", workflow_id=workflow_id))
    assert (moved.target_type, moved.function_id, moved.workflow_id) == ("workflow", None, workflow_id)
    assert (moved.created_at, moved.id) == (made.created_at, made.id)


async def test_a_schedule_counts_from_when_it_was_enabled_or_written(
    triggers: Triggers, project_id: str, on_workflow: dict[str, Any]
) -> None:
    made = await triggers.create(project_id, members(**on_workflow))

    async def since(**fields: Any) -> bool:
        before = await triggers.get(project_id, made.id)
        after = await triggers.update(project_id, made.id, members(**fields))
        assert after.since >= before.since
        return after.since > before.since

    assert not await since(enabled=True)
    assert not await since(config=HOURLY | {"timezone": "UTC", "overlap": "skip"})
    assert await since(config=HOURLY | {"timezone": "Europe/Berlin"})
    assert await since(config={"schedule": "1 * * * *", "timezone": "Europe/Berlin"})
    assert not await since(enabled=False)
    assert await since(enabled=True)
    assert not await since(paused=True)


async def test_a_target_must_be_of_the_project_and_not_deleted(
    pool: Pool, triggers: Triggers, project_id: str, on_function: dict[str, Any], on_workflow: dict[str, Any]
) -> None:
    other = await add_project(pool)
    theirs = {"function_id": await add_function(pool, other), "workflow_id": await add_workflow(pool, other)}
    mine = await triggers.create(project_id, members(**on_function))
    for field, valid in (("function_id", on_function), ("workflow_id", on_workflow)):
        for foreign in (theirs[field], str(uuid4())):
            with pytest.raises(InvalidArgument, match=f"{field} is {foreign}") as caught:
                await triggers.create(project_id, members(**valid | {field: foreign}))
            assert (caught.value.field, caught.value.reason) == (field, "TARGET_NOT_FOUND")
    with pytest.raises(InvalidArgument, match="no such function"):
        await triggers.update(project_id, mine.id, members(function_id=theirs["function_id"]))
    async with transaction(pool) as conn:
        await conn.execute("UPDATE functions SET deleted_at = now() WHERE id = %s", [on_function["function_id"]])
    with pytest.raises(InvalidArgument, match="no such function"):
        await triggers.create(project_id, members(**on_function))
    assert (await triggers.update(project_id, mine.id, members(enabled=False))).enabled is False
    assert await triggers.get(project_id, mine.id) == (await triggers.list(project_id)).items[0]


async def test_another_projects_trigger_does_not_exist(
    pool: Pool, triggers: Triggers, project_id: str, on_function: dict[str, Any]
) -> None:
    made, other = await triggers.create(project_id, members(**on_function)), await add_project(pool)
    event = event_of(other, {"type": ORDER}, made.created_at)
    for call in (
        triggers.get(other, made.id),
        triggers.update(other, made.id, members(enabled=False)),
        triggers.pause(other, made.id),
        triggers.resume(other, made.id),
        triggers.delete(other, made.id),
        Diagnostician(pool).diagnose(event, made.id),
    ):
        with pytest.raises(NotFound) as caught:
            await call
        assert caught.value.reason == "TRIGGER_NOT_FOUND"
    assert await triggers.get(project_id, made.id) == made
    assert [*(await triggers.list(other)).items] == []
    with pytest.raises(NotFound, match="no project"):
        await triggers.create(str(uuid4()), members(**on_function))


@pytest.mark.parametrize("trigger_id", ["", "x", "7f1c2d5e", "\ud800"])
async def test_an_id_is_a_uuid(triggers: Triggers, project_id: str, trigger_id: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await triggers.get(project_id, trigger_id)
    assert caught.value.field == "trigger_id"


async def test_a_project_has_so_many_triggers_and_no_more(
    triggers: Triggers, project_id: str, on_function: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(totals, "MAX_TRIGGERS", 3)
    made = await asyncio.gather(
        *(triggers.create(project_id, members(**on_function)) for _ in range(6)), return_exceptions=True
    )
    refused = [each for each in made if isinstance(each, ResourceExhausted)]
    assert (len(refused), len((await triggers.list(project_id)).items)) == (3, 3)
    assert refused[0].metadata == {"limit": "triggers", "used": "3", "allowed": "3"}


async def test_triggers_of_a_project_are_so_large_and_no_larger(
    pool: Pool, triggers: Triggers, project_id: str, on_function: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def long(characters: int) -> dict[str, Json]:
        return members(**on_function, conditions=[{"field": "a", "op": "eq", "value": "x" * characters}])

    async def total() -> totals.Total:
        async with transaction(pool) as conn:
            kept = await totals.total_of(conn, project_id)
            cursor = await conn.execute(
                "SELECT count(*), coalesce(sum(octet_length(conditions::text) + octet_length(config::text)), 0)"
                " FROM triggers WHERE project_id = %s",
                [project_id],
            )
            assert await cursor.fetchone() == (kept.triggers, kept.bytes)
            return kept

    monkeypatch.setattr(totals, "MAX_BYTES", 1_000)
    first = await triggers.create(project_id, long(500))
    used = await total()
    with pytest.raises(ResourceExhausted, match="at most 1000") as caught:
        await triggers.create(project_id, long(500))
    assert caught.value.reason == "TRIGGER_LIMIT"
    assert caught.value.metadata == {"limit": "trigger_bytes", "used": str(used.bytes), "allowed": "1000"}
    second = await triggers.create(project_id, long(10))
    with pytest.raises(ResourceExhausted):
        await triggers.update(project_id, second.id, long(500))
    assert await triggers.get(project_id, second.id) == second
    await triggers.update(project_id, first.id, long(300))
    await triggers.update(project_id, second.id, long(300))
    monkeypatch.setattr(totals, "MAX_BYTES", 100)  # less than there is
    await triggers.update(project_id, second.id, long(299))
    await triggers.pause(project_id, second.id)
    assert (await total()).bytes < 1_000
    await triggers.delete(project_id, first.id)
    assert (await total()).triggers == 1
    async with transaction(pool) as conn:
        await conn.execute("DELETE FROM functions WHERE id = %s", [on_function["function_id"]])
    assert await total() == totals.Total(0, 0)
    async with transaction(pool) as conn:
        await conn.execute("DELETE FROM projects WHERE id = %s", [project_id])
    assert await total() == totals.Total(0, 0)


async def test_changes_at_the_same_time_are_all_applied(
    triggers: Triggers, project_id: str, on_function: dict[str, Any]
) -> None:
    made = await triggers.create(project_id, members(**on_function))
    await asyncio.gather(
        triggers.update(project_id, made.id, members(concurrency=5)),
        triggers.update(project_id, made.id, members(order_key="id")),
        triggers.update(project_id, made.id, members(conditions=[{"field": "a", "op": "exists"}])),
        triggers.pause(project_id, made.id),
    )
    after = await triggers.get(project_id, made.id)
    assert (after.concurrency, after.order_key, after.paused) == (5, "id", True)
    assert after.conditions != "[]"


async def test_a_row_of_a_newer_version_can_be_seen_disabled_and_deleted(
    pool: Pool, triggers: Triggers, project_id: str, on_function: dict[str, Any]
) -> None:
    made = await triggers.create(project_id, members(**on_function))
    async with transaction(pool) as conn:
        await conn.execute(
            """UPDATE triggers SET conditions = '[{"future": 1}]', retry = '{"budget": 7}', config = '{"slot": "s"}'"""
        )
    assert (await triggers.get(project_id, made.id)).conditions == '[{"future": 1}]'
    disabled = await triggers.update(project_id, made.id, members(enabled=False))
    assert (disabled.enabled, disabled.retry, disabled.config) == (False, '{"budget": 7}', '{"slot": "s"}')
    await triggers.delete(project_id, made.id)


class TestDiagnosis:
    async def test_those_whose_type_is_meant_come_first(
        self, pool: Pool, triggers: Triggers, project_id: str, on_function: dict[str, Any], on_workflow: dict[str, Any]
    ) -> None:
        async def made(**fields: Any) -> Record:
            return await triggers.create(project_id, members(**on_function | fields))

        fires = await made(event_type="cdc.*.orders")
        paused = await made(paused=True)
        disabled = await made(enabled=False)
        unmet = await made(conditions=[{"field": "amount", "op": "gt", "value": 100}])
        other = await made(event_type="cdc.UPDATE.orders")
        cron = await triggers.create(project_id, members(**on_workflow))
        event = event_of(project_id, {"type": ORDER, "data": {"amount": "99.99"}}, fires.created_at)
        diagnosis = await Diagnostician(pool).diagnose(event)
        assert [(each.record.id, each.verdict) for each in diagnosis.triggers] == [
            (unmet.id, Verdict.CONDITIONS),
            (disabled.id, Verdict.DROPPED),
            (paused.id, Verdict.HELD),
            (fires.id, Verdict.FIRES),
            (cron.id, Verdict.TYPE),
            (other.id, Verdict.TYPE),
        ]
        (predicate,) = diagnosis.triggers[0].predicates
        assert (predicate.at, predicate.wanted, predicate.actual) == ("conditions[0]", "100", '"99.99"')
        assert diagnosis.left_out == 0
        (one,) = (await Diagnostician(pool).diagnose(event, other.id)).triggers
        assert (one.record, one.verdict) == (other, Verdict.TYPE)

    async def test_it_agrees_with_what_the_cache_fires(
        self,
        pool: Pool,
        process: Process,
        triggers: Triggers,
        project_id: str,
        on_function: dict[str, Any],
        on_workflow: dict[str, Any],
    ) -> None:
        conditions = [[], [{"field": "n", "op": "gt", "value": 5}], [{"field": "n", "op": "in", "value": [3, 9]}]]
        for pattern in ("order.paid", "order.*", "order.>", "order", "cdc.>"):
            for each in conditions:
                await triggers.create(project_id, members(**on_function | {"event_type": pattern}, conditions=each))
        tick = await triggers.create(project_id, members(**on_workflow))
        samples: list[dict[str, Any]] = [
            *({"type": "order.paid", "data": {"n": n}} for n in (3, 7, 9)),
            {"type": "cdc.gap", "data": {"n": 9}},
            {"type": "cron", "trigger_id": tick.id},
            {"type": "cron", "trigger_id": str(uuid4())},
        ]
        for sample in samples:
            event = event_of(project_id, sample, tick.created_at)
            explained = {
                each.record.id
                for each in (await Diagnostician(pool).diagnose(event)).triggers
                if each.verdict is Verdict.FIRES
            }
            envelope = {"id": "1", "data": None, **sample}
            assert explained == {each.trigger.id for each in (await process.cache.of(project_id)).match(envelope)}

    async def test_a_large_project_is_cut(
        self, pool: Pool, project_id: str, function_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with transaction(pool) as conn:
            await conn.execute(
                "INSERT INTO triggers (project_id, event_type, target_type, function_id, created_at)"
                " SELECT %s, CASE WHEN n %% 2 = 0 THEN 'order.paid' ELSE 'order.lost' END, 'function', %s,"
                " now() + n * interval '1 ms' FROM generate_series(1, %s) n",
                [project_id, function_id, 3 * READ_AT_ONCE],
            )
        monkeypatch.setattr("server.triggers.diagnosis.MAX_EXPLAINED", 2 * READ_AT_ONCE)
        event = event_of(project_id, {"type": "order.paid"}, datetime.now(UTC))
        diagnosis = await Diagnostician(pool).diagnose(event)
        verdicts = [each.verdict for each in diagnosis.triggers]
        fires = verdicts.count(Verdict.FIRES)
        assert (len(verdicts), diagnosis.left_out) == (2 * READ_AT_ONCE, READ_AT_ONCE)
        assert verdicts == [Verdict.FIRES] * fires + [Verdict.TYPE] * (len(verdicts) - fires)
        monkeypatch.setattr("server.triggers.diagnosis.MAX_ANSWER_CHARS", 2_000)
        short = await Diagnostician(pool).diagnose(event)
        assert len(short.triggers) == 4
        assert short.left_out == 3 * READ_AT_ONCE - 4
