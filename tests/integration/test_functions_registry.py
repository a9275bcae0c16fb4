"""Lists, versions, activation and deletion of functions on a real Postgres."""

from collections.abc import Awaitable
from typing import Any

import pytest

from server.errors import InvalidArgument, NotFound
from tests.fix_functions import Node, add_project

UNKNOWN = "00000000-0000-4000-8000-000000000000"


async def test_list_is_newest_first_by_page_and_by_project(node: Node) -> None:
    slugs = [f"f{number}" for number in range(5)]
    for slug in slugs:
        await node.deploy(slug=slug)
    await node.deploy(slug="f0")
    first = await node.registry.list(node.project_id, 3)
    second = await node.registry.list(node.project_id, 3, first.next_page_token)
    assert [item.slug for item in (*first.items, *second.items)] == slugs[::-1]
    assert second.next_page_token == ""
    other = await add_project(node.pool)
    assert (await node.registry.list(other)).items == []
    with pytest.raises(InvalidArgument) as caught:
        await node.registry.list(other, 3, first.next_page_token)
    assert caught.value.field == "page_token"


async def test_versions_are_newest_first_with_the_active_one_marked(node: Node) -> None:
    for number in range(4):
        made = await node.deploy(f"export default () => {number}")
    await node.lifecycle.activate(node.project_id, made.id, 2)
    first = await node.registry.versions(node.project_id, made.id, 3)
    second = await node.registry.versions(node.project_id, made.id, 3, first.next_page_token)
    assert [(item.version, item.active) for item in (*first.items, *second.items)] == [
        (4, False),
        (3, False),
        (2, True),
        (1, False),
    ]
    assert len({item.sha256 for item in first.items}) == 3


async def test_activation_rolls_back_and_forward_everywhere(node: Node, other_node: Node) -> None:
    made = await node.deploy("export default () => 1")
    await node.deploy("export default () => 2")
    for version in (1, 2, 1):
        active = await node.lifecycle.activate(node.project_id, made.id, version)
        assert active.version == version
        for each in (node, other_node):
            assert (await each.code()).endswith(f"=> {version}")
    again = await node.lifecycle.activate(node.project_id, made.id, 1)
    assert again == active, "activating the active version changes nothing"
    assert (await node.deploy()).version == 3, "numbers go on after a roll back"


async def test_every_change_is_fenced_after_it_is_committed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    committed: list[int | None] = []

    async def fence() -> None:
        active = await node.registry.active(node.project_id, "hello")
        committed.append(None if active is None else active.function.version)

    monkeypatch.setattr(node.changes, "fence", fence)
    made = await node.deploy()
    await node.deploy()
    await node.lifecycle.activate(node.project_id, made.id, 1)
    await node.lifecycle.delete(node.project_id, made.id)
    assert committed == [1, 2, 1, None]


async def test_what_is_not_there_is_not_found_and_other_projects_functions_neither(node: Node) -> None:
    made = await node.deploy()
    stranger = await add_project(node.pool)

    def calls(project_id: str, function_id: str) -> list[Awaitable[Any]]:
        registry, lifecycle = node.registry, node.lifecycle
        return [
            registry.get(project_id, function_id),
            registry.versions(project_id, function_id),
            lifecycle.activate(project_id, function_id, 1),
            lifecycle.delete(project_id, function_id),
        ]

    for project_id, function_id in ((node.project_id, UNKNOWN), (stranger, made.id)):
        for call in calls(project_id, function_id):
            with pytest.raises(NotFound, match=f"no function {function_id}"):
                await call
    for call in calls(node.project_id, "x"):
        with pytest.raises(InvalidArgument, match='function_id is "x"; it must be a UUID'):
            await call
    with pytest.raises(NotFound, match="no version 2"):
        await node.lifecycle.activate(node.project_id, made.id, 2)
    for version in (0, -1):
        with pytest.raises(InvalidArgument, match=f"version is {version}; versions count from 1"):
            await node.lifecycle.activate(node.project_id, made.id, version)
    assert await node.registry.get(node.project_id, made.id) == made


async def test_a_deleted_slug_begins_anew_as_another_function(node: Node) -> None:
    first = await node.deploy()
    await node.lifecycle.delete(node.project_id, first.id)
    second = await node.deploy()
    assert (second.id != first.id, second.version) == (True, 1)


async def test_deleting_the_project_deletes_its_rows(node: Node) -> None:
    await node.deploy()
    await node.deploy("export default () => 2")
    async with node.pool.connection() as conn:
        await conn.execute("DELETE FROM projects WHERE id = %s", [node.project_id])
    assert [await node.count(table) for table in ("functions", "function_versions", "artifacts")] == [0, 0, 0]
