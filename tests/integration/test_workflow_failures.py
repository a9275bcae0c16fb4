"""Steps that fail, are tried again, find no room or take too long, and what that makes of their run."""

import asyncio
import json

import pytest

from server.workflows.nodes.step import Attempt, Output, StepFailed
from tests.fix_runs import eventually
from tests.fix_workflows import Site, hang, kv, value_of


@pytest.fixture
def site(workflow_site: Site) -> Site:
    return workflow_site


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
