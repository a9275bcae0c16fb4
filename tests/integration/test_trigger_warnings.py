"""Triggers that feed themselves are named when they are written."""

import json
from typing import Any

import pytest

from server.events.json_text import read
from server.postgres.changes import Changes
from server.postgres.control import Pool, transaction
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


async def test_a_functions_source_is_not_read(triggers: Triggers, pool: Pool, project_id: str) -> None:
    function_id = await add_function(pool, project_id)
    given = members(event_type="order.>", target_type="function", function_id=function_id)
    assert (await triggers.create(project_id, given)).warnings == ()
