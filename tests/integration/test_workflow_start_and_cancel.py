"""Runs of workflows begin once by their id, and end when somebody cancels them."""

import asyncio

import pytest

from server.errors import FailedPrecondition, InvalidArgument, NotFound
from server.events.bus import EventBus
from server.postgres.control import Pool
from server.workflows.records import Filter
from server.workflows.runs import Workflows
from tests.fix_functions import add_project
from tests.fix_runs import eventually
from tests.fix_workflows import Site, an_id, document, hang, kv, value_of


@pytest.fixture
def site(workflow_site: Site) -> Site:
    return workflow_site


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
    async def test_it_reaches_the_worker_and_nothing_starts_any_more(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("server.workflows.claims.RENEW_EVERY_S", 3600.0)  # its lease does not say it
        node = await site.worker(hang)
        run_id = await site.run(await site.define([kv("a"), kv("b"), kv("c")], "a c"))

        async def both() -> bool:
            return node.running == {"a", "b"}

        async def none() -> bool:
            return not node.running

        await eventually(both)
        run = await site.workflows.cancel(site.project_id, run_id)
        assert run.state == "cancelled"
        await eventually(none)
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
