"""`atlas workflows` against an API of its own: what it asks for, and what it prints."""

import json
from pathlib import Path
from typing import Any

import pytest

from atlas.workflows.v1 import workflows_pb2
from tests.fix_cli import Atlas
from tests.fix_cli_events import FakeEventApi

DEFINITION = '{"nodes": [{"id": "wait", "type": "delay", "config": {"seconds": 1.50}}], "edges": []}'


def a_run(state: str, *steps: workflows_pb2.WorkflowStep, **fields: Any) -> workflows_pb2.WorkflowRun:
    return workflows_pb2.WorkflowRun(id="r1", workflow_id="w1", version=2, state=state, steps=steps, **fields)


def a_step(node_id: str, state: str, **fields: Any) -> workflows_pb2.WorkflowStep:
    return workflows_pb2.WorkflowStep(node_id=node_id, type="delay", state=state, **fields)


ERROR = workflows_pb2.WorkflowError(reason="FUNCTION_EXCEPTION", message="boom", node_id="charge")


def test_a_definition_is_deployed_as_it_is_written(
    event_api: FakeEventApi, to_event_api: Atlas, tmp_path: Path
) -> None:
    (tmp_path / "order.json").write_text(DEFINITION)
    ran = to_event_api("workflows", "deploy", "order.json")
    (workflow_id,) = event_api.workflows
    assert ran.out == f"order is at version 1: {workflow_id}\n"
    assert event_api.bodies[-1] == f'{{"name": "order", "definition": {DEFINITION}}}'.encode()
    again = to_event_api("workflows", "deploy", "-", "--name", "order", "--json", stdin=DEFINITION).json
    assert (again["id"], again["version"]) == (workflow_id, 2)
    assert event_api.bodies[-1] == f'{{"definition": {DEFINITION}}}'.encode()
    assert (
        to_event_api("workflows", "deploy", "order.json", "--check").out
        == "The definition is right: 1 nodes, 0 edges\n"
    )
    assert event_api.workflows[workflow_id].version == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("deploy", "none.json"), 2),
        (("deploy", "-"), 2),
        (("deploy", "-", "--name", "x"), 2),
        (("get", "unknown"), 3),
        (("run", "twice"), 3),
    ],
)
def test_what_cannot_be_meant(
    arguments: tuple[str, ...], code: int, event_api: FakeEventApi, to_event_api: Atlas
) -> None:
    for _ in range(2):
        event_api.add_workflow("twice")
    ran = to_event_api("workflows", *arguments, stdin="[]")
    assert (ran.code, ran.out) == (code, "")
    assert not event_api.bodies


def test_workflows_are_listed_shown_and_deleted(event_api: FakeEventApi, to_event_api: Atlas) -> None:
    ids = [event_api.add_workflow(name) for name in ("one", "two")]
    lines = [line.split() for line in to_event_api("workflows").out.splitlines()]
    assert lines == [["NAME", "VERSION", "UPDATED", "WORKFLOW"], ["one", "1", ids[0]], ["two", "1", ids[1]]]
    assert [item["name"] for item in to_event_api("workflows", "--json").json["workflows"]] == ["one", "two"]
    assert to_event_api("workflows", "get", "two").json["id"] == ids[1]
    assert to_event_api("workflows", "delete", ids[0]).code == 0
    assert list(event_api.workflows) == ids[1:]


def test_a_run_is_started_and_watched(event_api: FakeEventApi, to_event_api: Atlas) -> None:
    event_api.add_workflow("order")
    ran = to_event_api("workflows", "run", "order", "--data", '{"a": 1.10}')
    assert ran.out == "r1\n"
    assert event_api.bodies[-1] == b'{"input": {"a": 1.10}, "run_id": ""}'
    waiting = a_step("charge", "waiting", attempts=2, error=ERROR)
    waiting.due_at.FromSeconds(1_700_000_000)
    event_api.workflow_runs = [
        a_run("running", a_step("charge", "running"), a_step("after", "pending")),
        a_run("running", waiting),
        a_run("failed", a_step("charge", "failed", attempts=3, error=ERROR), error=ERROR),
    ]
    ran = to_event_api("workflows", "run", "order", "--watch")
    lines = ran.out.splitlines()
    assert (ran.code, ran.err, lines[0]) == (1, "r1\n", "charge  running")
    assert lines[1].startswith("charge  waiting until 2023-11-1")
    assert lines[2:] == [
        "charge  failed, attempt 3: FUNCTION_EXCEPTION: boom",
        "failed  charge: FUNCTION_EXCEPTION: boom",
    ]
    event_api.workflow_runs = [a_run("succeeded")]
    ran = to_event_api("workflows", "watch", "r1", "--json")
    assert (ran.code, [json.loads(line)["state"] for line in ran.out.splitlines()]) == (0, ["succeeded"])


def test_runs_are_listed_shown_and_cancelled(event_api: FakeEventApi, to_event_api: Atlas) -> None:
    workflow_id = event_api.add_workflow("order")
    event_api.workflow_runs = [a_run("failed", a_step("charge", "failed", attempts=3, error=ERROR), error=ERROR)]
    lines = to_event_api("workflows", "runs", "order", "--state", "failed", "--since", "1h").out.splitlines()
    assert lines[1].split()[-4:] == ["failed", "2", "w1", "r1"]
    asked = event_api.asked[-1]
    assert (asked.workflow, asked.state, asked.HasField("since")) == (workflow_id, "failed", True)
    assert len(to_event_api("workflows", "runs", "--json").json["runs"]) == 1
    shown = to_event_api("workflows", "show", "r1").out
    assert "failed  charge: FUNCTION_EXCEPTION: boom" in shown
    assert shown.splitlines()[-1].split() == ["charge", "delay", "failed", "3", "boom"]
    assert to_event_api("workflows", "show", "r1", "--json").json == {"id": "r1"}
    assert to_event_api("workflows", "step", "r1", "charge").json["output"] == [1]
    assert to_event_api("workflows", "cancel", "r1").out == "r1: cancelled\n"
