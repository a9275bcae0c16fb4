"""Runs of workflows on a real Postgres and NATS: order, branches, delays, what steps hand on, and what is kept."""

import asyncio
from datetime import timedelta

import pytest

from server.errors import InvalidArgument, NotFound
from server.postgres.control import Pool
from server.workflows import inputs
from server.workflows.nodes.step import Attempt, Output
from server.workflows.records import Filter
from server.workflows.retention import WorkflowRetention
from tests.fix_runs import eventually
from tests.fix_workflows import Site, document, kv, value_of


@pytest.fixture
def site(workflow_site: Site) -> Site:
    return workflow_site


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
