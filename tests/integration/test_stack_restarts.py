"""A stack whose parts are killed: what can come back does, and what cannot is told."""

import contextlib
import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.fix_up import PARTS, Stack, healthy

MakeStack = Callable[..., Stack]


def running_invocations(stack: Stack) -> int:
    report = httpx.get(f"{stack.url}/healthz", trust_env=False).json()
    return sum(
        int(count)
        for state, count in report["sandbox"]["quickjs"]["children"].items()
        if state in ("running", "waiting")
    )


def test_whatever_is_killed_comes_back(make_stack: MakeStack) -> None:
    stack = make_stack().start()
    for name in PARTS:
        before = stack.processes()[name]
        os.kill(before, signal.SIGKILL)
        stack.until(lambda name=name, before=before: stack.processes().get(name, before) != before, 20, f"no {name}")  # type: ignore[misc]
        stack.until(lambda: healthy(stack), 20, f"not healthy after {name} was killed")
    assert stack.stop() == 0
    assert not stack.leftovers()


def test_a_run_whose_process_is_killed_is_told_so(make_stack: MakeStack) -> None:
    stack = make_stack().start()
    env = stack.env
    source = "export default async () => { await new Promise((done) => setTimeout(done, 8000)) }"
    with httpx.Client(base_url=stack.url, trust_env=False, timeout=20) as client, ThreadPoolExecutor(1) as thread:
        deployed = client.post(
            f"/v1/projects/{env['PROJECT_ID']}/functions/deploy",
            json={"name": "slow", "slug": "slow", "runtime": "quickjs", "source": source},
            headers={"authorization": f"Bearer {env['SERVICE_KEY']}"},
        )
        assert deployed.status_code == 200, deployed.text
        pending = thread.submit(client.post, "/functions/v1/invoke/slow", headers={"apikey": env["ANON_KEY"]})
        stack.until(lambda: running_invocations(stack) == 1, 10, "the function does not run")
        os.kill(stack.processes()["api-0"], signal.SIGKILL)
        answer = pending.result()
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "unavailable"
    assert "while it served the request" in answer.json()["error"]["message"]


def test_it_starts_again_after_everything_was_killed_at_once(make_stack: MakeStack) -> None:
    stack = make_stack().start()
    assert stack.process
    for pid in (stack.process.pid, *stack.leftovers()):
        with contextlib.suppress(ProcessLookupError):  # the first deaths entail others
            os.kill(pid, signal.SIGKILL)
    stack.process.wait()
    stack.start()
    assert healthy(stack)


def test_a_damaged_cluster_ends_it_loudly(make_stack: MakeStack) -> None:
    stack = make_stack().start()
    stack.stop()
    shutil.rmtree(stack.run / "postgres" / "cluster" / "global")
    failed = stack.command("up")
    assert failed.returncode == 1
    assert "postgres ended with status" in failed.stderr
    assert "pg_control" in failed.stderr  # the tail of its log
    assert not stack.leftovers()
