"""Triggers that run in a circle are stopped, and the ledger tells the way that led there."""

import json
from typing import Any
from uuid import uuid4

import pytest

from server.dispatch import lineage
from server.dispatch.lineage import Chain, Link
from server.dispatch.loops import MOST_TOLD, Loops, told
from server.dispatch.replay import Replayer
from server.dispatch.stopped import MOST, Found, StoppedEvents
from server.events.envelope import Cause
from server.invocations.invoke import Call
from server.postgres.control import transaction
from server.runs import rows
from tests.fix_dispatch import SETTINGS, TYPE, Answer, Site
from tests.fix_ledger import insert_delivery
from tests.fix_runs import a_record, a_run, eventually

DEPTH = SETTINGS.max_event_depth


@pytest.fixture
def site(dispatch_site: Site) -> Site:
    return dispatch_site


def cause_of(call: Call) -> Cause:
    """As the publishes of a run carry it."""
    event = json.loads(call.event or b"{}")
    return Cause(run_id=call.run_id, trigger_id=call.trigger, depth=event.get("cause", {}).get("depth", 0) + 1)


async def a_circle(site: Site) -> tuple[str, str, list[str]]:
    """A trigger whose function publishes what the trigger answers; its id, the first event's, and the runs."""
    ran: list[str] = []

    async def publish_again(call: Call) -> Answer:
        ran.append(call.run_id)
        await site.publish("again", cause=cause_of(call), id=f"event-{len(ran)}")
        return None

    trigger_id = await site.trigger()
    await (await site.worker(publish_again)).start()
    await site.publish("first", id="event-0")
    return trigger_id, "event-0", ran


async def dead_letter(site: Site) -> dict[str, Any]:
    await eventually(lambda: _dead(site))
    return next(row for row in await site.rows() if row["state"] == "dead")


async def _dead(site: Site) -> bool:
    return (await site.states())["dead"] > 0


async def test_a_circle_ends_with_the_chain_in_its_dead_letter(site: Site) -> None:
    trigger_id, first, ran = await a_circle(site)
    row = await dead_letter(site)
    await site.until({"done": DEPTH, "dead": 1})
    assert len(ran) == DEPTH
    assert row["error"]["reason"] == "EVENT_LOOP"
    message = row["error"]["message"]
    assert f"{DEPTH} runs led to this event, and at most {DEPTH} may (ATLAS_MAX_EVENT_DEPTH)" in message
    assert "a replay ends the same way" in message
    places = [message.index(each) for each in (first, *ran, f"event-{DEPTH} ")]
    assert places == sorted(places)
    assert message.count(trigger_id) == DEPTH + 1
    assert row["history"][0]["reason"] == "EVENT_LOOP"


async def test_a_replay_ends_the_same_way(site: Site) -> None:
    _, _, ran = await a_circle(site)
    row = await dead_letter(site)
    await Replayer(site.pool, site.changes).replay(site.project_id, row["id"])

    async def dead_again() -> dict[str, Any] | None:
        found = next(each for each in await site.rows() if each["id"] == row["id"])
        return found if found["replays"] == 1 and found["state"] == "dead" else None

    assert (await eventually(dead_again))["error"]["reason"] == "EVENT_LOOP"
    assert len(ran) == DEPTH


async def test_the_run_says_what_of_it_was_stopped_as_long_as_it_is(site: Site) -> None:
    trigger_id, _, ran = await a_circle(site)
    row = await dead_letter(site)
    await site.until({"done": DEPTH, "dead": 1})
    asked = StoppedEvents(site.pool)
    (told,) = (await asked.of(site.project_id, ran[-1])).stopped
    assert (told.delivery_id, told.trigger_id, told.event_id) == (row["id"], trigger_id, f"event-{DEPTH}")
    assert (told.event_type, told.message) == (TYPE, row["error"]["message"])
    nothing = Found([], more=False)
    assert await asked.of(site.project_id, ran[-2]) == nothing
    assert await asked.of(str(uuid4()), ran[-1]) == nothing
    async with transaction(site.pool) as conn:
        await conn.execute("UPDATE deliveries SET state = 'done' WHERE id = %s", [row["id"]])
    assert await asked.of(site.project_id, ran[-1]) == nothing


async def test_a_run_that_caused_thousands_tells_the_first(site: Site) -> None:
    run, error = str(uuid4()), {"reason": "EVENT_LOOP", "message": "circle"}
    async with transaction(site.pool) as conn:
        for number in range(MOST + 1):
            await insert_delivery(conn, site.project_id, str(uuid4()), event_id=f"e{number:02}", error=error)
        await conn.execute("UPDATE delivered_events SET cause_run = %s, stored_at = now()", [run])
    found = await StoppedEvents(site.pool).of(site.project_id, run)
    assert [each.event_id for each in found.stopped] == [f"e{number:02}" for number in range(MOST)]
    assert found.more


async def test_an_event_below_the_limit_runs(site: Site) -> None:
    worker = await site.worker()
    await site.trigger()
    await worker.start()
    await site.publish(1, cause=Cause(run_id=str(uuid4()), depth=DEPTH - 1))
    await site.until({"done": 1})
    assert len(worker.invoker.calls) == 1


async def test_a_chain_nobody_knows_is_told_as_far_as_it_goes(site: Site) -> None:
    cause = Cause(run_id=str(uuid4()), trigger_id=str(uuid4()), depth=DEPTH)
    worker = await site.worker()
    await site.trigger()
    await worker.start()
    await site.publish(1, cause=cause)
    await site.until({"dead": 1})
    message = (await site.rows())[0]["error"]["message"]
    assert f"… (kept no more) → trigger {cause.trigger_id} run {cause.run_id} → event {TYPE}" in message
    assert not worker.invoker.calls


async def test_a_run_is_found_by_its_record_and_never_another_projects(site: Site) -> None:
    """Attempts that failed publish, too: they are in the history, and in records of runs."""
    trigger_id = await site.trigger()
    (event_id,) = await site.publish(1)
    await (await site.worker()).start()
    await site.until({"done": 1})
    old = a_run(site.project_id, trigger=trigger_id, request_id=event_id)
    async with transaction(site.pool) as conn:
        await rows.finish(conn, [a_record(site.project_id, run=old)])
        cause = Cause(run_id=old.id, trigger_id=None, depth=1)
        found = await lineage.chain(conn, site.project_id, cause)
        assert [(each.run_id, each.event_id, each.trigger_id) for each in found.links] == [
            (old.id, event_id, trigger_id)
        ]
        assert found.whole
        other = await lineage.chain(conn, str(uuid4()), cause)
        assert [(each.run_id, each.event_id) for each in other.links] == [(old.id, "")]


def test_a_long_chain_is_told_by_its_beginning_and_end(site: Site) -> None:
    links = [Link(run_id=f"run-{number}", depth=number) for number in range(40, 0, -1)]
    event = site.event(cause=Cause(run_id=str(uuid4()), depth=40))
    text = told(event, "t", Chain(links, whole=True), 40)
    assert "run run-1 → run run-2" in text
    assert "run run-40 → event" in text
    assert f"… {40 - MOST_TOLD} more …" in text
    assert "run-20" not in text


def test_without_a_cause_nothing_is_too_deep(site: Site) -> None:
    loops = Loops(site.pool, 1)
    assert not loops.is_too_deep(site.event())
    assert loops.is_too_deep(site.event(cause=Cause(run_id=str(uuid4()), depth=1)))
