"""From the clock to the function: schedules, their deliveries, and what may run beside what."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from server.dispatch.cron import Cron
from server.postgres.control import transaction
from server.telemetry.metrics import Metrics
from tests.fix_dispatch import Gate, Site, Worker
from tests.fix_triggers import add_workflow

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)


class Hand:
    def __init__(self) -> None:
        self.at = NOON + timedelta(seconds=1)

    def now(self) -> datetime:
        return self.at

    def monotonic_s(self) -> float:
        return 0.0


class Clockwork:
    """A scheduler of which the test moves the clock."""

    def __init__(self, site: Site, worker: Worker) -> None:
        self.site, self.clock = site, Hand()
        self.cron = Cron(site.pool, worker.triggers, site.publisher, Metrics(), clock=self.clock)

    async def minute(self, number: int) -> None:
        self.clock.at = NOON + timedelta(minutes=number, seconds=1)
        assert await self.cron.look()
        await self.site.taken()

    async def trigger(self, overlap: str, **columns: Any) -> str:
        config = {"schedule": "* * * * *", "overlap": overlap, "catch_up_s": 3600}
        return await self.site.trigger(event_type="cron", config=config, since=NOON - timedelta(hours=1), **columns)


@pytest.fixture
def site(dispatch_site: Site) -> Site:
    return dispatch_site


def minutes_run(worker: Worker) -> list[int]:
    """Of the calls, in their order, counted from noon."""
    at = [datetime.fromisoformat(json.loads(call.body.data)["time"]) for call in worker.invoker.calls]
    return [round((each - NOON).total_seconds() / 60) for each in at]


async def test_with_overlap_allow_ticks_run_beside_each_other(site: Site) -> None:
    gate = Gate()
    worker = await (await site.worker(gate)).start()
    clockwork = Clockwork(site, worker)
    trigger_id = await clockwork.trigger("allow")
    for number in range(3):
        await clockwork.minute(number)
    await site.until({"running": 3})
    gate.open.set()
    await site.until({"done": 3})
    assert worker.invoker.peak[trigger_id] == 3


async def test_with_overlap_queue_they_run_one_after_the_other_in_their_order(site: Site) -> None:
    first = asyncio.Event()

    async def work(call: Any) -> None:
        await first.wait()

    worker = await (await site.worker(work)).start()
    clockwork = Clockwork(site, worker)
    trigger_id = await clockwork.trigger("queue")
    for number in (0, 1, 4):  # two are made up for
        await clockwork.minute(number)
    await site.until({"running": 1, "queued": 4})
    first.set()
    await site.until({"done": 5})
    assert (worker.invoker.peak[trigger_id], minutes_run(worker)) == (1, [0, 1, 2, 3, 4])


async def test_with_overlap_skip_the_next_one_runs_when_none_does(site: Site) -> None:
    gate = Gate()
    worker = await (await site.worker(gate)).start()
    clockwork = Clockwork(site, worker)
    await clockwork.trigger("skip")
    for number in range(3):
        await clockwork.minute(number)
    await site.until({"running": 1, "skipped": 2})
    gate.open.set()
    await site.until({"done": 1, "skipped": 2})
    await clockwork.minute(3)
    await site.until({"done": 2, "skipped": 2})
    assert minutes_run(worker) == [0, 3]


async def test_a_paused_schedule_holds_its_ticks_and_with_overlap_skip_one_of_them(site: Site) -> None:
    worker = await (await site.worker()).start()
    clockwork = Clockwork(site, worker)
    held, one = await clockwork.trigger("allow", paused=True), await clockwork.trigger("skip", paused=True)
    for number in range(3):
        await clockwork.minute(number)
    await site.until({"held": 3}, held)
    await site.until({"held": 1, "skipped": 2}, one)
    for trigger_id in (held, one):
        await site.change(trigger_id, "paused = false")
    await site.until({"done": 3}, held)
    await site.until({"done": 1, "skipped": 2}, one)


async def test_of_a_workflow_the_end_of_its_run_is_waited_for(site: Site) -> None:
    worker = await (await site.worker()).start()
    clockwork = Clockwork(site, worker)
    workflow_id = await add_workflow(site.pool, site.project_id)
    trigger_id = await clockwork.trigger("skip")
    await site.change(trigger_id, "target_type = 'workflow', function_id = NULL, workflow_id = %s", workflow_id)
    await clockwork.minute(0)
    await site.until({"done": 1})
    (started,) = worker.workflows.started
    async with transaction(site.pool) as conn:
        await conn.execute(
            "INSERT INTO workflow_versions (workflow_id, version, project_id, definition) VALUES (%s, 1, %s, '{}')",
            [workflow_id, site.project_id],
        )
        await conn.execute(
            "INSERT INTO workflow_runs (id, project_id, workflow_id, version, state, event)"
            " VALUES (%s, %s, %s, 1, 'running', '{}')",
            [started["run_id"], site.project_id, workflow_id],
        )
    await clockwork.cron.sweep()
    await clockwork.minute(1)
    await site.until({"done": 1, "skipped": 1})
    async with transaction(site.pool) as conn:
        await conn.execute("UPDATE workflow_runs SET state = 'succeeded', finished_at = now()")
    await clockwork.minute(2)
    await site.until({"done": 2, "skipped": 1})


async def test_a_skipped_tick_can_be_read_with_its_event(site: Site) -> None:
    worker = await (await site.worker()).start()
    clockwork = Clockwork(site, worker)
    await site.trigger(event_type="cron", config={"schedule": "* * * * *"}, since=NOON - timedelta(hours=1))
    await clockwork.minute(0)
    await clockwork.minute(30)
    await site.until({"done": 3, "skipped": 1})
    async with transaction(site.pool) as conn:
        cursor = await conn.execute(
            "SELECT error, body FROM deliveries JOIN delivered_events USING (project_id, event_id)"
            " WHERE state = 'skipped'"
        )
        ((error, body),) = await cursor.fetchall()
    assert (error["reason"], json.loads(body)["time"]) == ("TICK_MISSED", "2026-07-01T12:01:00Z")
