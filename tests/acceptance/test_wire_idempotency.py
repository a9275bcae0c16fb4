"""Idempotency keys over the wire: one call runs, and every other one with its key gets the same answer."""

import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import pytest

from atlas.functions.v1 import invocation_service_pb2 as pb
from atlas.functions.v1.invocation_service_pb2_grpc import InvocationServiceStub
from tests.fix_clients import Rest, eventually

PATH = "/functions/v1/invoke/pay"
PAYS = """
export default async (input, ctx) => {
  const count = ((await atlas.kv.get("count")) ?? 0) + 1;
  await atlas.kv.set("count", count);
  if (input === "slow") await new Promise((resolve) => setTimeout(resolve, 60_000));
  if (input === "throw") throw new Error("declined");
  if (input === "response") return new Response("paid", {status: 201, headers: {"x-count": String(count)}});
  return count;
}
"""


@pytest.fixture
def project(new_project: Callable[..., Rest]) -> Rest:
    """With a function `pay`, which counts its runs."""
    made = new_project(tier="enterprise")
    made.deployed(PAYS, slug="pay")
    return made


def reason(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["details"][0]["reason"]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_one_run_for_one_key_whatever_the_method(project: Rest, method: str) -> None:
    def call(path: str = PATH, key: str = "k") -> httpx.Response:
        return project.request(method, path, key=project.anon_key, headers={"idempotency-key": key})

    first, again = call(f"{PATH}/a?x=1&y=2"), call(f"{PATH}/a?y=2&x=1")
    assert first.json()["result"] == 1
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["atlas-run-id"] == first.headers["atlas-run-id"]
    for other in (f"{PATH}/a?x=1&y=3", f"{PATH}/a?x=1", f"{PATH}/b?x=1&y=2", PATH):
        assert reason(call(other)) == (400, "KEY_REUSED"), other
    assert call(f"{PATH}/a?x=1&y=2", '"k"').content == first.content
    assert call(PATH, "another").json()["result"] == 2


def test_other_input_method_and_manner_are_refused(project: Rest) -> None:
    headers = {"idempotency-key": "k"}
    assert project.invoke("pay", 1, headers=headers).json()["result"] == 1
    for answer in (
        project.invoke("pay", 2, headers=headers),
        project.request("PUT", PATH, key=project.anon_key, json=1, headers=headers),
        project.request(
            "POST", PATH, key=project.anon_key, content=b"1", headers={**headers, "content-type": "text/plain"}
        ),
        project.invoke("pay", 1, headers={**headers, "prefer": "respond-async"}),
    ):
        assert reason(answer) == (400, "KEY_REUSED")
    assert project.invoke("pay").json()["result"] == 2


@pytest.mark.parametrize(("body", "status"), [("throw", 500), ("response", 201)])
def test_errors_and_responses_are_kept_too(project: Rest, body: str, status: int) -> None:
    first, again = (project.invoke("pay", body, headers={"idempotency-key": "k"}) for _ in range(2))
    assert (first.status_code, again.status_code) == (status, status)
    assert again.content == first.content
    for name in ("x-count", "atlas-run-id", "content-type"):
        assert again.headers.get(name) == first.headers.get(name)
    assert project.invoke("pay").json()["result"] == 2


def test_many_at_once_run_once_and_a_cancelled_one_does_not_count(project: Rest) -> None:
    headers = {"idempotency-key": "k"}
    with ThreadPoolExecutor(1) as caller:
        call = caller.submit(project.invoke, "pay", "slow", headers=headers)
        listing = {"params": {"state": "running"}}
        (run,) = eventually(lambda: project.manage("GET", "/runs", **listing).json()["runs"])
        meanwhile = project.invoke("pay", "slow", headers=headers)
        assert reason(meanwhile) == (409, "IDEMPOTENT_CALL_RUNNING")
        assert meanwhile.headers["atlas-run-id"] == run["id"]
        assert reason(project.invoke("pay", 1, headers=headers)) == (400, "KEY_REUSED")
        project.manage("POST", f"/runs/{run['id']}:cancel", json={})
        assert call.result().status_code == 499
    assert project.invoke("pay", 1, headers=headers).json()["result"] == 2
    with ThreadPoolExecutor(8) as callers:
        racing: dict[str, Any] = {"headers": {"idempotency-key": "race"}}
        answers = list(callers.map(lambda _: project.invoke("pay", 1, **racing), range(24)))
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert {answer.json()["result"] for answer in answers if answer.status_code == 200} == {3}


def test_an_asynchronous_call_is_accepted_once(project: Rest) -> None:
    headers = {"idempotency-key": "k", "prefer": "respond-async"}
    first, again = (project.invoke("pay", 1, headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code, again.content) == (202, 202, first.content)
    record = project.record(first.json()["run_id"])
    assert record["outcome"] == "ok"
    assert project.invoke("pay").json()["result"] == 2


@pytest.mark.parametrize("key", [b"", b'""', b"x" * 256, b"\xff", b"a\tb", "é".encode()])
def test_a_bad_key_is_refused_and_nothing_runs(project: Rest, key: bytes) -> None:
    headers = {b"idempotency-key": key, b"apikey": project.anon_key.encode()}
    answer = project.client.post(PATH, headers=headers)
    assert answer.status_code == 400, answer.text
    assert "idempotency key" in answer.json()["error"]["message"]
    assert project.invoke("pay").json()["result"] == 1


def test_keys_belong_to_project_and_function(project: Rest, new_project: Callable[..., Rest]) -> None:
    headers = {"idempotency-key": "k"}
    project.deployed("export default () => 'other'", slug="other")
    assert project.invoke("pay", 1, headers=headers).json()["result"] == 1
    assert project.invoke("other", 2, headers=headers).json()["result"] == "other"
    stranger = new_project()
    assert stranger.invoke("pay", 1, headers=headers).status_code == 404
    stranger.deployed("export default () => 'theirs'", slug="pay")
    assert stranger.invoke("pay", 2, headers=headers).json()["result"] == "theirs"


@pytest.mark.parametrize("slug", ["a\0b", secrets.token_hex(10_000), ""], ids=["NUL", "long", "none"])
async def test_a_key_for_what_is_no_function(project: Rest, channel: grpc.aio.Channel, slug: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await InvocationServiceStub(channel).Invoke(
            pb.InvokeRequest(slug=slug, idempotency_key="k"), metadata=(("apikey", project.anon_key),)
        )
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
