"""More calls than sandboxes: who finds none in time is told to come back, and when; no project takes them all."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx

from server.parts import MOST_V8, MOST_V8_PER_PROJECT
from tests.fix_clients import Rest, eventually
from tests.fix_up import Stack


def test_overload_is_503_with_the_delay_to_retry_after(make_stack: Callable[..., Stack]) -> None:
    limits = {"ATLAS_SANDBOX_MAX_CHILDREN_PER_PROJECT": "1", "ATLAS_FUNCTIONS_QUEUE_MS": "100"}
    stack = make_stack(ATLAS_API_PROCESSES="1", **limits).start()
    env = stack.env
    with httpx.Client(base_url=stack.url, timeout=60, trust_env=False) as client:
        rest = Rest(client, env["PROJECT_ID"], env["SERVICE_KEY"], env["ANON_KEY"], env["ADMIN_KEY"])
        sleeper = "export default (ms) => new Promise((done) => setTimeout(() => done('slept'), ms))"
        assert rest.deploy(sleeper, slug="sleeper").status_code == 200
        first: list[httpx.Response] = []
        holder = threading.Thread(target=lambda: first.append(rest.invoke("sleeper", 3000)))
        holder.start()
        while not (refused := rest.invoke("sleeper", 0)).is_error:
            pass  # until the holder has the sandbox
        holder.join()

        assert refused.status_code == 503
        error = refused.json()["error"]
        assert (error["code"], error["details"][0]["reason"]) == ("unavailable", "OVERLOADED")
        assert error["details"][0]["metadata"]["limit"] == "queue"
        assert error["details"][1]["@type"] == "type.googleapis.com/google.rpc.RetryInfo"
        assert first[0].json()["result"] == "slept"
        assert rest.invoke("sleeper", 0).json()["result"] == "slept"


def test_long_runs_of_one_project_leave_room_for_another(new_project: Callable[..., Rest]) -> None:
    busy, other = (new_project(tier="enterprise") for _ in range(2))
    busy.deployed("export default () => new Promise((done) => setTimeout(done, 60_000))", slug="long", runtime="node")
    other.deployed("export default () => 'ran'", slug="short", runtime="node")
    with ThreadPoolExecutor(MOST_V8 + 4) as callers:
        calls = [callers.submit(busy.invoke, "long") for _ in range(MOST_V8 + 4)]

        def held() -> bool:
            children = busy.request("GET", "/healthz").json()["sandbox"]["node"]["children"]
            return bool(children["running"] >= MOST_V8_PER_PROJECT)

        eventually(held)
        assert other.invoke("short").json()["result"] == "ran"

        def over() -> bool:
            """Also what got its sandbox only now."""
            for run in busy.manage("GET", "/runs", params={"state": "running"}).json()["runs"]:
                busy.manage("POST", f"/runs/{run['id']}:cancel", json={})
            return all(call.done() for call in calls)

        eventually(over)
    assert {call.result().status_code for call in calls} <= {499, 503}
