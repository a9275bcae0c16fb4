"""A stack whose servers go away for a while: functions go on, and what could not be told at once is told later."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import httpx

from server.postgres.changes import LEASE_S, RENEW_EVERY_S
from tests.fix_clients import Rest, connected
from tests.fix_runs import OwnNats
from tests.fix_up import Stack

MakeStack = Callable[..., Stack]
ECHO = "export default (input) => input"
KEYS = """
export default async (value) => {
  if (value !== undefined && value !== null) await atlas.kv.set("k", value);
  return atlas.kv.get("k");
}
"""
PATIENCE_S = 2.0
"""Invocations that waited for a server that is away would take longer."""


def quickly(rest: Rest, bodies: Iterable[object]) -> list[httpx.Response]:
    """Answers of `echo`. Half of them come in time, so that a machine which is busy for a moment does not matter."""
    answers, took_s = [], []
    for body in bodies:
        began_s = time.monotonic()
        answers.append(rest.invoke("echo", body))
        took_s.append(time.monotonic() - began_s)
    assert median(took_s) < PATIENCE_S
    assert max(took_s) < 5 * PATIENCE_S
    return answers


def kill(stack: Stack, name: str) -> None:
    """At once, and whatever comes in its place within PATIENCE_S."""
    deadline_s = time.monotonic() + PATIENCE_S
    killed: set[int] = set()
    while time.monotonic() < deadline_s:
        pid = stack.processes().get(name)
        if pid is not None and pid not in killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)


def health(stack: Stack) -> int:
    return httpx.get(f"{stack.url}/healthz", timeout=10, trust_env=False).status_code


def ids(answers: list[httpx.Response]) -> set[str]:
    return {answer.headers["atlas-run-id"] for answer in answers}


def recorded(stack: Stack, rest: Rest, wanted: set[str]) -> list[Any]:
    """Records of these runs, all of which arrive, each once."""
    stack.until(lambda: len(rest.runs()) >= len(wanted), 30, "records are missing")
    found = rest.runs()
    assert Counter(run["id"] for run in found) == Counter(wanted)
    return found


def test_without_nats_functions_run_as_ever_and_their_records_arrive_later(
    make_stack: MakeStack, own_nats: OwnNats
) -> None:
    stack = make_stack(ATLAS_NATS_URL=own_nats.url, ATLAS_API_PROCESSES="2").start()
    with connected(stack) as rest:
        assert rest.deploy(ECHO, slug="echo").status_code == 200
        answers = quickly(rest, range(10))
        assert own_nats.running
        own_nats.running.process.send_signal(signal.SIGSTOP)  # it answers nothing any more
        answers += quickly(rest, range(10, 40))
        own_nats.running.kill()
        own_nats.stop()
        stack.until(lambda: health(stack) == 503, 20, "its absence is not noticed")
        answers += quickly(rest, range(40, 100))
        queued = rest.queue("echo", "later")
        stack.until(lambda: rest.result(queued).status_code == 200, 20, "asynchronous runs wait for NATS")
        tail = rest.request("GET", f"/v1/projects/{rest.project_id}/runs:tail", key=rest.service_key)
        assert (tail.status_code, tail.json()["error"]["details"][0]["reason"]) == (503, "EVENT_BUS_UNAVAILABLE")

        own_nats.start()
        stack.until(lambda: health(stack) == 200, 20, "it is not found again")
        assert [answer.json()["result"] for answer in answers] == list(range(100))
        assert {run["outcome"] for run in recorded(stack, rest, ids(answers) | {queued})} == {"ok"}


def test_without_postgres_every_call_is_answered_or_told_to_come_again(make_stack: MakeStack) -> None:
    """Nobody can say then whether a key was revoked, so calls are served for as long as that was known, a second."""
    stack = make_stack().start()
    with connected(stack) as rest:
        assert rest.deploy(ECHO, slug="echo").status_code == 200
        answers = [rest.invoke("echo", "before")]
        assert answers[0].status_code == 200
        postgres, killed_s = stack.processes()["postgres"], time.monotonic()
        os.kill(postgres, signal.SIGKILL)
        answers.append(rest.invoke("echo", "cached"))
        assert answers[1].status_code == 200 or time.monotonic() - killed_s > LEASE_S - RENEW_EVERY_S
        kill(stack, "postgres")
        while "postgres is back" not in stack.said:
            answers.append(rest.invoke("echo", "during"))
        stack.until(lambda: health(stack) == 200, 30, "it is not found again")
        answers.append(rest.invoke("echo", "after"))
        assert answers[-1].status_code == 200
        served = [answer for answer in answers if answer.status_code == 200]
        for told in (answer.json()["error"] for answer in answers if answer.status_code != 200):
            assert (told["code"], told["details"][0]["reason"]) == ("unavailable", "CONTROL_DATABASE_UNAVAILABLE")
            assert told["details"][-1]["@type"] == "type.googleapis.com/google.rpc.RetryInfo"
        recorded(stack, rest, ids(served))
        assert rest.deploy(ECHO, slug="another").status_code == 200


def test_without_valkey_functions_run_and_atlas_kv_says_what_is_wrong(make_stack: MakeStack) -> None:
    stack = make_stack().start()
    with connected(stack) as rest:
        assert rest.deploy(ECHO, slug="echo", settings={"concurrency": 2}).status_code == 200
        assert rest.run(KEYS, "kept", slug="keys") == "kept"
        stopped = stack.processes()["valkey-server"]
        os.kill(stopped, signal.SIGSTOP)
        # Its slots are counted in Valkey, else in the process alone.
        assert [answer.json()["result"] for answer in quickly(rest, range(20))] == list(range(20))
        os.kill(stopped, signal.SIGKILL)
        failed = rest.invoke("keys")
        if failed.status_code != 200:  # it is back within a tenth of a second
            assert "the store cannot be reached; try again" in failed.json()["error"]["message"]
        stack.until(lambda: health(stack) == 200, 20, "it is not found again")
        assert rest.invoke("keys").json()["result"] == "kept"
