"""Variables and secrets of a function: carried from version to version, sealed at rest, opened where they run."""

import asyncio
import base64
import logging
from pathlib import Path
from typing import Any

import orjson
import pytest

from engines.contract import Invocation, Limits
from server.errors import Internal, InvalidArgument
from server.functions.configuration import Reconfiguration
from server.functions.settings import FunctionSettings
from server.postgres.changes import Changes
from server.postgres.control import transaction
from server.tiers import TABLE
from tests.fix_functions import Node, start_node

VALUE = "hunter2-correct-horse"


async def env_of(node: Node, slug: str = "hello") -> Any:
    return orjson.loads((await node.catalog.resolve(node.project_id, slug)).env_json)


async def dump(node: Node) -> str:
    """All that the database holds of functions, as text."""
    async with transaction(node.pool) as conn:
        cursor = await conn.execute("SELECT f::text || v::text FROM functions f, function_versions v")
        return "".join(row[0] for row in await cursor.fetchall())


async def test_what_is_not_given_is_carried_over(node: Node, other_node: Node) -> None:
    first = Reconfiguration(env={"A": "1"}, secrets={"S": "s", "T": "t"}, settings=FunctionSettings(timeout_ms=100))
    await node.deploy(change=first)
    made = await node.deploy("export default () => 2", change=Reconfiguration(secrets={"T": "new", "U": "u"}))
    assert await env_of(other_node) == {"A": "1", "S": "s", "T": "new", "U": "u"}
    assert (made.env, made.secret_names, made.settings) == (
        {"A": "1"},
        ["S", "T", "U"],
        FunctionSettings(timeout_ms=100),
    )
    await node.deployer.update(
        node.project_id, "free", made.id, change=Reconfiguration(env={}, remove_secrets=("S", "U"))
    )
    assert await env_of(other_node) == {"T": "new"}
    await node.lifecycle.activate(node.project_id, made.id, 1)
    assert await env_of(other_node) == {"A": "1", "S": "s", "T": "t"}
    versions = (await node.registry.versions(node.project_id, made.id)).items
    assert [item.secret_names for item in versions] == [["T"], ["S", "T", "U"], ["S", "T"]]


async def test_deploys_carry_over_from_what_is_active_not_from_what_is_newest(node: Node) -> None:
    made = await node.deploy(change=Reconfiguration(env={"A": "one"}))
    await node.deploy(change=Reconfiguration(env={"A": "two"}))
    await node.lifecycle.activate(node.project_id, made.id, 1)
    assert (await node.deploy()).env == {"A": "one"}


async def test_changes_at_the_same_time_are_all_kept(node: Node, other_node: Node) -> None:
    made = await node.deploy()
    await asyncio.gather(
        *(
            (node, other_node)[number % 2].deployer.update(
                node.project_id, "free", made.id, change=Reconfiguration(secrets={f"S{number}": str(number)})
            )
            for number in range(10)
        )
    )
    assert await env_of(node) == {f"S{number}": str(number) for number in range(10)}


async def test_a_secret_is_nowhere_to_be_read(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    change = Reconfiguration(secrets={"TOKEN": VALUE})
    made = await node.deploy(change=change)
    resolved = await node.catalog.resolve(node.project_id, "hello")
    active = await node.registry.active(node.project_id, "hello")
    version = await node.registry.version(node.project_id, made.id, 1)
    invocation = Invocation(id="i", input=b"null", context=resolved.env_json)
    assert VALUE.encode() in resolved.env_json
    seen = repr((change, made, resolved, active, version, invocation, node.catalog)) + caplog.text + await dump(node)
    for hidden in (VALUE, base64.b64encode(VALUE.encode()).decode().rstrip("="), VALUE.encode().hex()):
        assert hidden not in seen
    for path in (node.root / node.project_id).iterdir():
        assert VALUE.encode() not in path.read_bytes()


async def test_a_sealed_secret_does_not_open_in_another_function(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    await node.deploy(slug="rich", change=Reconfiguration(secrets={"S": VALUE}))
    await node.deploy(slug="thief", change=Reconfiguration(secrets={"S": "mine"}))
    async with transaction(node.pool) as conn:
        await conn.execute(
            "UPDATE function_versions SET secrets = (SELECT secrets FROM functions f JOIN function_versions v"
            " ON v.function_id = f.id WHERE slug = 'rich')"
        )
    with pytest.raises(Internal, match="secret S of this function cannot be opened: it is damaged, or was sealed for"):
        await env_of(node, "thief")
    assert await env_of(node, "rich") == {"S": VALUE}
    assert VALUE not in caplog.text


async def test_another_master_key_is_a_fault_of_the_functions_with_secrets_alone(
    node: Node, control_url: str, tmp_path: Path
) -> None:
    made = await node.deploy(slug="sealed", change=Reconfiguration(secrets={"S": VALUE}))
    await node.deploy(slug="plain", change=Reconfiguration(env={"A": "1"}))
    changes = Changes(control_url)
    other = await start_node(node.project_id, node.pool, changes, tmp_path / "other", master_key=bytes(32))
    try:
        with pytest.raises(Internal, match="sealed with another master key; set it again") as caught:
            await env_of(other, "sealed")
        assert caught.value.reason == "SECRET_UNREADABLE"
        assert await env_of(other, "plain") == {"A": "1"}
        await other.deployer.update(node.project_id, None, made.id, change=Reconfiguration(secrets={"S": "again"}))
        assert await env_of(other, "sealed") == {"S": "again"}
    finally:
        await changes.close()


async def test_what_does_not_fit_is_refused_before_anything_is_compiled(node: Node) -> None:
    await node.deploy(change=Reconfiguration(env={"A": "1"}))
    for change, field in (
        (Reconfiguration(secrets={"A": "x"}), "secrets"),
        (Reconfiguration(secrets={"B": "x" * 65_536}), "secrets"),
        (Reconfiguration(env={"B": "\0"}), "env"),
        (Reconfiguration(settings=FunctionSettings(memory_mb=17)), "settings.memory_mb"),
    ):
        checked, files = len(node.engine.checked), node.files()
        with pytest.raises(InvalidArgument) as caught:
            await node.deploy("export default () => 'new'", change=change)
        assert (caught.value.field, len(node.engine.checked), node.files()) == (field, checked, files)
    assert (await node.registry.list(node.project_id)).items[0].version == 1


async def test_settings_bound_every_tier_and_are_computed_once(node: Node) -> None:
    await node.deploy(change=Reconfiguration(settings=FunctionSettings(timeout_ms=100, memory_mb=8)))
    resolved = await node.catalog.resolve(node.project_id, "hello")
    for tier in TABLE.values():
        bounded = resolved.limits_for(tier)
        assert (bounded.wall_ms, bounded.memory_bytes, bounded.fuel) == (100, 8 * 2**20, tier.fuel)
        assert resolved.limits_for(tier) is bounded
    _, limits = node.engine.checked[0]
    assert (limits.wall_ms, limits.memory_bytes) == (5_000, 8 * 2**20), "loaded with its memory in the tier's time"


async def test_without_settings_the_tiers_limits_are_handed_through(node: Node) -> None:
    await node.deploy()
    resolved = await node.catalog.resolve(node.project_id, "hello")
    tier = Limits(wall_ms=1, cpu_ms=1, memory_bytes=1, fetch_calls=1)
    assert resolved.limits_for(tier) is tier
    assert resolved.env_json == b"{}"
