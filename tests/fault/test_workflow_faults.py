"""Workers killed in the middle of runs, NATS away, messages lost: every run ends, and no step that ended runs again."""

import asyncio
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from server.errors import InvalidArgument, Unavailable
from server.events.bus import EventBus
from server.postgres.control import Pool
from server.workflows import queue, records, running, stream, transitions
from server.workflows.runs import Workflows
from server.workflows.store import Definitions
from tests.fix_functions import add_project
from tests.fix_runs import OwnNats, eventually
from tests.fix_workflows import Site, an_id, kv

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("workflow_worker.py")
RUNS = 100
WORKERS = 2
DEADLINE_S = 120.0

CHECK = {
    "id": "check",
    "type": "condition",
    "config": {"conditions": [{"field": "trigger.even", "op": "eq", "value": True}]},
}
NODES = [kv("start"), CHECK, kv("even"), kv("odd"), kv("left"), kv("right"), kv("join")]
NODES.append({"id": "pause", "type": "delay", "config": {"seconds": 0.2}})
EDGES = (
    *("start check", "check even +", "check odd -", "even pause", "odd pause"),
    *("pause left", "pause right", "left join", "right join"),
)


@pytest.fixture
def site(workflow_site: Site) -> Site:
    return workflow_site


async def launch(database_url: str, nats_url: str) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAM), database_url, nats_url),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"working\n"
    return process


async def kill(processes: list[asyncio.subprocess.Process]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        await process.wait()
    processes.clear()


async def test_every_worker_is_killed_again_and_again_in_the_middle_of_a_hundred_runs(
    site: Site, control_url: str, nats_url: str
) -> None:
    await site.execute("CREATE TABLE noted (run_id uuid, node_id text, at timestamptz)")
    workflow = await site.define(NODES, *EDGES)
    runs = [await site.run(workflow, {"even": number % 2 == 0}) for number in range(RUNS)]
    kills = 0
    workers: list[asyncio.subprocess.Process] = []

    async def finished() -> int:
        ((count,),) = await site.execute("SELECT count(*) FROM workflow_runs WHERE state <> 'running'")
        return int(count)

    try:
        while kills < 4:
            before = len(await site.execute("SELECT 1 FROM noted"))
            workers = [*await asyncio.gather(*(launch(control_url, nats_url) for _ in range(WORKERS)))]

            async def busy(before: int = before) -> bool:
                return len(await site.execute("SELECT 1 FROM noted")) > before + 30

            await eventually(busy)
            await asyncio.sleep(random.uniform(0, 0.2))
            assert await finished() < RUNS, "they were killed too late to prove anything"
            await kill(workers)
            kills += 1
        workers = [*await asyncio.gather(*(launch(control_url, nats_url) for _ in range(WORKERS)))]

        async def all_finished() -> bool:
            return await finished() == RUNS

        await eventually(all_finished, DEADLINE_S)
    finally:
        await kill(workers)

    states = await site.execute("SELECT DISTINCT state FROM workflow_runs")
    assert states == [("succeeded",)]
    skipped = await site.execute("SELECT count(*) FROM workflow_steps WHERE state = 'skipped'")
    succeeded = await site.execute("SELECT count(*) FROM workflow_steps WHERE state = 'succeeded'")
    assert (skipped, succeeded) == ([(RUNS,)], [(RUNS * 7,)])
    again = await site.execute(
        "SELECT n.node_id FROM noted n JOIN workflow_steps s USING (run_id, node_id) WHERE n.at > s.finished_at"
    )
    assert again == [], "a step that had ended ran again"
    ends = await site.execute(
        "SELECT node_id FROM workflow_steps WHERE state = 'succeeded' AND (SELECT count(*)"
        " FROM jsonb_array_elements(history) attempt WHERE NOT attempt ? 'error') <> 1"
    )
    assert ends == [], "a step ended otherwise than once"
    died = await site.execute("SELECT sum(deaths) FROM workflow_steps")
    attempted = await site.execute("SELECT count(*) FROM noted")
    assert died[0][0] > 0, "nobody died at work"
    assert attempted[0][0] <= RUNS * 5 + died[0][0]
    assert len(runs) == RUNS


@asynccontextmanager
async def a_site(pool: Pool, nats: OwnNats) -> AsyncIterator[Site]:
    bus = EventBus(nats.url)
    await bus.start()
    site = Site(pool, bus, await add_project(pool), Definitions(pool), Workflows(pool, bus))
    try:
        yield site
    finally:
        for worker in site.workers:
            await worker.close(drain_s=0)
        await bus.close()


async def test_runs_begun_while_nats_is_away_happen_when_it_is_back(
    pool: Pool, own_nats: OwnNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "RESEND_S", 0.5)
    async with a_site(pool, own_nats) as site:
        node = await site.worker()
        workflow = await site.define([kv("a"), kv("b"), kv("c")], "a b", "b c")
        before = [await site.run(workflow) for _ in range(20)]
        own_nats.kill()
        during = [await site.run(workflow) for _ in range(20)]
        own_nats.start()
        for run_id in (*before, *during):
            run, _ = await site.ended(run_id, within_s=60)
            assert run.state == "succeeded"
        assert node.attempts == {"a": 40, "b": 40, "c": 40}


async def test_what_was_committed_but_not_published_is_found(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a crash between COMMIT and publish."""
    monkeypatch.setattr(queue, "RESEND_S", 0.2)
    real = stream.send
    lost = 0

    async def lose_the_first(bus: EventBus, tickets: list[stream.Ticket]) -> None:
        nonlocal lost
        if tickets and lost < 3:
            lost += 1
            return
        await real(bus, tickets)

    monkeypatch.setattr(stream, "send", lose_the_first)
    node = await site.worker()
    run, _ = await site.ended(await site.run(await site.define([kv("a"), kv("b")], "a b")))
    assert (run.state, lost, node.attempts) == ("succeeded", 3, {"a": 1, "b": 1})


async def test_messages_that_come_twice_or_are_none_change_nothing(site: Site) -> None:
    workflow = await site.define([kv("a")])
    run_id = await site.run(workflow)
    jetstream = site.bus.jetstream
    ticket = stream.Ticket(run_id, "a", 0).encode()
    for body in (ticket, ticket, b"", b"{}", b"[1]", b'{"run_id":"x","node_id":"a","claims":0}', ticket[:-2] + b"9}"):
        await jetstream.publish(stream.SUBJECT, body)
    node = await site.worker()
    assert (await site.result(run_id))[0] == "succeeded"

    async def empty() -> bool:
        return (await jetstream.stream_info(stream.NAME)).state.messages == 0

    await eventually(empty)
    assert node.attempts == {"a": 1}


async def test_the_stream_may_be_deleted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "RESEND_S", 0.3)
    runs = [await site.run(await site.define([kv("a"), kv("b")], "a b")) for _ in range(3)]
    await site.bus.jetstream.delete_stream(stream.NAME)
    await site.worker()
    for run_id in runs:
        assert (await site.result(run_id))[0] == "succeeded"


async def test_the_end_of_a_step_is_written_when_the_database_is_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what reads from it meanwhile gives its step back."""
    monkeypatch.setattr(running, "WRITE_PAUSE_S", 0.02)
    real_finish, real_results, real_give_back = transitions.finish, records.results, queue.give_back
    away = Counter({"finish": 60, "results": 2, "give_back": 3})

    async def finish(*args: Any) -> Any:
        if (left := away["finish"]) > 0:
            away["finish"] = left - 1
            raise Unavailable("The database is away", reason="AWAY")
        return await real_finish(*args)

    async def results(*args: Any) -> Any:
        if (left := away["results"]) > 0:
            away["results"] = left - 1
            raise Unavailable("The database is away", reason="AWAY")
        return await real_results(*args)

    async def give_back(*args: Any) -> Any:
        if (left := away["give_back"]) > 0:
            away["give_back"] = left - 1
            raise Unavailable("The database is away", reason="AWAY")
        return await real_give_back(*args)

    monkeypatch.setattr(queue, "give_back", give_back)
    monkeypatch.setattr(transitions, "finish", finish)
    monkeypatch.setattr(records, "results", results)
    node = await site.worker()
    run, steps = await site.ended(await site.run(await site.define([kv("a", 1), kv("b", "{{steps.a.output}}")], "a b")))
    assert (run.state, node.attempts, steps["b"].output) == ("succeeded", {"a": 1, "b": 1}, b"1")
    assert steps["b"].attempts == 1
    assert await site.execute("SELECT sum(deaths)::int FROM workflow_steps") == [(0,)]


async def test_a_definition_that_this_release_refuses_fails_its_run(site: Site) -> None:
    run_id = await site.run(await site.define([kv("a")]))
    await site.execute("UPDATE workflow_versions SET definition = '{\"nodes\": []}'")
    await site.worker()
    run, steps = await site.ended(run_id)
    assert run.error is not None
    assert (run.state, run.error["reason"], steps["a"].state) == ("failed", "DEFINITION_UNREADABLE", "cancelled")


async def test_a_run_whose_event_is_none_fails(site: Site) -> None:
    workflow = await site.define([kv("a")])
    with pytest.raises(InvalidArgument, match="not a JSON object"):
        await site.workflows.start(
            project_id=site.project_id, workflow_id=workflow, run_id=an_id(), trigger_id=None, event=b"[1"
        )
    run_id = await site.run(workflow)
    await site.execute("UPDATE workflow_runs SET event = '[1'")
    await site.worker()
    run, _ = await site.ended(run_id)
    assert run.error is not None
    assert run.error["reason"] == "EVENT_UNREADABLE"


async def test_a_step_under_which_workers_die_again_and_again_fails(site: Site) -> None:
    node = await site.worker()
    workflow = await site.define([{"id": "wait", "type": "delay", "config": {"seconds": 60}}, kv("a")], "wait a")
    run_id = await site.run(workflow)
    await site.execute("UPDATE workflow_steps SET deaths = 10 WHERE run_id = %s AND node_id = 'a'", run_id)

    async def waits() -> bool:
        return (await site.get(run_id))[1]["wait"].state == "waiting"

    await eventually(waits)
    await site.execute("UPDATE workflow_steps SET due_at = now(), wake_at = now() WHERE state = 'waiting'")
    run, _ = await site.ended(run_id)
    assert run.error is not None
    assert (run.error["reason"], node.attempts) == ("WORKER_DIED", {})
