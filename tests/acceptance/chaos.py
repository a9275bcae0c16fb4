"""`python -m tests.acceptance.chaos [--events N] [--seconds S] [--seed X]`: publish events over REST and gRPC while
workers, API processes, NATS, Postgres and Valkey are killed at random, then account for every event.

    publishers ──again until acknowledged──▶ stack ◀──kill -9── killer
                                               └──▶ the ledger, and what each run wrote when it began

Every acknowledged event that the trigger answers has one delivery, which is done; it has one attempt that went well,
and every run that began is one of its attempts. Prints the seed, what was killed, and what is wrong.
"""

import argparse
import json
import secrets
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg

from server.stack import bootstrap, postgres
from tests.acceptance.chaos_kills import kill
from tests.acceptance.chaos_load import TYPE, Plan, Published, publish
from tests.fix_clients import Rest, connected
from tests.fix_up import Stack, new_stack

SOURCE: Final = """
export default async (event, ctx) => {
  await atlas.db.query("INSERT INTO begun VALUES ($1, $2)", [event.id, ctx.invocation_id]);
  await new Promise((done) => setTimeout(done, event.data.ms));
};
"""
RETRY: Final = {"attempts": 20, "backoff_ms": 50, "max_backoff_ms": 1000}
SETTLE_S: Final = 60.0
"""For another delivery to be done after the last kill: the leases of those that died, 15 s, and their retries."""


@dataclass(slots=True)
class Report:
    published: Published
    kills: Counter[str]
    attempts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.published.events} events published in {self.published.requests} requests, "
            f"{len(self.published.wanted)} of them to be run; killed {dict(self.kills)}; "
            f"attempts {dict(self.attempts)}; {len(self.problems)} problems"
        )


def run(plan: Plan, say: Callable[[str], None] = print) -> Report:
    """A stack of its own from beginning to end."""
    with stack_of_its_own({"ATLAS_API_PROCESSES": "2", "ATLAS_WORKER_PROCESSES": "2"}, say) as (stack, rest):
        return _run(plan, stack, rest, say)


@contextmanager
def stack_of_its_own(settings: dict[str, str], say: Callable[[str], None]) -> Iterator[tuple[Stack, Rest]]:
    """Ended and destroyed with the block; what it said is told when that fails."""
    stack = new_stack(settings)
    try:
        stack.start()
        with connected(stack) as rest:
            yield stack, rest
    except BaseException:
        say(f"The stack said:\n{stack.said}")
        raise
    finally:
        stack.destroy()


def _run(plan: Plan, stack: Stack, rest: Rest, say: Callable[[str], None]) -> Report:
    trigger_id = _prepare(stack, rest)
    kills, over = Counter[str](), threading.Event()
    killer = threading.Thread(target=kill, args=(plan.seed + 1, stack, kills, over, say), name="killer")
    killer.start()
    try:
        published = publish(plan, stack, rest)
    finally:
        over.set()
        killer.join()
    say(f"· all {published.events} are published; waiting for the last to be done")
    with psycopg.connect(postgres.url(stack.run / "pg", bootstrap.CONTROL), autocommit=True) as control:
        settle(control, trigger_id, len(published.wanted))
        ledger = control.execute(
            "SELECT event_id, state, history FROM deliveries WHERE project_id = %s", [rest.project_id]
        ).fetchall()
    with psycopg.connect(stack.env["TENANT_DATABASE_URL"]) as tenant:
        begun = tenant.execute("SELECT event_id, run_id FROM begun").fetchall()
    attempts = Counter(item["outcome"] for _, _, history in ledger for item in history)
    return Report(published, kills, attempts, problems(published.wanted, ledger, begun))


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


def settle(control: "psycopg.Connection[tuple[Any, ...]]", trigger_id: str, wanted: int) -> None:
    """Wait until so many are done and none is on its way, or nothing gets done any more."""
    done, deadline_s = -1, 0.0
    while done < 0 or time.monotonic() < deadline_s:
        counted = control.execute(
            "SELECT count(*) FILTER (WHERE state = 'done'), count(*) FILTER (WHERE state <> 'done') FROM deliveries"
            " WHERE trigger_id = %s",
            [trigger_id],
        ).fetchone()
        assert counted
        if counted[0] >= wanted and counted[1] == 0:
            return
        if counted[0] > done:
            done, deadline_s = counted[0], time.monotonic() + SETTLE_S
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
