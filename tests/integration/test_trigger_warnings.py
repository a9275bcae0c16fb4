"""Triggers that feed themselves are named when they are written."""

import json
from typing import Any
from uuid import uuid4

import pytest

from server.events.json_text import read
from server.postgres.changes import Changes
from server.postgres.control import Pool, transaction
from server.triggers import circles
from server.triggers.store import Triggers
from tests.fix_triggers import add_function, add_workflow

Members = dict[str, Any]


async def workflow(pool: Pool, project_id: str, *nodes: Any) -> str:
    workflow_id = await add_workflow(pool, project_id)
    async with transaction(pool) as conn:
        await conn.execute(
            "UPDATE workflow_definitions SET definition = %s WHERE id = %s", [json.dumps({"nodes": nodes}), workflow_id]
        )
    return workflow_id


def event_node(event_type: object) -> dict[str, Any]:
    return {"id": "tell", "type": "event", "config": {"type": event_type}}


@pytest.fixture
async def triggers(pool: Pool, changes: Changes) -> Triggers:
    await changes.start()
    return Triggers(pool, changes)


def members(**fields: Any) -> Any:
    return {name: read(json.dumps(value).encode()) for name, value in fields.items()}


async def test_a_workflow_that_publishes_what_starts_it(triggers: Triggers, pool: Pool, project_id: str) -> None:
    target = await workflow(pool, project_id, {"id": "a", "type": "delay"}, event_node("order.paid.again"))
    given = {"target_type": "workflow", "workflow_id": target}
    made = await triggers.create(project_id, members(event_type="order.>", **given))
    (warning,) = made.warnings
    assert warning.reason == "TRIGGER_FEEDS_ITSELF"
    assert "node tell" in warning.message
    assert "order.paid.again" in warning.message
    harmless = await triggers.update(project_id, made.id, members(event_type="order.paid"))
    assert harmless.warnings == ()
    again = await triggers.update(project_id, made.id, members(event_type="order.paid.again"))
    assert len(again.warnings) == 1
    assert (await triggers.get(project_id, made.id)).warnings == ()


@pytest.mark.parametrize(
    "definition",
    [
        event_node("{{trigger.type}}"),
        event_node(5),
        event_node("order.sent"),
        {"id": "x", "type": "event"},
        {"id": "x", "type": "kv", "config": {"type": "order.paid"}},
        "node",
    ],
)
async def test_what_is_not_plain_is_not_warned_of(
    triggers: Triggers, pool: Pool, project_id: str, definition: Any
) -> None:
    target = await workflow(pool, project_id, definition)
    given = members(event_type="order.paid", target_type="workflow", workflow_id=target)
    assert (await triggers.create(project_id, given)).warnings == ()


def on_function(function_id: str, event_type: str, **fields: Any) -> Any:
    return members(event_type=event_type, target_type="function", function_id=function_id, **fields)


@pytest.mark.parametrize(
    ("source", "event_type", "fields"),
    [
        (b"() => atlas.events.publish('order.paid', 1)", "order.*", {}),
        (b"(e) => atlas.db.query('INSERT INTO Orders VALUES (1)')", "cdc.INSERT.orders", {}),
        (
            b'() => tx.query("update only \\"Odd %\\" set n = 1")',
            "cdc.*.Odd%20%25",
            {"config": {"operations": ["UPDATE"]}},
        ),
        (b"() => atlas.storage.put('thumbs', e.path, b)", "storage.upload", {}),
        (b"() => atlas.db.query(`INSERT INTO users VALUES (1)`)", "auth.signup", {"config": {"table": "users"}}),
    ],
)
async def test_a_function_that_seems_to_lead_to_what_starts_it(
    triggers: Triggers, pool: Pool, project_id: str, source: bytes, event_type: str, fields: Members
) -> None:
    function_id = await add_function(pool, project_id, source=source)
    made = await triggers.create(project_id, on_function(function_id, event_type, **fields))
    (warning,) = made.warnings
    assert warning.reason == "TRIGGER_FEEDS_ITSELF"
    assert "The source of the function hello seems to lead to" in warning.message
    assert "it may feed itself" in warning.message


@pytest.mark.parametrize(
    ("source", "event_type", "fields"),
    [
        (b"() => atlas.events.publish('order.sent', 1)", "order.paid", {}),
        (b"() => atlas.events.publish(`order.${x}`, 1)", "order.>", {}),
        (b"() => atlas.db.query('INSERT INTO orders VALUES (1)')", "cdc.UPDATE.orders", {}),
        (b"() => atlas.db.query('INSERT INTO t VALUES (1)')", "cdc.*.t", {"config": {"operations": ["DELETE"]}}),
        (b"() => atlas.events.publish('auth.signup', 1)", "auth.signup", {"config": {"table": "users"}}),
        (b"() => atlas.events.publish('cron', 1)", "cron", {"config": {"schedule": "@hourly"}}),
    ],
)
async def test_a_function_that_leads_elsewhere(
    triggers: Triggers, pool: Pool, project_id: str, source: bytes, event_type: str, fields: Members
) -> None:
    function_id = await add_function(pool, project_id, source=source)
    assert (await triggers.create(project_id, on_function(function_id, event_type, **fields))).warnings == ()


async def test_a_circle_over_several_triggers(triggers: Triggers, pool: Pool, project_id: str) -> None:
    pays = await add_function(pool, project_id, "pay", b"() => atlas.db.query('INSERT INTO paid VALUES (1)')")
    await add_function(pool, project_id, "ship", b"() => atlas.events.publish('order.placed', 1)")
    ships = await workflow(pool, project_id, {"id": "s", "type": "function", "config": {"function": "ship"}})
    placed = await triggers.create(project_id, on_function(pays, "order.placed"))
    assert placed.warnings == ()
    given = members(event_type="cdc.*.paid", target_type="workflow", workflow_id=ships)
    (warning,) = (await triggers.create(project_id, given)).warnings
    assert warning.reason == "TRIGGER_CIRCLE"
    assert warning.message.startswith(
        "It may run in a circle: the source of the function ship seems to lead to order.placed, which the trigger "
        f"{placed.id} answers; the source of the function pay seems to lead to cdc.INSERT.paid, which this one answers."
    )
    await triggers.update(project_id, placed.id, members(enabled=False))
    assert (await triggers.create(project_id, given)).warnings == ()


async def test_the_search_is_bounded(
    triggers: Triggers, pool: Pool, project_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circles, "MAX_TARGETS", 3)

    async def publishes(number: int) -> str:
        source = f"() => atlas.events.publish('step.s{number}', 1)".encode()
        return await add_function(pool, project_id, f"f{uuid4().hex[:8]}", source)

    for number in range(3):
        made = await triggers.create(project_id, on_function(await publishes(number + 1), f"step.s{number}"))
        assert made.warnings == ()
    near = await triggers.create(project_id, on_function(await publishes(1), "step.s3"))
    assert [each.reason for each in near.warnings] == ["TRIGGER_CIRCLE"]
    far = await triggers.create(project_id, on_function(await publishes(0), "step.s3"))
    assert far.warnings == ()
