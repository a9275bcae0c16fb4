"""A server with one sandbox to give: who finds none within the queue's deadline is told to come back, and when."""

import threading
from collections.abc import Callable

import httpx

from tests.fix_clients import Rest
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
