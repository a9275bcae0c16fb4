"""What a trigger would have fired on, counted in a real stream."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from server.errors import InvalidArgument, NotFound, Unavailable
from server.events.envelope import Change
from server.events.json_text import Json, read
from server.triggers.backtest import Backtester, Question
from tests.fix_dispatch import TYPE, Site
from tests.fix_functions import add_project

LONG_AGO = datetime.now(UTC) - timedelta(minutes=30)


@pytest.fixture
def site(dispatch_site: Site) -> Site:
    return dispatch_site


def draft(**fields: Any) -> dict[str, Json]:
    return {name: read(json.dumps(value).encode()) for name, value in ({"event_type": TYPE} | fields).items()}


def large(amount: int) -> list[Any]:
    return [{"field": "amount", "op": "gt", "value": amount}]


async def test_counts_and_samples_of_a_draft(site: Site) -> None:
    await site.publish(*({"amount": number} for number in range(100)))
    await site.publish({"amount": 1000}, type="order.sent")
    asked = Question(draft=draft(conditions=large(89)), since=LONG_AGO, samples=3)
    found = await Backtester(site.pool, site.bus).ask(site.project_id, asked)
    assert (found.looked_at, found.fired, found.next_page_token) == (100, 10, "")
    assert [json.loads(each.data)["amount"] for each in found.samples] == [90, 91, 92]
    (predicate,) = found.samples[0].predicates
    assert (predicate.at, predicate.actual, predicate.holds) == ("conditions[0]", "90", True)
    assert not await site.rows()  # nothing ran, nothing is kept


async def test_a_stored_trigger_and_a_pattern(site: Site) -> None:
    await site.publish(*range(5))
    await site.publish(1, 2, type="order.sent")
    backtester = Backtester(site.pool, site.bus)
    stored = await site.trigger(event_type="order.>")
    found = await backtester.ask(site.project_id, Question(trigger_id=stored, since=LONG_AGO))
    assert (found.looked_at, found.fired, found.samples) == (7, 7, [])
    with pytest.raises(NotFound):
        await backtester.ask(await add_project(site.pool), Question(trigger_id=stored, since=LONG_AGO))


async def test_only_the_projects_own_events(site: Site) -> None:
    other = await add_project(site.pool)
    await site.publish(*({"hint": site.project_id, "amount": 500} for _ in range(10)), project_id=other)
    await site.publish({"amount": 500})
    found = await Backtester(site.pool, site.bus).ask(
        site.project_id, Question(draft=draft(), since=LONG_AGO, samples=20)
    )
    assert (found.looked_at, found.fired, len(found.samples)) == (1, 1, 1)
    assert found.samples[0].event.project_id == site.project_id


async def test_a_call_ends_and_the_next_goes_on(site: Site) -> None:
    await site.publish(*({"amount": number} for number in range(100)))
    backtester = Backtester(site.pool, site.bus, most=30)
    token = ""
    counts: list[tuple[int, int]] = []
    samples: list[int] = []
    while token or not counts:
        asked = Question(draft=draft(conditions=large(49)), since=LONG_AGO, samples=20, page_token=token)
        found = await backtester.ask(site.project_id, asked)
        counts.append((found.looked_at, found.fired))
        samples += [each.sequence for each in found.samples]
        token = found.next_page_token
    assert counts == [(30, 0), (30, 10), (30, 30), (10, 10)]
    assert samples == sorted(set(samples))
    first = await backtester.ask(site.project_id, Question(draft=draft(), since=LONG_AGO))
    other = Question(draft=draft(conditions=large(1)), since=LONG_AGO, page_token=first.next_page_token)
    with pytest.raises(InvalidArgument) as caught:
        await backtester.ask(site.project_id, other)
    assert caught.value.field == "page_token"


async def test_times_bound_it(site: Site) -> None:
    await site.publish(1, 2, 3)
    now = datetime.now(UTC) + timedelta(seconds=1)
    backtester = Backtester(site.pool, site.bus)
    for since, until, counted in ((now, None, 0), (LONG_AGO, now, 3), (LONG_AGO, LONG_AGO + timedelta(seconds=1), 0)):
        found = await backtester.ask(site.project_id, Question(draft=draft(), since=since, until=until))
        assert found.looked_at == counted


async def test_a_table_of_users_and_changed_columns(site: Site) -> None:
    change = Change(op="INSERT", schema="proj_x", table="users")
    await site.publish({"id": 7}, {"id": None}, type="cdc.INSERT.users", change=change)
    backtester = Backtester(site.pool, site.bus)
    signup = draft(event_type="auth.signup", config={"table": "users"})
    found = await backtester.ask(site.project_id, Question(draft=signup, since=LONG_AGO, samples=5))
    assert (found.looked_at, found.fired) == (2, 1)
    assert (found.samples[0].type, json.loads(found.samples[0].data)) == ("auth.signup", {"user_id": "7"})
    updates = draft(event_type="cdc.>", config={"operations": ["UPDATE"]})
    assert (await backtester.ask(site.project_id, Question(draft=updates, since=LONG_AGO))).fired == 0


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"draft": draft()}, "since"),
        ({"since": LONG_AGO}, "trigger_id"),
        ({"draft": draft(), "trigger_id": "x", "since": LONG_AGO}, "trigger_id"),
        ({"trigger_id": "x", "since": LONG_AGO}, "trigger_id"),
        ({"draft": draft(), "since": LONG_AGO, "until": LONG_AGO}, "until"),
        ({"draft": draft(), "since": LONG_AGO, "samples": 21}, "samples"),
        ({"draft": draft(), "since": LONG_AGO, "page_token": "x"}, "page_token"),
        ({"draft": draft(event_type="cdc.MERGE.x"), "since": LONG_AGO}, "event_type"),
        ({"draft": draft(enabled=True), "since": LONG_AGO}, "enabled"),
        ({"draft": draft(event_type="cron", config={"schedule": "@hourly"}), "since": LONG_AGO}, "event_type"),
        (
            {"draft": draft(conditions=[{"field": "a", "op": "like", "value": 1}]), "since": LONG_AGO},
            "conditions[0].op",
        ),
    ],
)
async def test_what_is_refused(site: Site, asked: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await Backtester(site.pool, site.bus).ask(site.project_id, Question(**asked))
    assert caught.value.field == field


async def test_without_a_stream_it_is_unavailable(site: Site) -> None:
    await site.bus.jetstream.delete_stream("ATLAS_EVENTS")
    with pytest.raises(Unavailable):
        await Backtester(site.pool, site.bus).ask(site.project_id, Question(draft=draft(), since=LONG_AGO))
