"""Watching a run: its state first, then each change, until it has ended; from a process that does none of the work."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from server.errors import NotFound, ResourceExhausted
from server.workflows import watch
from server.workflows.nodes.step import Attempt, Output
from server.workflows.watch import Change, Watching
from tests.fix_workflows import Site, an_id, hang, kv


@pytest.fixture
def site(workflow_site: Site) -> Site:
    return workflow_site


def watched(site: Site, run_id: str, *, silence_s: float = 30.0, poll_s: float = 30.0) -> AsyncIterator[Change | None]:
    """Polling takes so long that only what is told arrives in time."""
    return Watching(site.workflows, site.bus, poll_s=poll_s).watch(site.project_id, run_id, silence_s=silence_s)


async def test_every_step_is_seen_to_its_end(site: Site) -> None:
    go = asyncio.Event()

    async def wait(attempt: Attempt) -> Output:
        await go.wait()
        return Output()

    run_id = await site.run(await site.define([kv("a"), kv("b")], "a b"))
    seen: list[tuple[str, dict[str, str]]] = []
    async for change in watched(site, run_id):
        assert change is not None
        seen.append((change.run.state, {step.node_id: step.state for step in change.steps}))
        if len(seen) == 1:
            await site.worker(wait)
        if ("running", {"a": "running"}) in seen:
            go.set()
    assert seen[0] == ("running", {"a": "queued", "b": "pending"})
    assert seen[-1][0] == "succeeded"
    last: dict[str, str] = {}
    for _, steps in seen:
        last |= steps
    assert last == {"a": "succeeded", "b": "succeeded"}


async def test_one_that_has_ended_is_told_once(site: Site) -> None:
    await site.worker()
    run_id = await site.run(await site.define([kv("a")]))
    await site.ended(run_id)
    changes = [change async for change in watched(site, run_id)]
    assert [change and change.run.state for change in changes] == ["succeeded"]


async def test_cancelling_ends_it(site: Site) -> None:
    await site.worker(hang)
    run_id = await site.run(await site.define([kv("a")]))
    states = []
    async for change in watched(site, run_id):
        assert change is not None
        states.append(change.run.state)
        if len(states) == 1:
            await site.workflows.cancel(site.project_id, run_id)
    assert states[-1] == "cancelled"


async def test_silence_is_told_and_nothing_lost_without_nats(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = await site.run(await site.define([kv("a")]))
    changes = watched(site, run_id, silence_s=0.05, poll_s=0.01)
    assert await anext(changes) is not None
    assert await anext(changes) is None

    async def untold(*_: object) -> None: ...

    monkeypatch.setattr("server.workflows.stream.tell", untold)
    await site.worker()
    states = [change.run.state async for change in changes if change is not None]
    assert states[-1] == "succeeded"


async def test_ends_with_the_process_and_has_a_bound(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "WATCHERS_PER_PROJECT", 1)
    run_id = await site.run(await site.define([kv("a")]))
    watching = Watching(site.workflows, site.bus)
    with pytest.raises(NotFound):
        await anext(watching.watch(site.project_id, an_id(), silence_s=30))
    first = watching.watch(site.project_id, run_id, silence_s=30)
    await anext(first)
    with pytest.raises(ResourceExhausted):
        await anext(watching.watch(site.project_id, run_id, silence_s=30))
    watching.close()
    assert [change async for change in first] == []
    assert await anext(watching.watch(site.project_id, run_id, silence_s=30))
