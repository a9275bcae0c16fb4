"""Asynchronous runs over the wire: accepted, answered later as a call would have been, and cancelled."""

import uuid
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import pytest

from atlas.functions.v1 import invocation_service_pb2 as pb
from atlas.functions.v1.invocation_service_pb2_grpc import InvocationServiceStub
from tests.fix_clients import Rest, eventually

PREFER = {"prefer": "respond-async"}
ANSWERS = """
export default async (input, ctx) => {
  console.log("said");
  if (input === "slow") await new Promise((resolve) => setTimeout(resolve, 60_000));
  if (input === "wait") await new Promise((resolve) => setTimeout(resolve, 700));
  if (input === "throw") throw new Error("on purpose");
  if (input === "response") return new Response("tea", {status: 418, headers: {
    "x-mine": "1", "atlas-run-id": "forged", "x-atlas-status": "200", "x-request-id": "forged", "location": "/here" }});
  return { input, request: ctx.request, id: ctx.invocation_id };
}
"""


@pytest.fixture
def project(new_project: Callable[..., Rest]) -> Rest:
    """With a function `answers`."""
    made = new_project(tier="enterprise")
    made.deployed(ANSWERS, slug="answers")
    return made


def accepted(answer: httpx.Response) -> str:
    """The run's id."""
    assert answer.status_code == 202, answer.text
    run_id = str(answer.json()["run_id"])
    assert answer.json() == {"run_id": run_id, "state": "queued"}
    assert answer.headers["location"] == f"/functions/v1/runs/{run_id}"
    assert (answer.headers["atlas-run-id"], answer.headers["preference-applied"]) == (run_id, "respond-async")
    return run_id


def running(rest: Rest) -> Any:
    return rest.manage("GET", "/runs", params={"state": "running"}).json()["runs"]


def result(rest: Rest, run_id: str) -> httpx.Response:
    """The answer, with the anon key, once there is one."""

    def ask() -> httpx.Response | None:
        answer = rest.request("GET", f"/functions/v1/runs/{run_id}", key=rest.anon_key)
        if answer.status_code != 202:
            return answer
        assert answer.json()["state"] in ("queued", "running")
        assert (answer.headers["atlas-run-id"], answer.headers["location"][-36:]) == (run_id, run_id)
        return None

    found = eventually(lambda: [answer] if (answer := ask()) is not None else [])[0]
    assert isinstance(found, httpx.Response)
    return found


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_every_method_is_accepted_and_answered_later(project: Rest, method: str) -> None:
    body = {} if method == "GET" else {"json": {"é": [1, None]}}
    path = "/functions/v1/invoke/answers/a%20b?x=1&run_id=forged"
    run_id = accepted(project.request(method, path, key=project.anon_key, headers={**PREFER, "x-mine": "7"}, **body))
    for _ in range(2):
        answer = result(project, run_id)
        assert (answer.status_code, answer.headers["atlas-run-id"]) == (200, run_id)
        told = answer.json()["result"]
        assert (told["input"], told["id"]) == (body.get("json"), run_id)
        assert (told["request"]["method"], told["request"]["path"]) == (method, "/a b")
        assert told["request"]["query"] == {"x": "1", "run_id": "forged"}
        assert told["request"]["headers"]["x-mine"] == "7"
        assert "authorization" not in told["request"]["headers"]
        assert answer.json()["metrics"]["wall_ms"] > 0
    record = project.record(run_id)
    assert (record["trigger"], record["outcome"], record["logs"][0]["text"]) == ("async", "ok", "said")


def test_a_response_and_an_error_are_answered_as_by_a_call(project: Rest) -> None:
    for body in ("response", "throw"):
        run_id = accepted(project.invoke("answers", body, headers=PREFER))
        later, at_once = result(project, run_id), project.invoke("answers", body)
        assert later.status_code == at_once.status_code == {"response": 418, "throw": 500}[body]
        own = {"atlas-run-id", "x-request-id", "date", "content-length"}
        assert {name: value for name, value in later.headers.items() if name not in own} == {
            name: value for name, value in at_once.headers.items() if name not in own
        }
        assert later.headers["atlas-run-id"] == run_id
        assert "forged" not in later.headers.values()
        if body == "response":
            assert (later.text, later.headers["x-mine"], later.headers["location"]) == ("tea", "1", "/here")
        else:
            told = later.json()["error"]
            assert told["message"] == at_once.json()["error"]["message"] == "The function threw Error: on purpose"
            assert told["details"][0]["metadata"]["run_id"] == run_id


async def test_by_grpc(project: Rest, channel: grpc.aio.Channel) -> None:
    stub = InvocationServiceStub(channel)
    key = (("apikey", project.anon_key),)
    request = pb.InvokeRequest(slug="answers", respond_async=True, path="/\0/p")
    request.input.string_value = "x"
    answer = await stub.Invoke(request, metadata=key)
    assert not answer.HasField("result")
    assert not answer.HasField("metrics")
    told = result(project, answer.run_id).json()["result"]
    assert (told["input"], told["request"]["path"]) == ("x", "/\0/p")


@pytest.mark.parametrize(
    ("prefer", "status"),
    [
        ([("prefer", "wait=5, Respond-Async;x")], 202),
        ([("prefer", "respond-async"), ("prefer", "wait=5")], 202),
        ([("prefer", "respond-async=no")], 200),
        ([("prefer", 'x="a, respond-async, b"')], 200),
    ],
)
def test_a_preference_is_read_as_rfc_7240_has_it(project: Rest, prefer: list[tuple[str, str]], status: int) -> None:
    headers = [("apikey", project.anon_key), *prefer]
    assert project.client.post("/functions/v1/invoke/answers", headers=headers).status_code == status


def test_what_cannot_be_accepted_is_refused_at_once(project: Rest) -> None:
    assert project.invoke("nowhere", headers=PREFER).status_code == 404
    bad = {**PREFER, "content-type": "application/json"}
    path = "/functions/v1/invoke/answers"
    assert project.request("POST", path, key=project.anon_key, headers=bad, content=b"{").status_code == 400
    assert project.request("GET", "/functions/v1/runs/nothing", key=project.anon_key).status_code == 400
    assert project.request("GET", f"/functions/v1/runs/{uuid.uuid4()}", key=project.anon_key).status_code == 404
    synchronous = project.invoke("answers").headers["atlas-run-id"]
    assert project.request("GET", f"/functions/v1/runs/{synchronous}", key=project.anon_key).status_code == 404


def test_only_its_project_gets_a_result(project: Rest, new_project: Callable[..., Rest]) -> None:
    run_id, stranger = accepted(project.invoke("answers", 1, headers=PREFER)), new_project()
    path = f"/functions/v1/runs/{run_id}"
    assert result(project, run_id).status_code == 200
    for key, status in ((stranger.anon_key, 404), (stranger.service_key, 404), (project.admin_key, 403), (None, 401)):
        assert project.request("GET", path, key=key).status_code == status
    own = project.request("GET", f"/functions/v1/runs/{uuid.uuid4()}?run_id={run_id}", key=project.anon_key)
    assert own.status_code == 404


def test_running_and_queued_runs_are_cancelled(project: Rest) -> None:
    project.deployed(ANSWERS, slug="single", settings={"concurrency": 1})
    run_ids = [accepted(project.invoke("single", "slow", headers=PREFER)) for _ in range(3)]
    eventually(lambda: running(project))
    for run_id in reversed(run_ids):
        ended: Any = project.manage("POST", f"/runs/{run_id}:cancel", json={}).json()
        assert (ended["id"], ended["outcome"]) == (run_id, "cancelled")
    for run_id in run_ids:
        answer = result(project, run_id)
        assert (answer.status_code, answer.json()["error"]["details"][0]["reason"]) == (499, "CANCELLED")
        assert project.record(run_id)["outcome"] == "cancelled"


def test_a_function_that_is_replaced_or_deleted_meanwhile(project: Rest) -> None:
    """A run that has begun ends on its version; one that waits runs what is there then, or says that nothing is."""
    function_id = project.deployed(ANSWERS, slug="moving", settings={"concurrency": 1})
    begun = accepted(project.invoke("moving", "wait", headers=PREFER))
    eventually(lambda: [run for run in running(project) if run["version"] == 1])
    project.deployed("export default () => 'second'", slug="moving")
    waiting = accepted(project.invoke("moving", 1, headers=PREFER))
    assert result(project, begun).json()["result"]["input"] == "wait"
    assert result(project, waiting).json()["result"] == "second"
    project.manage("DELETE", f"/functions/{function_id}")
    assert project.invoke("moving", headers=PREFER).status_code == 404
    assert result(project, begun).json()["result"]["input"] == "wait"
    assert [project.record(run_id)["version"] for run_id in (begun, waiting)] == [1, 2]
