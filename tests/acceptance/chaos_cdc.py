"""`python -m tests.acceptance.chaos_cdc [--changes N] [--seconds S] [--seed X]`: pgbench changes tables of two tenants
while the worker that relays changes, NATS and Postgres are killed at random, then every change is accounted for.

    pgbench ──again and again──▶ tables ──relay──▶ stream of events ──▶ replayed: what the tables hold
                                          ▲    ▲                  ╰──▶ deliveries of a trigger ──▶ the ledger
                                       kill -9 of relay, Postgres and NATS

Each committed change is one event, in the order of commits, transactions whole; nothing is there of those that were
rolled back. The stream forgets ids of messages at once, so that no deduplication of its own can hide what comes twice.
Prints the seed, what was killed, and what is wrong.
"""

import argparse
import asyncio
import secrets
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

import psycopg
from nats.js.errors import Error as JetStreamError

from server.events import stream
from server.events.bus import EventBus
from server.events.history import History
from server.postgres.tenants import schema_of
from server.stack import bootstrap, postgres
from tests.acceptance import chaos
from tests.acceptance.chaos_kills import RELAY, kill, turns
from tests.acceptance.chaos_pgbench import (
    CHANGES,
    OWN_TABLES,
    SETUP,
    TABLES,
    Load,
    asked,
    expected,
    own,
    own_expected,
    scripted,
)
from tests.acceptance.chaos_replay import Replay
from tests.fix_clients import Rest, nats_url_of
from tests.fix_up import Stack

VICTIMS: Final = (RELAY, "nats", "postgres")
SOURCE: Final = """
export default (event, ctx) =>
  atlas.db.query("INSERT INTO begun VALUES ($1, $2)", [event.id, ctx.invocation_id]);
"""
ALLOWANCE: Final = 1.4
"""Of the rate, for the time in which Postgres is away."""

FORGET_S: Final = 0.1
READ_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Plan:
    """At least so many changes, in about so many seconds. `whole`: pgbench on its own tables as well, and a trigger
    whose deliveries are counted. Reproducible are what is written, and the order of the kills, but not where they
    hit."""

    changes: int
    seconds: float
    seed: int
    whole: bool = True


@dataclass(slots=True)
class Report:
    changes: int
    kills: Counter[str]
    turns: int
    rounds: Counter[str]
    seconds: float
    deliveries: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.changes} changes in {self.seconds:.0f} s; killed {dict(self.kills)}; relayed in {self.turns} "
            f"turns; pgbench {dict(self.rounds)}; {self.deliveries} deliveries; {len(self.problems)} problems"
        )


def run(plan: Plan, say: Callable[[str], None] = print) -> Report:
    """A stack of its own from beginning to end."""
    with chaos.stack_of_its_own({"ATLAS_WORKER_PROCESSES": "2"}, say) as (stack, rest):
        return _run(plan, stack, rest, say)


def _run(plan: Plan, stack: Stack, rest: Rest, say: Callable[[str], None]) -> Report:
    url = stack.env["TENANT_DATABASE_URL"]
    urls = {project: url.replace(schema_of(rest.project_id), schema_of(project)) for project in _projects(rest)}
    trigger_id = _prepare(rest, urls, plan.whole)
    rate = ALLOWANCE * plan.changes / plan.seconds / CHANGES / len(urls)
    loads = {
        project: scripted(url, stack.home / project, rate=rate, seed=plan.seed + number * 1_000, strict=number > 0)
        for number, (project, url) in enumerate(urls.items())
    }
    others = [own(url, rate=rate, seed=plan.seed + 10_000)] if plan.whole else []
    began_s, kills = time.monotonic(), Counter[str]()
    _under_kills(plan, stack, loads, others, kills, say)
    seconds = time.monotonic() - began_s
    say("· all is written; waiting for the last events and deliveries")
    versions = {
        project: Counter[int](dict(asked(url, "SELECT id, version FROM counter"))) for project, url in urls.items()
    }
    ledger = _ledger(stack, trigger_id, expected(versions[rest.project_id])["cdc.INSERT.item"]) if plan.whole else []
    replay = asyncio.run(_replay(stack, url))
    changes = replay.counts.total() - 1
    for project, counted in versions.items():
        replay.expect(project, expected(counted))
    for project, table in _tables(urls, rest.project_id, plan.whole):
        rows = asked(urls[project], f"SELECT to_jsonb(t) FROM {table} AS t")
        replay.compare((project, table), [row for (row,) in rows])
    if plan.whole:
        ((transactions,),) = asked(url, "SELECT count(*) FROM pgbench_history")
        replay.expect(rest.project_id, own_expected(transactions))
        wanted = replay.ids[rest.project_id, "cdc.INSERT.item"]
        replay.problems += chaos.problems(wanted, ledger, asked(url, "SELECT event_id, run_id FROM begun"))
    rounds = sum((load.rounds for load in (*loads.values(), *others)), Counter[str]())
    return Report(changes, kills, len(turns(stack)), rounds, seconds, len(ledger), replay.problems)


def _projects(rest: Rest) -> list[str]:
    answer = rest.request("POST", "/v1/projects", key=rest.admin_key, json={"name": "second"})
    assert answer.status_code == 200, answer.text
    return [rest.project_id, answer.json()["id"]]


def _tables(urls: dict[str, str], first: str, whole: bool) -> list[tuple[str, str]]:
    own_ones = [(first, table) for table in (*OWN_TABLES, "begun")] if whole else []
    return [*((project, table) for project in urls for table in TABLES), *own_ones]


def _prepare(rest: Rest, urls: dict[str, str], whole: bool) -> str:
    """The id of the trigger, if there is one."""
    for url in urls.values():
        with psycopg.connect(url) as person:
            person.execute(SETUP.encode())
            person.execute("CREATE TABLE begun (event_id text, run_id text)")
            person.execute("CREATE TABLE marker (id int)")
    if not whole:
        return ""
    trigger = {
        "event_type": "cdc.INSERT.item",
        "target_type": "function",
        "function_id": rest.deployed(SOURCE, slug="chaos"),
        "retry": chaos.RETRY,
    }
    answer = rest.manage("POST", "/triggers", json=trigger)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def _under_kills(
    plan: Plan,
    stack: Stack,
    loads: dict[str, Load],
    others: list[Load],
    kills: Counter[str],
    say: Callable[[str], None],
) -> None:
    """Until the loads have made as many changes as are planned; the others go on as long."""
    share = plan.changes / CHANGES / len(loads)
    written, over = threading.Event(), threading.Event()

    def enough(load: Load) -> Callable[[], bool]:
        return lambda: asked(load.url, "SELECT count(*) / 2 FROM history")[0][0] >= share

    with ThreadPoolExecutor() as threads:
        killing = threads.submit(kill, plan.seed + 1, stack, kills, over, say, VICTIMS)
        forgetting = threads.submit(lambda: asyncio.run(_forget(nats_url_of(stack), over)))
        writing = [threads.submit(load.go_on, enough(load), plan.seconds) for load in loads.values()]
        beside = [threads.submit(load.go_on, written.is_set, plan.seconds) for load in others]
        try:
            for one in writing:
                one.result()
            written.set()
            for one in beside:
                one.result()
        finally:
            written.set()
            over.set()
        for work in (killing, forgetting):
            work.result()


async def _forget(nats_url: str, over: threading.Event) -> None:
    """The stream forgets ids, as it would minutes later; each worker that starts sets it right."""
    bus = EventBus(nats_url)
    while not over.is_set():
        with suppress(*stream.AWAY, JetStreamError):
            if not bus.connected:
                await bus.close()
                await bus.start()
            config = (await bus.jetstream.stream_info(stream.NAME)).config
            if config.duplicate_window != FORGET_S:
                await bus.jetstream.update_stream(replace(config, duplicate_window=FORGET_S))
        await asyncio.sleep(FORGET_S)
    await bus.close()


def _ledger(stack: Stack, trigger_id: str, wanted: int) -> list[tuple[str, str, list[dict[str, str]]]]:
    """Of the trigger, once so many are done."""
    with psycopg.connect(postgres.url(stack.run / "pg", bootstrap.CONTROL), autocommit=True) as control:
        chaos.settle(control, trigger_id, wanted)
        query = "SELECT event_id, state, history FROM deliveries WHERE trigger_id = %s"
        return control.execute(query, [trigger_id]).fetchall()


async def _replay(stack: Stack, url: str) -> Replay:
    """Every change there is. They come in the order of commits, so that one more tells when the others are there."""
    asked(url, "INSERT INTO marker VALUES (1) RETURNING 1")
    bus, replay = EventBus(nats_url_of(stack)), Replay({**TABLES, **OWN_TABLES})
    await bus.start()
    following, deadline_s = 1, time.monotonic() + READ_S
    first = (await bus.jetstream.stream_info(stream.NAME)).state.first_seq
    assert first == 1, f"the stream begins at {first}: give it more room"
    while not any(event_type == "cdc.INSERT.marker" for _, event_type in replay.counts):
        assert time.monotonic() < deadline_s, f"the last change is not in the stream: {replay.counts}"
        async with History(bus, "cdc.>", sequence=following) as history:
            while past := await history.some():
                for message in past:
                    replay.take(stream.event_of(message.subject, message.body))
                following, deadline_s = past[-1].sequence + 1, time.monotonic() + READ_S
        await asyncio.sleep(FORGET_S)
    await bus.close()
    return replay


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance.chaos_cdc")
    parser.add_argument(
        "--changes", type=int, default=100_000, help="of our tables; those of pgbench's own come on top"
    )
    parser.add_argument("--seconds", type=float, default=180.0, help="in which they are made")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    given = parser.parse_args()
    plan = Plan(given.changes, given.seconds, given.seed)
    print(f"{plan.changes} changes in {plan.seconds:g} s, seed {plan.seed}", flush=True)
    report = run(plan, lambda line: print(line, flush=True))
    for problem in report.problems[:50]:
        print(f"! {problem}")
    print(report)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
