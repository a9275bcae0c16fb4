"""Versions come, go back, and are restored or forgotten: on a real Postgres, seen from two processes."""

import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from server.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from server.functions import history, lifecycle, releases
from server.functions.configuration import Reconfiguration
from server.functions.records import Function
from server.functions.settings import FunctionSettings
from server.postgres.control import transaction
from tests.fix_functions import Node, add_project

UNKNOWN = "00000000-0000-4000-8000-000000000000"


async def update(node: Node, function: Function, **fields: Any) -> Function:
    return await node.deployer.update(node.project_id, "free", function.id, **fields)


async def rollback(node: Node, function: Function) -> int:
    return (await node.lifecycle.rollback(node.project_id, function.id)).version


async def execute(node: Node, query: str, *parameters: object) -> None:
    async with transaction(node.pool) as conn:
        await conn.execute(query.encode(), parameters)


async def age(node: Node, days: float) -> None:
    await execute(node, "UPDATE functions SET deleted_at = deleted_at - make_interval(secs => %s)", days * 86_400)


async def test_each_rollback_goes_further_back_on_every_process(node: Node, other_node: Node) -> None:
    for number in range(1, 4):
        made = await node.deploy(f"export default () => {number}")
    await node.lifecycle.activate(node.project_id, made.id, 1)
    for version in (3, 2, 1):
        assert await rollback(node, made) == version
        for each in (node, other_node):
            assert (await each.code()).endswith(f"=> {version}")
    with pytest.raises(FailedPrecondition) as caught:
        await rollback(node, made)
    assert (caught.value.reason, await node.code()) == ("NO_EARLIER_VERSION", await other_node.code())
    await node.deploy("export default () => 4")
    assert await rollback(node, made) == 1


async def test_activating_what_is_active_is_no_step(node: Node) -> None:
    made = await node.deploy("export default () => 1")
    await node.deploy("export default () => 2")
    await node.lifecycle.activate(node.project_id, made.id, 2)
    assert await rollback(node, made) == 1


async def test_a_version_that_is_kept_no_more_is_not_rolled_back_to(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "KEPT_VERSIONS", 2)
    made = await node.deploy("export default () => 1")
    await node.deploy("export default () => 2")
    await node.lifecycle.activate(node.project_id, made.id, 1)
    await node.deploy("export default () => 3")
    with pytest.raises(FailedPrecondition, match="Version 1 was active before, but is kept no more") as caught:
        await rollback(node, made)
    assert caught.value.reason == "VERSION_NOT_KEPT"
    assert (await node.registry.get(node.project_id, made.id)).version == 3


async def test_history_is_bounded(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "KEPT_ENTRIES", 3)
    for number in range(5):
        await node.deploy(f"export default () => {number}")
    assert await node.count("function_activations") == 3


async def test_an_update_is_a_version_of_the_same_code(node: Node, other_node: Node) -> None:
    made = await node.deploy("export default () => 1", note="first")
    code = await other_node.code()
    changed = await update(
        node,
        made,
        isolation="fresh",
        note="colder",
        change=Reconfiguration(settings=FunctionSettings(timeout_ms=50, concurrency=2), env={"A": "1"}),
    )
    assert (changed.version, changed.isolation, changed.env) == (2, "fresh", {"A": "1"})
    assert changed.settings == FunctionSettings(timeout_ms=50, concurrency=2)
    assert (changed.name, changed.entrypoint) == (made.name, made.entrypoint)
    resolved = await other_node.catalog.resolve(node.project_id, "hello")
    assert (resolved.program.key, resolved.program.isolation) == ((node.project_id, made.id, 2), "fresh")
    assert (resolved.program.code.decode(), resolved.env_json) == (code, b'{"A":"1"}')
    second, first = (await node.registry.versions(node.project_id, made.id)).items
    assert (first.note, first.settings, first.env) == ("first", FunctionSettings(), {})
    assert (second.note, second.sha256, second.source_bytes) == ("colder", first.sha256, first.source_bytes)
    assert await rollback(node, made) == 1
    assert (await other_node.catalog.resolve(node.project_id, "hello")).env_json == b"{}"


async def test_only_a_new_name_is_no_version(node: Node, other_node: Node) -> None:
    made = await node.deploy()
    await other_node.code()
    renamed = await update(node, made, name="Other")
    assert (renamed.name, renamed.version) == ("Other", 1)
    assert (await other_node.catalog.resolve(node.project_id, "hello")).function == renamed
    assert await update(node, made) == renamed, "nothing given changes nothing"


async def test_updates_keep_as_many_versions_as_deploys(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "KEPT_VERSIONS", 2)
    made = await node.deploy()
    for number in range(4):
        await update(node, made, note=str(number))
    assert [item.note for item in (await node.registry.versions(node.project_id, made.id)).items] == ["3", "2"]
    assert await node.count("artifacts") == len(node.files()) == 3


async def test_a_bad_update_changes_nothing(node: Node) -> None:
    made = await node.deploy()
    bad: list[tuple[str, dict[str, Any]]] = [
        ("name", {"name": ""}),
        ("isolation", {"isolation": "cold"}),
        ("isolation", {"isolation": ""}),
        ("note", {"note": "x" * 1_001}),
        ("note", {"note": "\0"}),
        ("settings.timeout_ms", {"name": "N", "change": Reconfiguration(settings=FunctionSettings(timeout_ms=5_001))}),
        ("remove_secrets", {"name": "N", "change": Reconfiguration(remove_secrets=("NO",))}),
        ("env", {"name": "N", "change": Reconfiguration(env={"1": ""})}),
    ]
    for field, fields in bad:
        with pytest.raises(InvalidArgument) as caught:
            await update(node, made, **fields)
        assert caught.value.field == field
    assert await node.registry.get(node.project_id, made.id) == made


async def test_a_deleted_function_is_gone_everywhere_and_kept(node: Node, other_node: Node) -> None:
    made = await node.deploy()
    await other_node.code()
    await node.lifecycle.delete(node.project_id, made.id)
    for each in (node, other_node):
        with pytest.raises(NotFound):
            await each.code()
    assert (await node.registry.list(node.project_id)).items == []
    (deleted,) = (await node.registry.list(node.project_id, deleted=True)).items
    assert (deleted.id, deleted.deleted_at is not None) == (made.id, True)
    assert await node.registry.get(node.project_id, made.id) == deleted
    assert len((await node.registry.versions(node.project_id, made.id)).items) == 1
    await node.lifecycle.delete(node.project_id, made.id)
    assert await node.registry.get(node.project_id, made.id) == deleted, "once is enough"
    for change in (
        update(node, made, name="x"),
        node.lifecycle.rollback(node.project_id, made.id),
        node.lifecycle.activate(node.project_id, made.id, 1),
    ):
        with pytest.raises(NotFound):
            await change


async def test_an_undeleted_function_is_as_it_was(node: Node, other_node: Node) -> None:
    await node.deploy("export default () => 1", change=Reconfiguration(secrets={"S": "s"}))
    made = await node.deploy("export default () => 2")
    await node.lifecycle.activate(node.project_id, made.id, 1)
    await node.lifecycle.delete(node.project_id, made.id)
    back = await node.lifecycle.undelete(node.project_id, made.id)
    assert (back.id, back.version, back.deleted_at, back.secret_names) == (made.id, 1, None, ["S"])
    for each in (node, other_node):
        assert (await each.code()).endswith("=> 1")
        assert (await each.catalog.resolve(node.project_id, "hello")).env_json == b'{"S":"s"}'
    assert await node.lifecycle.undelete(node.project_id, made.id) == back, "what is there stays"
    assert await rollback(node, made) == 2
    assert (await node.deploy()).version == 3


async def test_a_slug_that_was_taken_meanwhile_stays_with_whom_has_it(node: Node) -> None:
    first = await node.deploy("export default () => 1")
    await node.lifecycle.delete(node.project_id, first.id)
    await node.deploy("export default () => 2")
    with pytest.raises(AlreadyExists, match='The slug "hello" is taken'):
        await node.lifecycle.undelete(node.project_id, first.id)
    assert (await node.code()).endswith("=> 2")


async def test_a_full_project_takes_nothing_back(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "MAX_FUNCTIONS", 1)
    first = await node.deploy(slug="a")
    await node.lifecycle.delete(node.project_id, first.id)
    await node.deploy(slug="b")
    with pytest.raises(ResourceExhausted):
        await node.lifecycle.undelete(node.project_id, first.id)


async def test_after_thirty_days_it_is_as_if_it_had_never_been(node: Node) -> None:
    made = await node.deploy()
    await node.lifecycle.delete(node.project_id, made.id)
    await age(node, 29.99)
    assert (await node.registry.get(node.project_id, made.id)).id == made.id
    await age(node, 0.02)
    calls: list[Callable[[str, str], Awaitable[Any]]] = [
        node.registry.get,
        node.registry.versions,
        node.lifecycle.undelete,
        node.lifecycle.delete,
    ]
    for call in calls:
        with pytest.raises(NotFound):
            await call(node.project_id, made.id)
    assert (await node.registry.list(node.project_id, deleted=True)).items == []


async def test_a_sweep_takes_what_is_kept_no_more_and_nothing_that_others_use(node: Node, other_node: Node) -> None:
    gone = await node.deploy("shared", slug="a")
    await node.deploy("own", slug="a")
    await node.deploy("shared", slug="b")
    kept = await node.deploy("lately", slug="c")
    await other_node.code("a")
    await node.lifecycle.delete(node.project_id, gone.id)
    await node.lifecycle.sweep()
    assert await node.count("functions") == 3, "deleted, but not for long"
    await age(node, 31)
    await node.lifecycle.delete(node.project_id, kept.id)
    files = node.files()
    await node.lifecycle.sweep()
    # The code names its file, so of `a` nothing is shared with `b` but the source map and the first source.
    assert len(files - node.files()) == 3
    assert (await node.count("functions"), await node.count("function_activations")) == (2, 2)
    assert await node.count("artifacts") == len(node.files())
    assert (await node.code("b")).endswith("shared")
    assert (await node.lifecycle.undelete(node.project_id, kept.id)).slug == "c"


async def test_a_sweep_removes_files_that_belong_to_no_version_any_more(node: Node, other_node: Node) -> None:
    made = await node.deploy("export default () => 1")
    await node.deploy(slug="kept")
    await other_node.code()
    await other_node.code("kept")
    await node.lifecycle.delete(node.project_id, made.id)
    await age(node, 31)
    for each in (node, other_node):
        for path in (each.root / each.project_id).iterdir():
            os.utime(path, (1, 1))
        await each.lifecycle.sweep()
    assert len(node.files()) == 3
    assert other_node.files() < node.files(), "without the source, which only deploys need"


async def test_the_longest_deleted_go_when_there_are_too_many(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "MAX_DELETED", 2)
    for slug in "abc":
        made = await node.deploy(f"export default () => '{slug}'", slug=slug)
        await node.lifecycle.delete(node.project_id, made.id)
    deleted = (await node.registry.list(node.project_id, deleted=True)).items
    assert [item.slug for item in deleted] == ["c", "b"]
    assert await node.count("artifacts") == len(node.files()) == 5


async def test_strangers_can_do_nothing(node: Node) -> None:
    made = await node.deploy()
    stranger = await add_project(node.pool)
    for project_id, function_id in ((node.project_id, UNKNOWN), (stranger, made.id)):
        for call in (
            node.lifecycle.rollback(project_id, function_id),
            node.lifecycle.undelete(project_id, function_id),
            node.registry.version(project_id, function_id, 1),
            node.downloads.get(project_id, function_id, 1, ""),
            node.deployer.update(project_id, None, function_id, name="x"),
        ):
            with pytest.raises(NotFound, match=f"no function {function_id}"):
                await call


async def test_a_list_of_large_functions_comes_in_pages_that_fit(node: Node) -> None:
    large = Reconfiguration(env={"BIG": "x" * 60_000})
    for number in range(40):
        await node.deploy(slug=f"f{number}", change=large)
    slugs, token, pages = [], "", 0
    while pages == 0 or token:
        page = await node.registry.list(node.project_id, 200, token)
        assert sum(len(item.env["BIG"]) for item in page.items) < 2 * 2**20
        slugs += [item.slug for item in page.items]
        token, pages = page.next_page_token, pages + 1
    assert (slugs, pages) == ([f"f{number}" for number in reversed(range(40))], 2)
