"""A workflow of one project against what belongs to another, past the checks of the API too."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from engines.contract import Outcome, Result
from server.host.keyvalue import KeyValue
from server.invocations.invoke import Call, Finished
from server.workflows.nodes.function import FunctionNode
from server.workflows.nodes.kv import KeyValueNode
from server.workflows.targets import Targets
from server.workflows.worker import StepWorker
from tests.fix_functions import Node
from tests.fix_workflows import Site, kv


class Invoker:
    """Every function there is answers."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    async def invoke(self, call: Call) -> Finished:
        self.calls.append(call)
        return Finished(call.run_id, Result(outcome=Outcome.OK))


@pytest.fixture
async def keys(valkey_url: str) -> AsyncIterator[KeyValue]:
    made = KeyValue(valkey_url)
    yield made
    await made.close()


@pytest.fixture
async def invoker(site: Site, keys: KeyValue) -> Invoker:
    """Of a worker that serves every project."""
    made = Invoker()
    types: dict[str, Any] = {"function": FunctionNode(made, Targets(site.pool)), "kv": KeyValueNode(keys)}
    worker = StepWorker(site.pool, site.bus, types)
    site.workers.append(worker)
    await worker.start()
    return made


async def test_a_forged_definition_reaches_no_function_of_another_project(
    site: Site, node: Node, invoker: Invoker
) -> None:
    theirs = await node.deploy()
    workflow = await site.define([kv("a")])
    forged = {"nodes": [{"id": "a", "type": "function", "config": {"function_id": theirs.id}}]}
    await site.execute("UPDATE workflow_definitions SET definition = %s::json", json.dumps(forged))
    run, _ = await site.ended(await site.run(workflow))
    assert run.error is not None
    assert (run.state, run.error["reason"], invoker.calls) == ("failed", "FUNCTION_NOT_FOUND", [])


async def test_a_function_is_called_as_the_runs_own_project(site: Site, invoker: Invoker) -> None:
    workflow = await site.define([kv("a")])
    forged = {"nodes": [{"id": "a", "type": "function", "config": {"function": "hello", "input": "{{trigger}}"}}]}
    await site.execute("UPDATE workflow_definitions SET definition = %s::json", json.dumps(forged))
    assert (await site.result(await site.run(workflow, {"project_id": "theirs"})))[0] == "succeeded"
    assert [call.project_id for call in invoker.calls] == [site.project_id]


@pytest.mark.parametrize("key", ["{{trigger.key}}", "../{{trigger.key}}", "*"])
async def test_a_key_stays_in_the_projects_own_space(site: Site, keys: KeyValue, invoker: Invoker, key: str) -> None:
    other = "00000000-0000-4000-8000-000000000001"
    await keys.set(other, "secret", "theirs", None)
    forged = f"../{other}/secret"
    get = {"id": "get", "type": "kv", "config": {"op": "get", "key": key}}
    drop = {"id": "drop", "type": "kv", "config": {"op": "delete", "key": key}}
    workflow = await site.define([get, drop], "get drop")
    for attempt in (f"proj:{other}:kv:secret", forged, "secret"):
        _, steps = await site.ended(await site.run(workflow, {"key": attempt}))
        assert [steps[name].output for name in ("get", "drop")] == [b"null", b"false"]
    assert await keys.get(other, "secret") == b'"theirs"'


async def test_a_template_sees_its_own_run_alone(site: Site, invoker: Invoker) -> None:
    workflow = await site.define(
        [kv("a", "{{trigger.secret}}"), kv("b", "{{steps.a.output}}{{trigger.steps}}{{trigger.run}}")], "a b"
    )
    first = await site.run(workflow, {"secret": "one"})
    second = await site.run(workflow, {})
    await site.ended(first)
    _, steps = await site.ended(second)
    assert steps["b"].input is not None
    assert json.loads(steps["b"].input)["value"] == ""
