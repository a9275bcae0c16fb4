"""`python -m tests.acceptance.chaos [--events N] [--seconds S] [--seed X]`: publish events over REST and gRPC while
workers, API processes, NATS, Postgres and Valkey are killed at random, then account for every event.

    publishers ──again until acknowledged──▶ stack ◀──kill -9── killer
                                               └──▶ the ledger, and what each run wrote when it began

Every acknowledged event that the trigger answers has one delivery, which is done; it has one attempt that went well,
and every run that began is one of its attempts. Prints the seed, what was killed, and what is wrong.
"""

import argparse
import contextlib
import json
import os
import queue
import random
import re
import secrets
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import grpc
import httpx
import psycopg
from google.protobuf.json_format import ParseDict

from atlas.events.v1 import events_pb2
from atlas.events.v1 import events_service_pb2 as pb
from atlas.events.v1.events_service_pb2_grpc import EventServiceStub
from server.stack import bootstrap, postgres
from tests.fix_clients import Rest, connected
from tests.fix_up import Stack, new_stack

TYPE: Final = "chaos.run"
SOURCE: Final = """
export default async (event, ctx) => {
  await atlas.db.query("INSERT INTO begun VALUES ($1, $2)", [event.id, ctx.invocation_id]);
  await new Promise((done) => setTimeout(done, event.data.ms));
};
"""
RETRY: Final = {"attempts": 20, "backoff_ms": 50, "max_backoff_ms": 1000}
VICTIMS: Final = {
    **{name: name for name in ("worker-0", "worker-1", "api-0", "api-1", "postgres")},
    "nats": "nats-server",
    "valkey": "valkey-server",
}
"""Parts of the stack, and the names of their processes."""

NEEDED: Final = ("postgres", "nats")
"""While one of them is away no other part can start, and each try counts as a failure of that."""

PAUSE_S: Final = (0.4, 1.2)
"""Between two kills."""

MOST_FAILURES: Final = 3
MOST_OF_ANY: Final = 2
"""Ends of a part within a minute with which it, or one that it needs, may be killed: the supervisor, which has to
tell a crash from a part that cannot run, gives up the stack at the seventh."""

MINUTE_S: Final = 62.0
PUBLISHERS: Final = 4
BATCH: Final = 20
MATCHING: Final = 0.9
"""The share of events that the trigger's condition lets through."""

PATIENCE_S: Final = 60.0
"""For one batch to be acknowledged, and for all deliveries to be done after the last kill."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is published when: reproducible from its seed, as is the order of the kills, but not where they hit."""

    events: int
    seconds: float
    seed: int

    def batches(self) -> Iterator[tuple[float, list[dict[str, Any]]]]:
        """Events to be published together, each batch so many seconds after the start."""
        chance, made = random.Random(self.seed), 0
        while made < self.events:
            size = min(chance.randint(1, BATCH), self.events - made)
            events = [
                {
                    "id": f"chaos-{self.seed}-{number}",
                    "type": TYPE,
                    "data": {"run": chance.random() < MATCHING, "ms": chance.randrange(60)},
                }
                for number in range(made, made + size)
            ]
            yield made / self.events * self.seconds, events
            made += size


@dataclass(slots=True)
class Report:
    published: int = 0
    matching: int = 0
    tries: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.published} events published in {self.tries} requests, {self.matching} of them to be run;"
            f" killed {dict(self.kills)}; attempts {dict(self.attempts)}; {len(self.problems)} problems"
        )


def run(plan: Plan, say: Callable[[str], None] = print) -> Report:
    """A stack of its own from beginning to end."""
    stack = new_stack({"ATLAS_API_PROCESSES": "2", "ATLAS_WORKER_PROCESSES": "2"})
    try:
        stack.start()
        with connected(stack) as rest:
            return _run(plan, stack, rest, say)
    except BaseException:
        say(f"The stack said:\n{stack.said}")
        raise
    finally:
        stack.destroy()


def _run(plan: Plan, stack: Stack, rest: Rest, say: Callable[[str], None]) -> Report:
    report = Report()
    trigger_id = _prepare(stack, rest)
    published, over = threading.Event(), threading.Event()
    killer = threading.Thread(target=_kill, args=(plan, stack, report, over, say), name="killer")
    killer.start()
    try:
        wanted = _publish(plan, stack, rest, report)
        published.set()
    finally:
        over.set()
        killer.join()
    say(f"· all {report.published} are published; waiting for the last to be done")
    with psycopg.connect(postgres.url(stack.run / "pg", bootstrap.CONTROL), autocommit=True) as control:
        _settle(control, trigger_id, len(wanted))
        ledger = control.execute(
            "SELECT event_id, state, history FROM deliveries WHERE project_id = %s", [rest.project_id]
        ).fetchall()
    with psycopg.connect(stack.env["TENANT_DATABASE_URL"]) as tenant:
        begun = tenant.execute("SELECT event_id, run_id FROM begun").fetchall()
    report.attempts.update(item["outcome"] for _, _, history in ledger for item in history)
    report.problems += problems(wanted, ledger, begun)
    return report


def problems(
    wanted: set[str], ledger: Sequence[tuple[str, str, list[dict[str, Any]]]], begun: Sequence[tuple[str, str]]
) -> list[str]:
    """What is wrong with the ledger. `ledger` has event, state and history of each delivery, `begun` event and run."""
    found: list[str] = []
    rows = Counter(event_id for event_id, _, _ in ledger)
    found += [f"{event_id} has no delivery" for event_id in sorted(wanted - rows.keys())]
    found += [f"{event_id} was not to run" for event_id in sorted(rows.keys() - wanted)]
    found += [f"{event_id} has {count} deliveries" for event_id, count in rows.items() if count > 1]
    runs: dict[str, set[str]] = defaultdict(set)
    for event_id, state, history in ledger:
        outcomes = [item["outcome"] for item in history]
        runs[event_id] |= {item["run_id"] for item in history}
        if state != "done" or outcomes[-1:] != ["ok"] or outcomes.count("ok") != 1:
            found.append(f"{event_id} is {state} after {outcomes}")
    found += [
        f"the run {run_id} of {event_id} is no attempt" for event_id, run_id in begun if run_id not in runs[event_id]
    ]
    lacking = rows.keys() - {event_id for event_id, _ in begun}
    return found + [f"{event_id} is said to be done and never began" for event_id in sorted(lacking)]


def _prepare(stack: Stack, rest: Rest) -> str:
    """The id of the trigger."""
    with psycopg.connect(stack.env["TENANT_DATABASE_URL"], autocommit=True) as tenant:
        tenant.execute("CREATE TABLE begun (event_id text, run_id text)")
    trigger = {
        "event_type": TYPE,
        "target_type": "function",
        "function_id": rest.deployed(SOURCE, slug="chaos"),
        "conditions": [{"field": "run", "op": "eq", "value": True}],
        "retry": RETRY,
    }
    answer = rest.manage("POST", "/triggers", json=trigger)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def _publish(plan: Plan, stack: Stack, rest: Rest, report: Report) -> set[str]:
    """Publish all of it; the ids of the events that are to be run."""
    batches: queue.Queue[tuple[float, list[dict[str, Any]]]] = queue.Queue()
    for batch in plan.batches():
        batches.put(batch)
    wanted = {event["id"] for _, events in batches.queue for event in events if event["data"]["run"]}
    report.matching = len(wanted)
    start_s, clock, lock = time.monotonic(), threading.Event(), threading.Lock()

    def publish(send: Callable[[list[dict[str, Any]]], bool]) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                after_s, events = batches.get_nowait()
                clock.wait(max(0.0, start_s + after_s - time.monotonic()))
                tries = _until_acknowledged(send, events)
                with lock:
                    report.published += len(events)
                    report.tries += tries

    with grpc.insecure_channel(urlsplit(stack.url).netloc) as channel, ThreadPoolExecutor(PUBLISHERS) as threads:
        ways = (_by_rest(rest), _by_grpc(rest, channel))
        pending = [threads.submit(publish, ways[number % 2]) for number in range(PUBLISHERS)]
        for one in pending:
            one.result()
    return wanted


def _until_acknowledged(send: Callable[[list[dict[str, Any]]], bool], events: list[dict[str, Any]]) -> int:
    """How many times they had to be sent."""
    deadline_s, tries = time.monotonic() + PATIENCE_S, 1
    while not send(events):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{len(events)} events were not acknowledged within {PATIENCE_S:g} s")
        tries += 1
        time.sleep(0.1)
    return tries


def _by_rest(rest: Rest) -> Callable[[list[dict[str, Any]]], bool]:
    def send(events: list[dict[str, Any]]) -> bool:
        try:
            answer = rest.manage("POST", "/events", json={"events": events}, timeout=15)
        except httpx.HTTPError:
            return False
        if answer.status_code == 200:
            return True
        assert answer.status_code in (401, 502, 503, 504), answer.text
        assert answer.status_code != 401, answer.text
        return False

    return send


def _by_grpc(rest: Rest, channel: grpc.Channel) -> Callable[[list[dict[str, Any]]], bool]:
    stub = EventServiceStub(channel)
    again = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)

    def send(events: list[dict[str, Any]]) -> bool:
        messages = [ParseDict(event, events_pb2.NewEvent()) for event in events]
        request = pb.PublishEventsRequest(project_id=rest.project_id, events=messages)
        try:
            stub.PublishEvents(request, metadata=(("apikey", rest.service_key),), timeout=15)
        except grpc.RpcError as why:
            if why.code() not in again:
                raise
            return False
        return True

    return send


def _kill(plan: Plan, stack: Stack, report: Report, over: threading.Event, say: Callable[[str], None]) -> None:
    """Kill one part after another until it is over: each of them once, then any."""
    chance, start_s, failures = random.Random(plan.seed + 1), time.monotonic(), Failures()
    each = chance.sample([*VICTIMS], len(VICTIMS))
    while not over.wait(chance.uniform(*PAUSE_S)):
        name, now_s = each[-1] if each else chance.choice([*VICTIMS]), time.monotonic()
        failures.read(stack.said, now_s)
        pid = stack.processes().get(VICTIMS[name])
        if pid is None or not failures.admit(name):
            continue
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            report.kills[name] += 1
            if each:
                each.pop()
            say(f"{now_s - start_s:6.1f} s  killed {name}")


class Failures:
    """How often each part ended within the last minute, as the stack says."""

    def __init__(self) -> None:
        self._at_s: dict[str, list[float]] = {name: [] for name in VICTIMS}
        self._recent: dict[str, int] = dict.fromkeys(VICTIMS, 0)

    def read(self, said: str, now_s: float) -> None:
        counts = Counter(re.findall(r"^! (\S+) .*; starting it again$", said, re.MULTILINE))
        for name, times in self._at_s.items():
            times += [now_s] * (counts[name] - len(times))
            self._recent[name] = sum(now_s - at_s < MINUTE_S for at_s in times)

    def admit(self, name: str) -> bool:
        """Whether the part may be killed."""
        if name in NEEDED and max(self._recent.values()) > MOST_OF_ANY:
            return False
        return self._recent[name] < MOST_FAILURES


def _settle(control: "psycopg.Connection[tuple[Any, ...]]", trigger_id: str, wanted: int) -> None:
    """Wait until so many are done and none is on its way."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        counted = control.execute(
            "SELECT count(*) FILTER (WHERE state = 'done'), count(*) FILTER (WHERE state <> 'done') FROM deliveries"
            " WHERE trigger_id = %s",
            [trigger_id],
        ).fetchone()
        assert counted
        if counted[0] >= wanted and counted[1] == 0:
            return
        time.sleep(0.1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance.chaos")
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=180.0, help="in which they are published")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    given = parser.parse_args()
    plan = Plan(given.events, given.seconds, given.seed)
    print(f"{plan.events} events in {plan.seconds:g} s, seed {plan.seed}", flush=True)
    report = run(plan, lambda line: print(line, flush=True))
    for problem in report.problems[:50]:
        print(f"! {problem}")
    print(json.dumps({"seed": plan.seed, "kills": report.kills, "attempts": report.attempts}))
    print(report)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
