"""Who runs the steps of workflows: fair shares, shutdown, and what a worker that is gone leaves behind."""

import asyncio

import pytest

from server.errors import Unavailable
from server.postgres.control import Pool, transaction
from server.workflows import queue, stream, worker
from server.workflows.nodes.step import Attempt, Output
from server.workflows.records import Filter
from tests.fix_functions import add_project
from tests.fix_runs import eventually
from tests.fix_workflows import Site, fine, hang, kv


@pytest.fixture
def site(workflow_site: Site) -> Site:
    return workflow_site


class TestFairness:
    async def test_nobody_waits_behind_a_projects_thousand_runs(
        self, site: Site, pool: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two places, and the first project has all its steps sent that it may."""
        monkeypatch.setattr(queue, "WINDOW", 3)
        order: list[str] = []

        async def note(attempt: Attempt) -> Output:
            order.append(attempt.project_id)
            return Output()

        workflow = await site.define([kv("a")])
        runs = [await site.run(workflow) for _ in range(30)]
        other = Site(pool, site.bus, await add_project(pool), site.definitions, site.workflows)
        late = await other.run(await other.define([kv("a")]))
        ((sent,),) = await site.execute("SELECT count(*) FROM workflow_steps WHERE state = 'queued'")
        assert sent == 4
        await site.worker(note, concurrency=1)
        for run_id in runs:
            assert (await site.result(run_id))[0] == "succeeded"
        assert (await other.result(late))[0] == "succeeded"
        assert order.index(other.project_id) <= 5

    async def test_a_process_runs_no_more_than_it_may(self, site: Site) -> None:
        """Three at a time, and nobody goes on before there are three."""
        most = 0
        three = asyncio.Barrier(3)

        async def meet(attempt: Attempt) -> Output:
            nonlocal most
            most = max(most, len(node.running))
            await three.wait()
            return Output()

        node = await site.worker(meet, concurrency=3)
        names = [f"n{number}" for number in range(21)]
        assert (await site.result(await site.run(await site.define([*map(kv, names)]))))[0] == "succeeded"
        assert most == 3


class TestShutdown:
    async def test_what_runs_may_end(self, site: Site) -> None:
        go = asyncio.Event()

        async def wait(attempt: Attempt) -> Output:
            await go.wait()
            return Output()

        node = await site.worker(wait)
        run_id = await site.run(await site.define([kv("a")]))

        async def runs() -> bool:
            return bool(node.running)

        await eventually(runs)
        closing = asyncio.create_task(site.workers[0].close(drain_s=10))
        go.set()
        await closing
        assert (await site.result(run_id))[0] == "succeeded"

    async def test_what_does_not_end_is_given_back_at_once(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(queue, "RESEND_S", 3600.0)  # nobody finds it later
        node = await site.worker(hang)
        run_id = await site.run(await site.define([kv("a")]))

        async def runs() -> bool:
            return bool(node.running)

        await eventually(runs)
        await site.workers.pop().close(drain_s=0)
        _, steps = await site.get(run_id)
        assert (steps["a"].state, steps["a"].attempts) == ("queued", 0)
        await site.worker()
        _, steps = await site.ended(run_id)
        assert (steps["a"].state, steps["a"].attempts) == ("succeeded", 1)


async def test_a_dead_workers_step_is_taken_over_and_says_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    node = await site.worker(hang)
    run_id = await site.run(await site.define([kv("a")]))

    async def runs() -> bool:
        return bool(node.running)

    await eventually(runs)

    async def dead(*_: object) -> list[stream.Ticket]:
        raise Unavailable("It gives nothing back", reason="DEAD")

    monkeypatch.setattr(queue, "LEASE_S", 3.0)  # for which the other worker must have been there
    monkeypatch.setattr(worker, "SWEEP_S", 0.1)
    monkeypatch.setattr(queue, "give_back", dead)
    await site.workers.pop().close(drain_s=0)
    assert (await site.get(run_id))[1]["a"].state == "running"
    await site.worker()
    await site.execute("UPDATE workflow_steps SET due_at = now()")
    _, steps = await site.ended(run_id)
    assert (steps["a"].state, steps["a"].attempts) == ("succeeded", 1)
    assert [each.get("error", {}).get("reason") for each in steps["a"].history] == ["WORKER_DIED", None]


async def test_after_an_absence_of_the_database_a_living_workers_step_is_not_taken(site: Site) -> None:
    go = asyncio.Event()

    async def held(attempt: Attempt) -> Output:
        await go.wait()
        return await fine(attempt)

    node = await site.worker(held)
    run_id = await site.run(await site.define([kv("a")]))

    async def runs() -> bool:
        return bool(node.running)

    await eventually(runs)
    await site.execute("UPDATE workflow_steps SET due_at = now() - interval '1 minute'")
    await site.worker(node)
    for each in site.workers:  # both have come back just now
        await each.sweep()
    _, steps = await site.get(run_id)
    assert (steps["a"].state, steps["a"].history) == ("running", [])
    go.set()
    _, steps = await site.ended(run_id)
    assert (steps["a"].attempts, node.attempts) == (1, {"a": 1})
    assert await site.execute("SELECT deaths FROM workflow_steps") == [(0,)]


async def test_the_window_of_a_project_is_one_for_all_who_send_at_the_same_time(
    site: Site, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        await site.run(await site.define([kv("a"), kv("b"), kv("c")]))
    await site.execute("UPDATE workflow_steps SET state = 'ready'")
    monkeypatch.setattr(queue, "WINDOW", 4)
    async with transaction(pool) as first, transaction(pool) as second:
        sent = [len(await queue.send(conn, [site.project_id])) for conn in (first, second)]
    assert sent == [4, 0]
    async with transaction(pool) as conn:
        assert await queue.send(conn, [site.project_id]) == []
    await site.worker()
    for run in (await site.workflows.list(site.project_id, Filter())).items:
        assert (await site.result(run.id))[0] == "succeeded"
