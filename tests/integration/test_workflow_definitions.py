"""Definitions in a real Postgres: written only when right, each change a version, not deleted while in use."""

import json
from typing import Any
from uuid import uuid4

import pytest

from server.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from server.events.json_text import Json, read
from server.postgres.control import Pool, transaction
from server.workflows import store
from server.workflows.store import Definitions
from tests.fix_functions import Node, add_project
from tests.fix_workflows import document, kv


@pytest.fixture
def definitions(pool: Pool) -> Definitions:
    return Definitions(pool)


def calls(**config: Any) -> Json:
    return document({"nodes": [{"id": "call", "type": "function", "config": config}]})


async def test_what_is_written_is_what_is_read(definitions: Definitions, project_id: str) -> None:
    text = '{"nodes": [{"id":"a","type":"kv","config":{"op":"set","key":"k","value":[1.10, 1e400000, "\\ud800"]}}]}'
    made = await definitions.create(
        project_id, "Digits", read(text.replace("1e400000", "12345678901234567890").encode())
    )
    assert made.definition == text.replace("1e400000", "12345678901234567890")
    assert await definitions.get(project_id, made.id.upper()) == made
    assert (made.name, made.version, made.created_at) == ("Digits", 1, made.updated_at)


async def test_a_change_is_a_version_and_a_new_name_is_none(definitions: Definitions, project_id: str) -> None:
    made = await definitions.create(project_id, "One", document({"nodes": [kv("a")]}))
    named = await definitions.update(project_id, made.id, name="Two")
    assert (named.name, named.version, named.definition) == ("Two", 1, made.definition)
    changed = await definitions.update(project_id, made.id, document=document({"nodes": [kv("b")]}))
    assert (changed.name, changed.version, json.loads(changed.definition)["nodes"][0]["id"]) == ("Two", 2, "b")
    with pytest.raises(InvalidArgument):
        await definitions.update(project_id, made.id, name="Three", document=document({"nodes": []}))
    assert await definitions.get(project_id, made.id) == changed


async def test_what_is_wrong_changes_nothing(definitions: Definitions, project_id: str) -> None:
    with pytest.raises(InvalidArgument, match="name is missing"):
        await definitions.create(project_id, "", document({"nodes": [kv("a")]}))
    with pytest.raises(InvalidArgument, match="has 0 items"):
        await definitions.create(project_id, "One", document({"nodes": []}))
    assert (await definitions.list(project_id)).items == []
    assert len((await definitions.validate(project_id, document({"nodes": [kv("a")]}))).nodes) == 1
    assert (await definitions.list(project_id)).items == []


async def test_functions_must_be_the_projects_own(node: Node, definitions: Definitions, pool: Pool) -> None:
    function = await node.deploy()
    for config in ({"function": "hello"}, {"function_id": function.id}):
        await definitions.validate(node.project_id, calls(**config))
    other = await add_project(pool)
    for project_id, config, member in (
        (other, {"function": "hello"}, "function"),
        (other, {"function_id": function.id}, "function_id"),
        (node.project_id, {"function": "gone"}, "function"),
        (node.project_id, {"function_id": str(uuid4())}, "function_id"),
        (node.project_id, {"function": function.id}, "function"),
    ):
        with pytest.raises(InvalidArgument, match="no such function") as caught:
            await definitions.validate(project_id, calls(**config))
        assert caught.value.field == f"definition.nodes[0].config.{member}"
    await node.lifecycle.delete(node.project_id, function.id)
    with pytest.raises(InvalidArgument, match="no such function"):
        await definitions.create(node.project_id, "One", calls(function="hello"))


async def test_another_projects_workflows_are_not_there(definitions: Definitions, pool: Pool, project_id: str) -> None:
    made, other = await definitions.create(project_id, "One", document({"nodes": [kv("a")]})), await add_project(pool)
    for call in (
        definitions.get(other, made.id),
        definitions.update(other, made.id, name="Mine"),
        definitions.delete(other, made.id),
        definitions.get(project_id, str(uuid4())),
    ):
        with pytest.raises(NotFound):
            await call
    assert await definitions.get(project_id, made.id) == made
    assert (await definitions.list(other)).items == []
    with pytest.raises(InvalidArgument, match="must be a UUID"):
        await definitions.get(project_id, "x")
    with pytest.raises(NotFound, match="no project"):
        await definitions.create(str(uuid4()), "One", document({"nodes": [kv("a")]}))


async def test_one_that_a_trigger_starts_is_not_deleted(definitions: Definitions, pool: Pool, project_id: str) -> None:
    made = await definitions.create(project_id, "One", document({"nodes": [kv("a")]}))
    async with transaction(pool) as conn:
        cursor = await conn.execute(
            "INSERT INTO triggers (project_id, event_type, target_type, workflow_id)"
            " VALUES (%s, 'order.paid', 'workflow', %s) RETURNING id",
            [project_id, made.id],
        )
        ((trigger_id,),) = await cursor.fetchall()
    with pytest.raises(FailedPrecondition, match=str(trigger_id)) as caught:
        await definitions.delete(project_id, made.id)
    assert caught.value.metadata["trigger_ids"] == str(trigger_id)
    async with transaction(pool) as conn:
        await conn.execute("DELETE FROM triggers")
    await definitions.delete(project_id, made.id)
    with pytest.raises(NotFound):
        await definitions.get(project_id, made.id)


async def test_a_project_has_so_many(
    definitions: Definitions, project_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_WORKFLOWS", 3)
    for number in range(3):
        await definitions.create(project_id, f"W{number}", document({"nodes": [kv("a")]}))
    with pytest.raises(ResourceExhausted):
        await definitions.create(project_id, "W3", document({"nodes": [kv("a")]}))
    first = await definitions.list(project_id, page_size=2)
    rest = await definitions.list(project_id, 2, first.next_page_token)
    assert [item.name for item in (*first.items, *rest.items)] == ["W2", "W1", "W0"]
