"""Workflows as clients meet them, over REST and gRPC through Envoy, with real functions."""

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import json_format, struct_pb2

from atlas.workflows.v1 import workflows_service_pb2 as pb
from atlas.workflows.v1.workflows_service_pb2_grpc import WorkflowServiceStub
from tests.fix_clients import Rest, eventually

ADD = "export default (input) => ({sum: input.a + input.b})"
SLOW = "export default async () => { await new Promise(done => setTimeout(done, 60000)) }"
THROWS = "export default () => { throw new TypeError('no such thing') }"


class Workflows:
    """As one project."""

    def __init__(self, rest: Rest) -> None:
        self.rest = rest
        self.path = f"/workflows/v1/projects/{rest.project_id}"

    def call(self, method: str, path: str, body: Any = None, *, key: str = "", **options: Any) -> httpx.Response:
        if body is not None:
            options["content"] = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.rest.request(method, self.path + path, key=key or self.rest.service_key, **options)

    def create(self, nodes: list[Any], *edges: Any, name: str = "Test") -> str:
        definition = {"nodes": nodes, "edges": list(edges)}
        answer = self.call("POST", "/definitions", {"name": name, "definition": definition})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def run(self, workflow_id: str, data: Any = None) -> str:
        answer = self.call("POST", f"/definitions/{workflow_id}:run", {"input": data})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def get(self, run_id: str) -> Any:
        answer = self.call("GET", f"/runs/{run_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def ended(self, run_id: str) -> Any:
        def ask() -> Any:
            run = self.get(run_id)
            return run if run["state"] != "running" else None

        return eventually(ask, within_s=30.0)

    def steps(self, run: Any) -> dict[str, Any]:
        return {step["node_id"]: step for step in run["steps"]}


@pytest.fixture
def workflows(new_project: Callable[..., Rest]) -> Workflows:
    return Workflows(new_project(tier="pro"))


def node(node_id: str, node_type: str, **config: Any) -> dict[str, Any]:
    return {"id": node_id, "type": node_type, "config": config}


def edge(source: str, target: str, **more: Any) -> dict[str, Any]:
    return {"source": source, "target": target, **more}


def events(answer: httpx.Response) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in answer.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def error(answer: httpx.Response) -> tuple[int, str, str]:
    """Status, reason, and the field that is wrong."""
    told = answer.json()["error"]
    fields = [
        violation["field"]
        for detail in told.get("details", ())
        for violation in detail.get("field_violations", detail.get("fieldViolations", ()))
    ]
    return answer.status_code, told["details"][0]["reason"], "".join(fields)


def test_a_workflow_from_its_definition_to_its_end(workflows: Workflows) -> None:
    """Every type of node."""
    workflows.rest.deployed(ADD, slug="add")
    conditions = [{"field": "steps.add.output.sum", "op": "gt", "value": 5}]
    workflow = workflows.create(
        [
            node("add", "function", function="add", input={"a": "{{trigger.a}}", "b": "{{trigger.data.b}}"}),
            node("large", "condition", conditions=conditions),
            node("keep", "kv", op="set", key="sum/{{run.id}}", value="{{steps.add.output.sum}}"),
            node("small", "kv", op="get", key="never"),
            node("pause", "delay", seconds=0.1),
            node("read", "kv", op="get", key="sum/{{run.id}}"),
            node("tell", "event", type="sum.made", data={"sum": "{{steps.read.output}}"}),
        ],
        edge("add", "large"),
        edge("large", "keep", branch=True),
        edge("large", "small", branch=False),
        edge("keep", "pause"),
        edge("pause", "read"),
        edge("read", "tell"),
        edge("small", "tell"),
    )
    run = workflows.ended(workflows.run(workflow, {"a": 2, "b": 4}))
    assert (run["state"], run["workflow_id"], run["version"]) == ("succeeded", workflow, 1), run
    steps = workflows.steps(run)
    assert {name: step["state"] for name, step in steps.items()} == {
        **dict.fromkeys(("add", "large", "keep", "pause", "read", "tell"), "succeeded"),
        "small": "skipped",
    }
    assert (steps["add"]["input"], steps["add"]["output"]) == ({"a": 2, "b": 4}, {"sum": 6})
    assert (steps["large"]["output"], steps["read"]["output"]) == (True, 6)
    assert steps["tell"]["output"]["type"] == "sum.made"
    invocation = steps["add"]["history"][0]["invocation_id"]
    assert workflows.rest.record(invocation)["trigger"] == "workflow"


def test_a_function_that_throws_says_so_and_where(workflows: Workflows) -> None:
    function_id = workflows.rest.deployed(THROWS, slug="throws")
    call = {**node("call", "function", function_id=function_id), "retry": {"attempts": 2, "backoff_ms": 10}}
    run = workflows.ended(workflows.run(workflows.create([call])))
    assert run["state"] == "failed"
    assert run["error"] == {
        "reason": "FUNCTION_EXCEPTION",
        "message": "The function threw TypeError: no such thing",
        "node_id": "call",
    }
    history = workflows.steps(run)["call"]["history"]
    assert [(each["number"], each["error"]["reason"]) for each in history] == [
        (1, "FUNCTION_EXCEPTION"),
        (2, "FUNCTION_EXCEPTION"),
    ]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/", "http://169.254.169.254/latest/meta-data", "http://[::1]/", "{{trigger.url}}"]
)
def test_an_http_node_goes_where_a_function_may_go_and_nowhere_else(workflows: Workflows, url: str) -> None:
    data = {"url": workflows.rest.client.base_url.join("/healthz").__str__()}
    run = workflows.ended(workflows.run(workflows.create([node("get", "http", url=url)]), data))
    assert (run["state"], run["error"]["reason"]) == ("failed", "HTTP_BLOCKED"), run


class TestWatch:
    def test_from_the_first_state_to_the_last(self, workflows: Workflows) -> None:
        run_id = workflows.run(
            workflows.create([node("wait", "delay", seconds=1), node("get", "kv", op="get", key="k")])
        )
        with workflows.rest.client.stream(
            "GET",
            f"{workflows.path}/runs/{run_id}:watch",
            headers={"authorization": f"Bearer {workflows.rest.service_key}"},
        ) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            seen = [*events(answer)]
        assert {step["node_id"] for name, step in seen[:2]} == {"wait", "get"}
        runs = [run for name, run in seen if name == "run"]
        assert (runs[0]["state"], runs[-1]["state"], runs[-1]["id"]) == ("running", "succeeded", run_id)
        assert [step["state"] for name, step in seen if name == "step" and step["node_id"] == "wait"][-1] == "succeeded"

    def test_who_may(self, workflows: Workflows, rest: Rest) -> None:
        run_id = workflows.run(workflows.create([node("get", "kv", op="get", key="k")]))
        assert error(workflows.call("GET", f"/runs/{run_id}:watch", key=workflows.rest.anon_key))[1] == "WRONG_ROLE"
        assert error(workflows.call("GET", f"/runs/{run_id}:watch", key=rest.service_key))[1] == "WRONG_PROJECT"
        assert error(workflows.call("GET", f"/runs/{uuid.uuid4()}:watch"))[1] == "WORKFLOW_RUN_NOT_FOUND"


def test_cancelling_ends_the_function_that_runs(workflows: Workflows) -> None:
    workflows.rest.deployed(SLOW, slug="slow")
    run_id = workflows.run(workflows.create([node("call", "function", function="slow")]))
    eventually(lambda: workflows.rest.runs(state="running"))
    answer = workflows.call("POST", f"/runs/{run_id}:cancel", {})
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled"), answer.text
    eventually(lambda: not workflows.rest.runs(state="running"), within_s=5.0)
    assert workflows.steps(workflows.get(run_id))["call"]["state"] == "cancelled"
    assert error(workflows.call("POST", f"/runs/{run_id}:cancel", {}))[:2] == (400, "WORKFLOW_RUN_FINISHED")


class TestDefinitions:
    def test_digits_survive_and_a_change_is_a_version(self, workflows: Workflows) -> None:
        text = b'{"nodes": [{"id":"a","type":"kv","config":{"op":"set","key":"k","value":12345678901234567890.10}}]}'
        made = workflows.call("POST", "/definitions", b'{"name": "Digits", "definition": ' + text + b"}")
        assert made.status_code == 200, made.text
        workflow = made.json()
        assert text in workflows.call("GET", f"/definitions/{workflow['id']}").content
        listed = workflows.call("GET", "/definitions").json()
        assert [item["name"] for item in listed["workflows"]] == ["Digits"]
        changed = workflows.call("PATCH", f"/definitions/{workflow['id']}", {"name": "Fewer"}).json()
        assert (changed["name"], changed["version"]) == ("Fewer", 1)
        nodes = {"nodes": [node("b", "kv", op="get", key="k")]}
        changed = workflows.call("PATCH", f"/definitions/{workflow['id']}", {"definition": nodes}).json()
        assert (changed["version"], changed["definition"]) == (2, nodes)
        assert workflows.call("DELETE", f"/definitions/{workflow['id']}").status_code == 200
        assert error(workflows.call("GET", f"/definitions/{workflow['id']}"))[:2] == (404, "WORKFLOW_NOT_FOUND")

    @pytest.mark.parametrize(
        ("body", "reason", "field"),
        [
            (b"{", "INVALID_FIELD", "body"),
            (b"[]", "INVALID_FIELD", "body"),
            ({}, "INVALID_FIELD", "definition"),
            ({"definition": {"nodes": []}}, "INVALID_FIELD", "definition.nodes"),
            ({"definition": {"nodes": [node("a", "sql")]}}, "INVALID_FIELD", "definition.nodes[0].type"),
            (
                {"definition": {"nodes": [node("a", "function", function="gone")]}},
                "INVALID_FIELD",
                "definition.nodes[0].config.function",
            ),
            ({"definition": {"nodes": [node("a", "kv", op="get", key="k")]}, "nam": 1}, "INVALID_FIELD", "nam"),
        ],
        ids=repr,
    )
    def test_what_is_wrong_is_named(self, workflows: Workflows, body: Any, reason: str, field: str) -> None:
        for path in ("/definitions", "/definitions:validate"):
            sent = {"name": "x", **body} if isinstance(body, dict) and path == "/definitions" else body
            assert error(workflows.call("POST", path, sent)) == (400, reason, field)
        assert workflows.call("GET", "/definitions").json()["workflows"] == []

    def test_validating_creates_nothing(self, workflows: Workflows) -> None:
        definition = {
            "nodes": [node("a", "kv", op="get", key="k"), node("b", "delay", seconds=1)],
            "edges": [edge("a", "b")],
        }
        answer = workflows.call("POST", "/definitions:validate", {"definition": definition})
        assert (answer.status_code, answer.json()) == (200, {"nodes": 2, "edges": 1})
        assert workflows.call("GET", "/definitions").json()["workflows"] == []

    def test_who_may(self, workflows: Workflows, rest: Rest) -> None:
        assert workflows.rest.request("GET", f"{workflows.path}/definitions").status_code == 401
        for key, reason in (
            (workflows.rest.anon_key, "WRONG_ROLE"),
            (workflows.rest.admin_key, "WRONG_ROLE"),
            (rest.service_key, "WRONG_PROJECT"),
        ):
            assert error(workflows.call("GET", "/definitions", key=key))[:2] == (403, reason)

    def test_ids_in_the_query_do_not_override_the_path(self, workflows: Workflows) -> None:
        workflow = workflows.create([node("a", "kv", op="get", key="k")])
        answer = workflows.call("GET", f"/definitions/{uuid.uuid4()}?workflow_id={workflow}")
        assert answer.status_code in (400, 404)


class TestRuns:
    def test_an_id_twice_is_one_run(self, workflows: Workflows) -> None:
        workflow, run_id = workflows.create([node("a", "kv", op="get", key="k")]), str(uuid.uuid4())
        for _ in range(2):
            answer = workflows.call("POST", f"/definitions/{workflow}:run", {"run_id": run_id})
            assert (answer.status_code, answer.json()["id"]) == (200, run_id)
        listed = workflows.call("GET", "/runs", params={"workflow": workflow}).json()["runs"]
        assert [run["id"] for run in listed] == [run_id]
        assert workflows.call("POST", f"/definitions/{workflow}:run").status_code == 200

    def test_one_step_alone(self, workflows: Workflows) -> None:
        text = "x" * 20_000
        workflow = workflows.create([node("a", "kv", op="set", key="k", value="{{trigger.data}}")])
        run_id = workflows.run(workflow, text)
        run = workflows.ended(run_id)
        assert (workflows.steps(run)["a"]["omitted"], "input" in workflows.steps(run)["a"]) == (True, False)
        step = workflows.call("GET", f"/runs/{run_id}/steps/a").json()
        assert (step["input"]["value"], step["omitted"]) == (text, False)
        assert error(workflows.call("GET", f"/runs/{run_id}/steps/b"))[:2] == (404, "WORKFLOW_STEP_NOT_FOUND")

    def test_filters(self, workflows: Workflows) -> None:
        workflow = workflows.create([node("a", "kv", op="get", key="k")])
        run_id = workflows.run(workflow)
        workflows.ended(run_id)
        for state, found in (("succeeded", [run_id]), ("failed", [])):
            runs = workflows.call("GET", "/runs", params={"state": state}).json()["runs"]
            assert [run["id"] for run in runs] == found
        assert error(workflows.call("GET", "/runs?state=done")) == (400, "INVALID_FIELD", "state")
        assert workflows.call("GET", "/runs?until=2020-01-01T00:00:00Z").json()["runs"] == []


class TestGrpc:
    async def test_the_typed_twins(self, channel: grpc.aio.Channel, workflows: Workflows) -> None:
        stub, project_id = WorkflowServiceStub(channel), workflows.rest.project_id
        metadata = (("apikey", workflows.rest.service_key),)
        definition = struct_pb2.Struct()
        json_format.ParseDict({"nodes": [node("a", "kv", op="set", key="k", value=["{{trigger.n}}"])]}, definition)
        checked = await stub.ValidateWorkflow(
            pb.ValidateWorkflowRequest(project_id=project_id, definition=definition), metadata=metadata
        )
        assert (checked.nodes, checked.edges) == (1, 0)
        made = await stub.CreateWorkflow(
            pb.CreateWorkflowRequest(project_id=project_id, name="Typed", definition=definition), metadata=metadata
        )
        found = await stub.GetWorkflow(
            pb.GetWorkflowRequest(project_id=project_id, workflow_id=made.id), metadata=metadata
        )
        assert found == made
        assert found.definition == definition
        run = await stub.RunWorkflow(
            pb.RunWorkflowRequest(
                project_id=project_id,
                workflow_id=made.id,
                input=struct_pb2.Value(struct_value=json_format.ParseDict({"n": 7}, struct_pb2.Struct())),
            ),
            metadata=metadata,
        )
        watched = pb.WatchWorkflowRunRequest(project_id=project_id, run_id=run.id)
        states = [each.run.state async for each in stub.WatchWorkflowRun(watched, metadata=metadata)]
        assert states[-1] == "succeeded"
        step = await stub.GetWorkflowStep(
            pb.GetWorkflowStepRequest(project_id=project_id, run_id=run.id, node_id="a"), metadata=metadata
        )
        assert json_format.MessageToDict(step.input) == {"op": "set", "key": "k", "value": [7]}
        run = await stub.GetWorkflowRun(
            pb.GetWorkflowRunRequest(project_id=project_id, run_id=run.id), metadata=metadata
        )
        assert [each.state for each in run.steps] == ["succeeded"]
        changed = await stub.UpdateWorkflow(
            pb.UpdateWorkflowRequest(project_id=project_id, workflow_id=made.id, name="Other"), metadata=metadata
        )
        assert (changed.name, changed.version) == ("Other", 1)
