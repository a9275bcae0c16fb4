"""What runs under a slug: from memory while it is true, from disk once, from the shared copy when the disk lacks it."""

import asyncio
from dataclasses import replace

import pytest

from server.errors import Internal, NotFound
from server.functions.configuration import Reconfiguration
from server.host.transaction import MAX_TOLD_BYTES
from server.postgres.control import transaction
from server.settings import Settings
from server.tiers import limits_of
from tests.fix_functions import Node


async def test_what_an_exactly_once_function_answers_must_fit_beside_its_mark(node: Node) -> None:
    limits = limits_of("free", Settings())
    await node.deploy(change=Reconfiguration(exactly_once=True))
    once = await node.catalog.resolve(node.project_id, "hello")
    await node.deploy(slug="other")
    other = await node.catalog.resolve(node.project_id, "other")
    assert once.limits_for(limits) == replace(limits, result_bytes=MAX_TOLD_BYTES)
    assert other.limits_for(limits) is limits


async def test_a_deploy_here_runs_there_at_once(node: Node, other_node: Node) -> None:
    for number in range(5):
        await node.deploy(f"export default () => {number}")
        assert (await other_node.code()).endswith(f"=> {number}")
        assert (await node.code()).endswith(f"=> {number}")


async def test_a_new_slug_is_found_although_it_was_just_missed(node: Node, other_node: Node) -> None:
    with pytest.raises(NotFound):
        await other_node.code("later")
    await node.deploy(slug="later")
    assert await other_node.code("later")


@pytest.mark.parametrize("slug", ["no", "", "a b", "../x", "x" * 64, "\ud800"])
async def test_what_does_not_exist_is_said_in_the_specifications_words(node: Node, slug: str) -> None:
    with pytest.raises(NotFound, match=r"^JS source not found: no function") as caught:
        await node.catalog.resolve(node.project_id, slug)
    assert caught.value.reason == "FUNCTION_NOT_FOUND"


async def test_another_projects_slug_does_not_exist(node: Node) -> None:
    await node.deploy()
    with pytest.raises(NotFound):
        await node.catalog.resolve("00000000-0000-4000-8000-000000000000", "hello")


async def test_from_memory_nothing_is_asked(node: Node) -> None:
    await node.deploy()
    first = await node.catalog.resolve(node.project_id, "hello")
    before = node.pool.get_stats()["requests_num"]
    assert [await node.catalog.resolve(node.project_id, "hello") for _ in range(10)] == [first] * 10
    assert node.pool.get_stats()["requests_num"] - before <= 1, "none, unless the lease ran out on a slow machine"


async def test_a_crowd_reads_once(node: Node) -> None:
    await node.deploy()
    before = node.pool.get_stats()["requests_num"]
    programs = await asyncio.gather(*(node.catalog.resolve(node.project_id, "hello") for _ in range(100)))
    assert len({id(resolved.program) for resolved in programs}) == 1
    assert node.pool.get_stats()["requests_num"] - before == 1


async def test_without_changes_every_resolve_asks_the_database_but_not_the_disk(node: Node) -> None:
    await node.deploy("export default () => 1")
    kept = await node.catalog.resolve(node.project_id, "hello")
    await node.changes.close()
    async with transaction(node.pool) as conn:
        await conn.execute("UPDATE functions SET name = 'Renamed behind our back'")
    for path in (node.root / node.project_id).iterdir():
        path.unlink()
    seen = await node.catalog.resolve(node.project_id, "hello")
    assert (seen.function.name, seen.program is kept.program) == ("Renamed behind our back", True)


@pytest.mark.parametrize("damage", ["missing", "torn", "swapped"])
async def test_what_this_disk_lacks_comes_from_the_shared_copy_and_stays(node: Node, damage: str) -> None:
    await node.deploy()
    code = await node.code()
    for path in (node.root / node.project_id).iterdir():
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1] + (b"" if damage == "torn" else b"!"))
    await _forget(node)
    assert await node.code() == code
    async with transaction(node.pool) as conn:
        await conn.execute("ALTER TABLE artifacts RENAME TO artifacts_away")
    await _forget(node)
    assert await node.code() == code, "it is on the disk again"


async def test_a_shared_copy_that_does_not_match_its_hash_is_never_run(node: Node, other_node: Node) -> None:
    await node.deploy()
    async with transaction(node.pool) as conn:
        await conn.execute("UPDATE artifacts SET data = 'evil'")
    with pytest.raises(Internal, match="code of this function is missing"):
        await other_node.code()
    assert other_node.files() == set()


async def test_a_node_whose_disk_is_full_still_serves(node: Node, other_node: Node) -> None:
    await node.deploy()
    other_node.root.write_text("a file where the folder should be")
    assert await other_node.code() == await node.code()


async def test_code_in_flight_outlives_its_function(node: Node) -> None:
    made = await node.deploy("export default () => 1")
    resolved = await node.catalog.resolve(node.project_id, "hello")
    await node.lifecycle.delete(node.project_id, made.id)
    assert resolved.program.code.endswith(b"=> 1")
    with pytest.raises(NotFound):
        await node.code()


async def test_what_was_replaced_or_deleted_is_retired_everywhere(node: Node, other_node: Node) -> None:
    function = await node.deploy("export default () => 1")
    assert await other_node.code()
    assert other_node.engine.retired == []
    await node.deploy("export default () => 2")
    assert other_node.engine.retired == [(node.project_id, function.id)]
    assert await other_node.code()
    await node.lifecycle.delete(node.project_id, function.id)
    assert other_node.engine.retired == [(node.project_id, function.id)] * 2


async def test_all_of_a_changed_project_is_retired(node: Node) -> None:
    await node.deploy()
    await node.code()
    async with transaction(node.pool) as conn:
        await node.changes.announce(conn, "project", node.project_id)
    await node.changes.fence()
    assert node.engine.retired[-1] == (node.project_id, None)


async def _forget(node: Node) -> None:
    """Announce a change that did not happen, so that memory is no answer."""
    async with transaction(node.pool) as conn:
        await node.changes.announce(conn, "function", f"{node.project_id}/hello")
    await node.changes.fence()
