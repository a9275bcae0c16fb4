"""What led to an event, and what it led to, from rows of a real ledger."""

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest

from server.dispatch.consequences import Happened, Lineages
from server.errors import InvalidArgument, NotFound
from server.postgres.control import Pool, transaction
from tests.fix_functions import add_project
from tests.fix_ledger import an_attempt, put_delivery


@dataclass
class Past:
    """Writes events that led to each other."""

    pool: Pool
    project_id: str

    async def happened(self, event_id: str, *, run: str | None = None, depth: int = 1, **columns: Any) -> str:
        """An event with one delivery, which is done, and perhaps a run that it is of; the run of its delivery."""
        own = str(uuid4())
        values = {"state": "done", "outcome": "ok", "run_id": own, "event_type": f"type.{event_id}"} | columns
        trigger_id = values.pop("trigger_id", str(uuid4()))
        await put_delivery(self.pool, self.project_id, trigger_id, event_id=event_id, **values)
        if run is not None:
            async with transaction(self.pool) as conn:
                await conn.execute(
                    "UPDATE delivered_events SET cause_run = %s, cause_trigger = %s, cause_depth = %s"
                    " WHERE project_id = %s AND event_id = %s",
                    [run, trigger_id, depth, self.project_id, event_id],
                )
        return own


@pytest.fixture
def past(pool: Pool, project_id: str) -> Past:
    return Past(pool, project_id)


def drawn(event: Happened) -> Any:
    """The tree of ids of events."""
    below = [drawn(each) for delivery in event.deliveries for each in delivery.events]
    return (event.id, *below) if below else event.id


async def test_a_tree_and_the_chain_above_it(past: Past) -> None:
    first = await past.happened("a")
    second = await past.happened("b", run=first)
    await past.happened("c", run=first)
    third = await past.happened("d", run=second, depth=2)
    await past.happened("e", run=third, depth=3)
    lineages = Lineages(past.pool)
    top = await lineages.of(past.project_id, "a")
    assert drawn(top.event) == ("a", ("b", ("d", "e")), "c")
    assert (top.event.type, top.causes.links, top.causes.whole, top.truncated) == ("type.a", [], True, False)
    (delivery,) = top.event.deliveries
    assert (delivery.state, delivery.outcome, delivery.runs) == ("done", "ok", [first])

    middle = await lineages.of(past.project_id, "d")
    assert drawn(middle.event) == ("d", "e")
    assert [(link.run_id, link.depth) for link in middle.causes.links] == [(second, 2)]
    assert not middle.causes.whole  # its trigger is not that of the event before: nothing tells where that run began


async def test_the_chain_goes_up_through_deliveries(past: Past) -> None:
    trigger_id = str(uuid4())
    run = await past.happened("a", trigger_id=trigger_id)
    for number, event_id in enumerate(("b", "c", "d"), 1):
        run = await past.happened(event_id, run=run, depth=number, trigger_id=trigger_id)
    found = await Lineages(past.pool).of(past.project_id, "d")
    assert [(link.event_id, link.depth, link.state) for link in found.causes.links] == [
        ("c", 3, "done"),
        ("b", 2, "done"),
        ("a", 1, "done"),
    ]
    assert found.causes.whole


async def test_attempts_that_failed_led_to_events_too_and_so_do_workflows(past: Past) -> None:
    attempt = an_attempt()
    await past.happened("a", history=[attempt])
    await past.happened("b", run=attempt["run_id"])
    lineage = await Lineages(past.pool).of(past.project_id, "a")
    await past.happened("c", run=lineage.event.deliveries[0].id)  # a workflow's run
    found = await Lineages(past.pool).of(past.project_id, "a")
    assert drawn(found.event) == ("a", "b", "c")
    assert found.event.deliveries[0].runs[0] == attempt["run_id"]
    assert (await Lineages(past.pool).of(past.project_id, "c")).causes.links[0].event_id == "a"


async def test_what_is_too_much_is_marked(past: Past) -> None:
    first = await past.happened("a")
    below = [await past.happened(f"b{number}", run=first) for number in range(5)]
    await past.happened("c", run=below[0])
    found = await Lineages(past.pool, most=3).of(past.project_id, "a")
    assert found.truncated
    assert found.event.truncated
    assert len(found.event.deliveries[0].events) == 3
    shallow = await Lineages(past.pool, levels=2).of(past.project_id, "a")
    assert [each.truncated for each in shallow.event.deliveries[0].events] == [True] * 5
    assert not shallow.event.truncated
    whole = await Lineages(past.pool).of(past.project_id, "a")
    assert not whole.truncated


async def test_a_circle_of_events_ends(past: Past) -> None:
    """Forged: an event that came again under its id."""
    first = await past.happened("a")
    second = await past.happened("b", run=first)
    async with transaction(past.pool) as conn:
        await conn.execute("UPDATE delivered_events SET cause_run = %s, cause_depth = 2 WHERE event_id = 'a'", [second])
    found = await Lineages(past.pool).of(past.project_id, "a")
    assert drawn(found.event) == ("a", ("b", "a"))
    assert found.event.deliveries[0].events[0].deliveries[0].events[0].repeated
    assert len(found.causes.links) <= 100


async def test_another_project_sees_nothing_of_it(past: Past, pool: Pool) -> None:
    first = await past.happened("a")
    stranger = Past(pool, await add_project(pool))
    await stranger.happened("b", run=first)  # it says so
    assert drawn((await Lineages(pool).of(past.project_id, "a")).event) == "a"
    (link,) = (await Lineages(pool).of(stranger.project_id, "b")).causes.links
    assert (link.event_id, link.delivery_id, link.event_type) == ("", "", "")
    with pytest.raises(NotFound):
        await Lineages(pool).of(stranger.project_id, "a")


async def test_what_is_not_kept_or_no_id(past: Past) -> None:
    with pytest.raises(NotFound, match="No delivery of an event nothing is kept"):
        await Lineages(past.pool).of(past.project_id, "nothing")
    with pytest.raises(InvalidArgument):
        await Lineages(past.pool).of(past.project_id, "a b")
