"""`atlas workflows` with the whole stack: deployed from a file, run by hand and by a trigger, watched and cancelled."""

import json

import pytest

from tests.fix_cli import Program
from tests.fix_clients import eventually

DEFINITION = {
    "nodes": [
        {"id": "double", "type": "function", "config": {"function": "double", "input": "{{trigger.data.amount}}"}},
        {
            "id": "keep",
            "type": "kv",
            "config": {"op": "set", "key": "last", "value": "{{steps.double.output}}"},
        },
    ],
    "edges": [{"id": "e1", "source": "double", "target": "keep"}],
}


@pytest.fixture
def order(program: Program) -> Program:
    """With a workflow `order`."""
    (program.folder / "double.js").write_text("export default (n) => n * 2;\n")
    program.run("deploy", "double.js")
    (program.folder / "order.json").write_text(json.dumps(DEFINITION))
    program.run("workflows", "deploy", "order.json")
    return program


def test_it_is_deployed_run_and_watched(order: Program) -> None:
    assert "2 nodes, 1 edges" in order.run("workflows", "deploy", "order.json", "--check").stdout
    watched = order.run("workflows", "run", "order", "--data", '{"amount": 21}', "--watch")
    assert watched.stdout.splitlines()[-1] == "succeeded"
    run_id = watched.stderr.strip()
    assert order.json("workflows", "step", run_id, "double")["output"] == 42
    shown = order.run("workflows", "show", run_id).stdout
    assert "double  function  succeeded" in shown
    assert run_id in [item["id"] for item in order.json("workflows", "runs", "order")["runs"]]
    order.run("workflows", "cancel", run_id, code=3)


def test_a_trigger_starts_it(order: Program) -> None:
    made = order.json("triggers", "create", "--on", "order.counted", "--workflow", "order")
    order.run("events", "publish", "order.counted", "--data", '{"amount": 3}')

    def ended() -> bool:
        found = order.json("workflows", "runs", "order", "--state", "succeeded")["runs"]
        return made["id"] in [item["trigger_id"] for item in found]

    eventually(ended)
    order.run("workflows", "delete", "order", code=3)
    order.run("triggers", "delete", made["id"])
    order.run("workflows", "delete", "order")


def test_a_definition_that_is_wrong_is_told_where(order: Program) -> None:
    broken = {"nodes": [{"id": "a", "type": "nothing", "config": {}}], "edges": []}
    (order.folder / "broken.json").write_text(json.dumps(broken))
    assert "definition.nodes[0].type" in order.run("workflows", "deploy", "broken.json", code=3).stderr
