"""Runs of workflows on a real Postgres and NATS: order, branches, failures, retries, delays, and what they hand on."""

import asyncio
import json
from datetime import timedelta

import pytest

from server.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from server.events.bus import EventBus
from server.postgres.control import Pool, transaction
from server.workflows import inputs, queue, stream, worker
from server.workflows.nodes.step import Attempt, Output, StepFailed
from server.workflows.records import Filter
from server.workflows.retention import WorkflowRetention
from server.workflows.runs import Workflows
from tests.fix_functions import add_project
from tests.fix_runs import eventually
from tests.fix_workflows import Site, an_id, document, fine, hang, kv


@pytest.fixture
def site(workflow_site: Site) -> Site:
    return workflow_site


def value_of(output: bytes | None) -> object:
    return None if output is None else json.loads(output)


CHECK = {
    "id": "check",
    "type": "condition",
    "config": {"conditions": [{"field": "trigger.amount", "op": "gt", "value": 100}]},
}


async def test_steps_follow_one_another_and_hand_on_their_outputs(site: Site) -> None:
    await site.worker()
    workflow = await site.define(
        [
            kv("a", {"n": "{{trigger.amount}}", "id": "{{trigger.id}}"}),
            kv("b", "got {{steps.a.output.n}}"),
            kv("c", ["{{steps.a.output}}", "{{steps.b.output}}", "{{run.id}}"]),
        ],
        "a b",
        "b c",
    )
    run_id = await site.run(workflow, {"amount": 12345678901234567890})
    run, steps = await site.ended(run_id)
    assert (run.state, run.error, run.version, run.trigger_id) == ("succeeded", None, 1, None)
    first = {"n": 12345678901234567890, "id": run_id}
    assert value_of(steps["a"].output) == first
    assert value_of(steps["b"].output) == "got 12345678901234567890"
    assert value_of(steps["c"].output) == [first, "got 12345678901234567890", run_id]
    assert [*steps] == ["a", "b", "c"]
    assert [len(step.history) for step in steps.values()] == [1, 1, 1]
    assert value_of(steps["b"].input) == {"op": "set", "key": "b", "value": "got 12345678901234567890"}


@pytest.mark.parametrize(("amount", "taken"), [(101, "yes"), (100, "no")])
async def test_a_condition_takes_one_branch_and_both_meet_again(site: Site, amount: int, taken: str) -> None:
    node = await site.worker()
    workflow = await site.define(
        [CHECK, kv("yes"), kv("no"), kv("join", ["{{steps.yes.state}}", "{{steps.no.output}}"])],
        "check yes +",
        "check no -",
        "yes join",
        "no join",
    )
    state, steps = await site.result(await site.run(workflow, {"amount": amount}))
    left = "no" if taken == "yes" else "yes"
    assert (state, steps) == (
        "succeeded",
        {"check": "succeeded", taken: "succeeded", left: "skipped", "join": "succeeded"},
    )
    assert node.attempts == {taken: 1, "join": 1}


async def test_branches_run_side_by_side_and_join_once(site: Site) -> None:
    together = asyncio.Barrier(8)

    async def meet(attempt: Attempt) -> Output:
        if attempt.node.id.startswith("p"):
            await together.wait()
        return Output()

    node = await site.worker(meet)
    names = [f"p{number}" for number in range(8)]
    workflow = await site.define(
        [kv("start"), *map(kv, names), kv("join")],
        *(f"start {name}" for name in names),
        *(f"{name} join" for name in names),
    )
    state, _ = await site.result(await site.run(workflow))
    assert (state, node.attempts["join"], sum(node.attempts.values())) == ("succeeded", 1, 10)


async def fail(attempt: Attempt) -> Output:
    if attempt.node.id == "bad":
        raise StepFailed("BROKEN", "it broke\0", again=True)
    return Output(json=json.dumps(attempt.input["value"]).encode())


async def test_a_failure_ends_the_run_and_says_where(site: Site) -> None:
    started = asyncio.Event()

    async def work(attempt: Attempt) -> Output:
        if attempt.node.id == "slow":
            started.set()
            return await hang(attempt)
        await started.wait()
        return await fail(attempt)

    node = await site.worker(work)
    workflow = await site.define([kv("bad"), kv("slow"), kv("never")], "bad never")
    run, steps = await site.ended(await site.run(workflow))
    assert run.state == "failed"
    assert run.error == {"reason": "BROKEN", "message": "it broke\ufffd", "node_id": "bad"}
    assert {name: step.state for name, step in steps.items()} == {
        "bad": "failed",
        "slow": "cancelled",
        "never": "cancelled",
    }

    async def stopped() -> bool:
        return not node.running

    await eventually(stopped)


async def test_on_error_continue_goes_on_with_the_error(site: Site) -> None:
    await site.worker(fail)
    workflow = await site.define(
        [
            kv("bad", on_error="continue"),
            kv("next", ["{{steps.bad.output}}", "{{steps.bad.error}}", "{{steps.bad.state}}"]),
        ],
        "bad next",
    )
    run, steps = await site.ended(await site.run(workflow))
    assert (run.state, steps["bad"].state) == ("succeeded", "failed")
    assert value_of(steps["next"].output) == [None, {"reason": "BROKEN", "message": "it broke\ufffd"}, "failed"]


async def test_retries_are_counted_and_kept(site: Site) -> None:
    async def third_time(attempt: Attempt) -> Output:
        if attempt.attempt < 3:
            raise StepFailed("BROKEN", f"attempt {attempt.attempt}", again=True)
        return Output(json=b"3")

    node = await site.worker(third_time)
    workflow = await site.define([kv("a", retry={"attempts": 3, "backoff_ms": 10})])
    run, steps = await site.ended(await site.run(workflow))
    assert (run.state, node.attempts["a"], steps["a"].attempts) == ("succeeded", 3, 3)
    told = [(each["number"], each.get("error", {}).get("message")) for each in steps["a"].history]
    assert told == [(1, "attempt 1"), (2, "attempt 2"), (3, None)]
    assert steps["a"].error is None


async def test_retries_end(site: Site) -> None:
    node = await site.worker(fail)
    workflow = await site.define([kv("bad", retry={"attempts": 2, "backoff_ms": 10})])
    run, _ = await site.ended(await site.run(workflow))
    assert (run.state, node.attempts["bad"]) == ("failed", 2)


async def test_no_room_is_no_attempt(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.workflows.retrying.REFUSED_S", (0.01,))
    refusals = 0

    async def full(attempt: Attempt) -> Output:
        nonlocal refusals
        refusals += 1
        if refusals < 4:
            raise StepFailed("OVERLOADED", "no room", again=True, no_room=True)
        assert attempt.attempt == 1
        return Output()

    await site.worker(full)
    run, steps = await site.ended(await site.run(await site.define([kv("a")])))
    assert (run.state, steps["a"].attempts, len(steps["a"].history)) == ("succeeded", 1, 1)


async def test_a_fault_of_ours_is_retried_as_a_failure(site: Site) -> None:
    async def fault(attempt: Attempt) -> Output:
        if attempt.attempt == 1:
            raise RuntimeError("secret words")
        return Output()

    await site.worker(fault)
    workflow = await site.define([kv("a", retry={"attempts": 2, "backoff_ms": 10})])
    run, steps = await site.ended(await site.run(workflow))
    assert (run.state, steps["a"].history[0]["error"]["reason"]) == ("succeeded", "INTERNAL_FAULT")
    assert "secret" not in str(steps)


async def test_a_timeout_ends_the_attempt(site: Site) -> None:
    node = await site.worker(hang)
    run, _ = await site.ended(await site.run(await site.define([kv("a", timeout_seconds=1)])))
    assert run.error == {
        "reason": "STEP_TIMEOUT",
        "message": "The step did not end within 1 s, its timeout",
        "node_id": "a",
    }
    assert not node.running


async def test_a_delay_is_a_row(site: Site) -> None:
    node = await site.worker()
    delay = {"id": "wait", "type": "delay", "config": {"seconds": "{{trigger.s}}"}}
    workflow = await site.define([delay, kv("after")], "wait after")
    run_id = await site.run(workflow, {"s": 3600})

    async def waits() -> bool:
        return (await site.get(run_id))[1]["wait"].state == "waiting"

    await eventually(waits)
    _, steps = await site.get(run_id)
    assert steps["wait"].due_at is not None
    assert steps["wait"].began_at is not None
    assert timedelta(seconds=3599) < steps["wait"].due_at - steps["wait"].began_at < timedelta(seconds=3601)
    assert not node.attempts
    await site.execute("UPDATE workflow_steps SET due_at = now(), wake_at = now() WHERE node_id = 'wait'")
    assert await site.result(run_id) == ("succeeded", {"wait": "succeeded", "after": "succeeded"})
    assert (await site.get(run_id))[1]["wait"].attempts == 1


@pytest.mark.parametrize("seconds", ["soon", -1, 1e9])
async def test_a_delay_that_makes_no_sense_fails(site: Site, seconds: object) -> None:
    await site.worker()
    delay = {"id": "wait", "type": "delay", "config": {"seconds": "{{trigger.s}}"}}
    run, _ = await site.ended(await site.run(await site.define([delay]), {"s": seconds}))
    assert run.error is not None
    assert run.error["reason"] == "DELAY_INVALID"


async def test_inputs_and_outputs_have_bounds(site: Site) -> None:
    async def much(attempt: Attempt) -> Output:
        return Output(json=b'"' + b"x" * 300_000 + b'"')

    await site.worker(much)
    run, _ = await site.ended(await site.run(await site.define([kv("a")])))
    assert run.error is not None
    assert run.error["reason"] == "STEP_OUTPUT_TOO_LARGE"
    run, _ = await site.ended(await site.run(await site.define([kv("a", ["{{trigger}}"] * 20)]), "x" * 100_000))
    assert run.error is not None
    assert run.error["reason"] == "STEP_INPUT_TOO_LARGE"


@pytest.mark.parametrize(
    ("bound", "most", "told"),
    [("MAX_READ_BYTES", 9_000, "12006 bytes"), ("MAX_READ_VALUES", 150, "198 commas and opening brackets")],
)
async def test_what_a_step_reads_has_bounds_before_it_is_loaded(
    site: Site, monkeypatch: pytest.MonkeyPatch, bound: str, most: int, told: str
) -> None:
    monkeypatch.setattr(inputs, bound, most)
    value: object = "x" * 4_000 if bound == "MAX_READ_BYTES" else [[]] * 33  # of which each has 34 brackets, 32 commas
    await site.worker()
    nodes = [kv(name, value) for name in "abc"]
    reads = kv("all", [f"{{{{steps.{name}.output.none}}}}" for name in "abc"])
    run, _ = await site.ended(await site.run(await site.define([*nodes, reads], "a all", "b all", "c all")))
    assert run.error is not None
    assert (run.error["node_id"], run.error["reason"]) == ("all", "STEP_INPUT_TOO_LARGE")
    assert told in run.error["message"]
    assert str(most) in run.error["message"]
    states = kv("all", [f"{{{{steps.{name}.state}}}}" for name in "abc"])
    assert (await site.result(await site.run(await site.define([*nodes, states], "a all", "b all", "c all"))))[0] == (
        "succeeded"
    )


async def test_large_outputs_are_shown_with_their_step_alone(site: Site) -> None:
    await site.worker()
    run_id = await site.run(await site.define([kv("a", "{{trigger.text}}")]), {"text": "x" * 10_000})
    _, steps = await site.ended(run_id)
    assert (steps["a"].output, steps["a"].omitted) == (None, True)
    whole = await site.workflows.step(site.project_id, run_id, "a")
    assert (value_of(whole.output), whole.omitted) == ("x" * 10_000, False)
    with pytest.raises(NotFound):
        await site.workflows.step(site.project_id, run_id, "b")


class TestStart:
    async def test_once_by_id(self, site: Site) -> None:
        node = await site.worker()
        workflow, run_id, trigger = (
            await site.define([kv("a", "{{trigger.amount}} {{trigger.type}}")]),
            an_id(),
            an_id(),
        )
        event = b'{"id":"e","type":"order.paid","data":{"amount":1.50}}'
        for _ in range(3):
            await site.workflows.start(
                project_id=site.project_id, workflow_id=workflow, run_id=run_id, trigger_id=trigger, event=event
            )
        run, steps = await site.ended(run_id)
        assert (run.trigger_id, value_of(steps["a"].output)) == (trigger, "1.5 order.paid")
        assert node.attempts == {"a": 1}

    async def test_at_the_same_moment(self, site: Site) -> None:
        await site.worker()
        workflow, run_id = await site.define([kv("a")]), an_id()
        await asyncio.gather(
            *(
                site.workflows.start(
                    project_id=site.project_id, workflow_id=workflow, run_id=run_id, trigger_id=None, event=b"{}"
                )
                for _ in range(5)
            )
        )
        assert (await site.result(run_id))[0] == "succeeded"
        assert len((await site.workflows.list(site.project_id, Filter())).items) == 1

    async def test_only_what_there_is(self, site: Site, pool: Pool) -> None:
        workflow, other = await site.define([kv("a")]), await add_project(pool)
        for project_id, workflow_id in ((site.project_id, an_id()), (other, workflow)):
            with pytest.raises(NotFound):
                await site.workflows.start(
                    project_id=project_id, workflow_id=workflow_id, run_id=an_id(), trigger_id=None, event=b"{}"
                )
            with pytest.raises(NotFound):
                await site.workflows.run(project_id, workflow_id, document(None))

    async def test_too_large_an_input(self, site: Site) -> None:
        workflow = await site.define([kv("a")])
        with pytest.raises(InvalidArgument, match="at most 1000000"):
            await site.run(workflow, "x" * 1_000_000)


class TestCancel:
    async def test_it_reaches_the_worker_and_nothing_starts_any_more(self, site: Site) -> None:
        node = await site.worker(hang)
        run_id = await site.run(await site.define([kv("a"), kv("b"), kv("c")], "a c"))

        async def both() -> bool:
            return node.running == {"a", "b"}

        async def none() -> bool:
            return not node.running

        await eventually(both)
        run = await site.workflows.cancel(site.project_id, run_id)
        assert run.state == "cancelled"
        await eventually(none, within_s=2.0)
        _, steps = await site.get(run_id)
        assert {step.state for step in steps.values()} == {"cancelled"}
        with pytest.raises(FailedPrecondition, match="ended already: cancelled"):
            await site.workflows.cancel(site.project_id, run_id)

    async def test_without_a_word_over_nats_the_lease_says_it(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("server.workflows.claims.RENEW_EVERY_S", 0.05)
        node = await site.worker(hang)
        run_id = await site.run(await site.define([kv("a")]))

        async def runs() -> bool:
            return bool(node.running)

        async def none() -> bool:
            return not node.running

        await eventually(runs)
        deaf = EventBus("")
        await Workflows(site.pool, deaf).cancel(site.project_id, run_id)
        await eventually(none)

    async def test_of_another_project(self, site: Site, pool: Pool) -> None:
        run_id = await site.run(await site.define([kv("a")]))
        other = await add_project(pool)
        for call in (site.workflows.cancel(other, run_id), site.workflows.get(other, run_id)):
            with pytest.raises(NotFound):
                await call


async def test_a_run_keeps_its_version_though_the_workflow_is_changed_or_deleted(site: Site) -> None:
    workflow = await site.define([kv("a", "old"), kv("b", "old")], "a b")
    run_id = await site.run(workflow)
    await site.definitions.update(site.project_id, workflow, document=document({"nodes": [kv("c", "new")]}))
    newer = await site.run(workflow)
    await site.definitions.delete(site.project_id, workflow)
    await site.worker()
    assert await site.result(run_id) == ("succeeded", {"a": "succeeded", "b": "succeeded"})
    run, steps = await site.ended(newer)
    assert (run.version, [*steps]) == (2, ["c"])


async def test_lists(site: Site) -> None:
    await site.worker()
    one, two = await site.define([kv("a")]), await site.define([kv("a")])
    runs = [await site.run(each) for each in (one, two, one)]
    for run_id in runs:
        await site.ended(run_id)
    newest = await site.workflows.list(site.project_id, Filter(), page_size=2)
    assert [run.id for run in newest.items] == runs[:0:-1]
    rest = await site.workflows.list(site.project_id, Filter(), 2, newest.next_page_token)
    assert ([run.id for run in rest.items], rest.next_page_token) == ([runs[0]], "")
    of_one = await site.workflows.list(site.project_id, Filter(workflow_id=one, state="succeeded"))
    assert [run.id for run in of_one.items] == [runs[2], runs[0]]
    middle = of_one.items[0].created_at
    assert [r.id for r in (await site.workflows.list(site.project_id, Filter(since=middle))).items] == [runs[2]]
    assert [r.id for r in (await site.workflows.list(site.project_id, Filter(until=middle))).items] == runs[1::-1]
    assert (await site.workflows.list(site.project_id, Filter(state="running"))).items == []
    with pytest.raises(InvalidArgument, match="state"):
        await site.workflows.list(site.project_id, Filter(state="queued"))


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

    async def test_what_does_not_end_is_given_back_at_once(self, site: Site) -> None:
        node = await site.worker(hang)
        run_id = await site.run(await site.define([kv("a")]))

        async def runs() -> bool:
            return bool(node.running)

        await eventually(runs)
        await site.workers.pop().close(drain_s=0)
        _, steps = await site.get(run_id)
        assert (steps["a"].state, steps["a"].attempts) == ("queued", 0)
        await site.worker()
        _, steps = await site.ended(run_id, within_s=4.0)
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


async def test_retention_and_the_end_of_a_project(site: Site, pool: Pool) -> None:
    await site.worker()
    workflow = await site.define([kv("a")])
    old = await site.run(workflow)
    await site.ended(old)
    await site.execute("UPDATE workflow_runs SET finished_at = now() - interval '2 hours'")
    retention = WorkflowRetention(pool, keep_hours=1, keep_mb=256)
    young = await site.run(workflow)
    await site.ended(young)
    assert await retention.sweep() == 1
    assert [run.id for run in (await site.workflows.list(site.project_id, Filter())).items] == [young]
    assert len(await site.execute("SELECT 1 FROM workflow_versions")) == 1
    await retention.remove_project(site.project_id)
    for table in ("runs", "steps", "versions"):
        assert await site.execute(f"SELECT 1 FROM workflow_{table}") == []
