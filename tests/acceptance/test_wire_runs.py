"""Records of runs over the wire: what they say, how they are found, followed live and cancelled, and by whom."""

import json
import subprocess
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from atlas.runs.v1 import runs_service_pb2 as pb
from atlas.runs.v1.runs_service_pb2_grpc import RunServiceStub
from tests.fix_clients import Rest, RunningStack, eventually

HOSTILE = 'a\n\ndata: {"forged":1}\n\nevent: dropped\r\ndata: 9\n\n\u2028\u0085"\\\x1b[31m'
SPEAKS = f"""
export default async (input) => {{
  console.log({json.dumps(HOSTILE)}, "\\ud800");
  console.warn("second");
  if (input === "slow") await new Promise((resolve) => setTimeout(resolve, 60_000));
  if (input === "throw") throw new TypeError("on \\udc00 purpose\\n\\ndata: x");
  return input;
}}
"""


@pytest.fixture
def project(new_project: Callable[..., Rest]) -> Rest:
    """With a function `speaks`."""
    made = new_project(tier="enterprise")
    made.deployed(SPEAKS, slug="speaks")
    return made


@contextmanager
def events(stack: RunningStack, rest: Rest, query: str = "") -> Iterator[Iterator[tuple[str, str]]]:
    """Server-sent events as curl shows them: name and data. Comments are left out, but the first is waited for."""
    url = f"{stack.url}/v1/projects/{rest.project_id}/runs:tail{query}"
    command = ["curl", "-sN", "--noproxy", "*", "-m", "30", "-H", f"apikey: {rest.service_key}", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
        assert curl.stdout
        lines = iter(curl.stdout.readline, b"")

        def parsed() -> Iterator[tuple[str, str]]:
            name, data = "message", []
            for line in lines:
                field, _, value = line.decode().rstrip("\n").partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    data.append(value)
                elif field == "" and not value and data:
                    yield name, "\n".join(data)
                    name, data = "message", []

        try:
            assert next(lines) == b": tail\n"
            yield parsed()
        finally:
            curl.terminate()


def test_a_record_says_what_happened(project: Rest) -> None:
    answer = project.invoke("speaks", "throw", headers={"x-request-id": "mine"})
    record = project.record(answer.headers["atlas-run-id"])
    assert answer.json()["error"]["details"][0]["metadata"]["run_id"] == record["id"]
    assert (record["slug"], record["version"], record["runtime"]) == ("speaks", 1, "quickjs")
    assert (record["trigger"], record["state"], record["outcome"]) == ("http", "finished", "exception")
    assert (record["request_id"], record["error"]["reason"]) == ("mine", "FUNCTION_EXCEPTION")
    assert record["error"]["message"] == "The function threw TypeError: on \ufffd purpose\n\ndata: x"
    assert "speaks.js:6:" in record["error"]["stack"]
    assert [line["level"] for line in record["logs"]] == ["log", "warn"]
    assert record["logs"][0]["text"].startswith(HOSTILE)
    assert not record["logs_truncated"]
    metrics = record["metrics"]
    assert metrics["wall_ms"] > 0
    assert metrics["boot_ms"] > 0
    assert min(metrics["cpu_ms"], metrics["queue_ms"]) >= 0
    assert record["created_at"] < record["finished_at"]


def test_lists_are_filtered_and_paged(project: Rest) -> None:
    function_id = project.deployed("export default () => 1", slug="quiet")
    for body in (1, "throw", 2):
        project.record(project.invoke("speaks", body).headers["atlas-run-id"])
    project.record(project.invoke("quiet").headers["atlas-run-id"])

    def listed(**params: object) -> list[tuple[str, str]]:
        found = project.manage("GET", "/runs", params=params).json()["runs"]
        assert not any(item["logs"] for item in found)
        return [(item["slug"], item["outcome"]) for item in found]

    everything = [("quiet", "ok"), ("speaks", "ok"), ("speaks", "exception"), ("speaks", "ok")]
    assert listed() == everything
    assert (
        listed(function="quiet")
        == listed(function=function_id)
        == listed(function=function_id.upper())
        == everything[:1]
    )
    assert listed(outcome="exception") == [("speaks", "exception")]
    assert listed(function="speaks", outcome="ok", state="finished") == [("speaks", "ok")] * 2
    assert listed(since="2020-01-01T00:00:00Z", until="2021-01-01T00:00:00Z") == []
    assert listed(function=str(uuid.uuid4())) == []
    pages, token = [], ""
    for _ in range(2):
        page = project.manage("GET", "/runs", params={"page_size": 2, "page_token": token}).json()
        pages += [item["outcome"] for item in page["runs"]]
        token = token or page["next_page_token"]
    assert (pages, page["next_page_token"]) == ([outcome for _, outcome in everything], "")
    for bad in (
        {"outcome": "good"},
        {"state": "dead"},
        {"since": "yesterday"},
        {"since.seconds": "999999999999999"},
        {"page_size": 201},
        {"page_token": token, "outcome": "ok"},
    ):
        assert project.manage("GET", "/runs", params=bad).status_code == 400, bad
    assert project.manage("GET", "/runs", params={"function": "none"}).status_code == 404


def test_a_tail_by_server_sent_events(running_stack: RunningStack, project: Rest) -> None:
    with (
        events(running_stack, project) as everything,
        events(running_stack, project, "?function=speaks&outcome=exception") as failures,
    ):
        ids = [project.invoke("speaks", body).headers["atlas-run-id"] for body in (1, "throw")]
        seen = [next(everything) for _ in ids]
        assert [(name, json.loads(data)["id"]) for name, data in seen] == [("message", run_id) for run_id in ids]
        assert json.loads(seen[0][1])["logs"][0]["text"].startswith(HOSTILE)
        assert json.loads(next(failures)[1])["id"] == ids[1]


async def test_a_tail_by_grpc(project: Rest, channel: grpc.aio.Channel) -> None:
    request = pb.TailRunsRequest(project_id=project.project_id, function="speaks")
    tail: Any = RunServiceStub(channel).TailRuns(request, metadata=(("apikey", project.service_key),), timeout=30)
    await tail.initial_metadata()
    run_id = project.invoke("speaks", 1).headers["atlas-run-id"]
    told = await tail.read()
    assert (told.run.id, told.run.outcome, told.dropped) == (run_id, "ok", 0)
    assert told.run.logs[0].text.startswith(HOSTILE)
    tail.cancel()


def test_a_running_call_is_cancelled_and_its_caller_told(project: Rest) -> None:
    with ThreadPoolExecutor(1) as caller:
        call = caller.submit(project.invoke, "speaks", "slow")
        run_id = running(project)
        known = project.manage("GET", f"/runs/{run_id}").json()
        assert (known["state"], known["outcome"], known["version"]) == ("running", "", 1)
        ended = project.manage("POST", f"/runs/{run_id}:cancel", json={}).json()
        assert (ended["state"], ended["outcome"], ended["error"]["reason"]) == ("finished", "cancelled", "CANCELLED")
        answer = call.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (499, "cancelled")
    assert answer.headers["atlas-run-id"] == run_id
    assert project.record(run_id)["outcome"] == "cancelled"
    again = project.manage("POST", f"/runs/{run_id}:cancel", json={})
    assert (again.status_code, again.json()["error"]["details"][0]["reason"]) == (400, "RUN_FINISHED")


def running(project: Rest) -> str:
    """The id of the only run that runs."""
    return str(eventually(lambda: project.manage("GET", "/runs", params={"state": "running"}).json()["runs"])[0]["id"])


def test_only_its_project_and_only_a_service_key_see_and_end_a_run(
    project: Rest, new_project: Callable[..., Rest]
) -> None:
    stranger = new_project()
    with ThreadPoolExecutor(1) as caller:
        call = caller.submit(project.invoke, "speaks", "slow")
        run_id = running(project)
        for method, path in (("GET", f"/runs/{run_id}"), ("POST", f"/runs/{run_id}:cancel")):
            body: dict[str, Any] = {"json": {}} if method == "POST" else {}
            assert stranger.manage(method, path, **body).status_code == 404
            ours = f"/v1/projects/{project.project_id}{path}"
            assert project.request(method, ours, key=stranger.service_key, **body).status_code == 403
            assert project.request(method, ours, key=project.anon_key, **body).status_code == 403
        for path in ("/runs", "/runs:tail"):
            ours = f"/v1/projects/{project.project_id}{path}"
            assert project.request("GET", ours, key=stranger.service_key).status_code == 403
            assert project.request("GET", ours, key=project.anon_key).status_code == 403
        assert stranger.manage("GET", "/runs", params={"state": "running"}).json()["runs"] == []
        forged = {"run_id": run_id, "runId": run_id}
        nobody = f"/runs/{uuid.uuid4()}"
        assert project.manage("POST", f"{nobody}:cancel", params=forged, json={}).status_code == 404
        assert project.manage("POST", f"{nobody}:cancel", json={"runId": run_id}).status_code == 404
        assert project.manage("POST", f"{nobody}:cancel", json={"run_id": run_id}).status_code == 400
        assert not call.done()
        project.manage("POST", f"/runs/{run_id}:cancel", json={})
