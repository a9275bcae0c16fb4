"""Committed events on their way into the stream, between a real Postgres and whoever publishes them."""

import asyncio
import random
import re
from collections.abc import Sequence

import pytest
from prometheus_client.parser import text_string_to_metric_families
from psycopg import AsyncConnection

from server.errors import InvalidArgument, Unavailable
from server.events import backlog, outbox
from server.events.backlog import Backlog
from server.events.envelope import Event
from server.events.outbox import Outbox, Relay
from server.postgres.changes import Changes
from server.postgres.control import Pool, transaction
from server.postgres.tenants import Tenants
from server.telemetry.exposition import exposition
from server.telemetry.metrics import Metrics
from tests.fix_functions import add_project
from tests.fix_outbox import Told, add, an_event, left
from tests.fix_runs import eventually


@pytest.fixture
def relay(pool: Pool, changes: Changes, told: Told) -> Relay:
    return Relay(pool, changes, told)


async def test_what_is_committed_is_published_once_in_its_order(
    pool: Pool, changes: Changes, relay: Relay, told: Told, project_id: str
) -> None:
    events = [an_event(project_id, str(number)) for number in range(250)]
    for event in events[:5]:
        await add(pool, changes, event)
    await add(pool, changes, *events[5:])
    assert await relay.relay() == 250
    assert told.events == events
    assert (await relay.relay(), await left(pool)) == (0, 0)


async def test_what_is_rolled_back_is_not(
    pool: Pool, changes: Changes, relay: Relay, told: Told, project_id: str
) -> None:
    async def fail() -> None:
        async with transaction(pool) as conn:
            await Outbox(changes).add(conn, [an_event(project_id)])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert (await relay.relay(), told.events) == (0, [])


async def test_ids_are_in_the_order_of_commits(
    pool: Pool, changes: Changes, relay: Relay, told: Told, project_id: str
) -> None:
    """A transaction that began to add first and commits last would otherwise be overtaken by its successor's relay."""
    other = await add_project(pool)
    async with transaction(pool) as conn:
        await Outbox(changes).add(conn, [an_event(project_id, "first")])
        waiting = asyncio.create_task(add(pool, changes, an_event(project_id, "second")))
        await add(pool, changes, an_event(other, "another's"))

        async def blocked() -> bool:
            async with transaction(pool) as watching:
                cursor = await watching.execute("SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            return cursor.rowcount > 0

        await eventually(blocked)
        assert await relay.relay() == 1
    await waiting
    await relay.relay()
    assert told.ids == ["another's", "first", "second"]


async def test_relays_share_the_work_and_keep_the_order(pool: Pool, changes: Changes) -> None:
    projects = [await add_project(pool) for _ in range(4)]
    published: dict[str, list[str]] = {project_id: [] for project_id in projects}

    class Slow(Told):
        async def publish_in_order(self, events: Sequence[Event]) -> None:
            for event in events:
                await asyncio.sleep(0)
                published[event.project_id].append(event.id)

    relays = [Relay(pool, changes, Slow(), poll_s=0.01) for _ in range(3)]
    await changes.start()
    for relay in relays:
        await relay.start()
    writers = [
        add(pool, changes, *(an_event(project_id, f"{number}.{part}") for part in range(3)))
        for project_id in projects
        for number in range(20)
    ]
    random.Random(5).shuffle(writers)
    await asyncio.gather(*writers)

    async def all_published() -> bool:
        return await left(pool) == 0

    await eventually(all_published)
    for relay in relays:
        await relay.close()
    for ids in published.values():
        assert len(ids) == len(set(ids)) == 60
        assert [ids[at].rpartition(".")[2] for at in range(60)] == ["0", "1", "2"] * 20


async def test_a_project_that_another_relay_is_at_is_left_to_it(
    pool: Pool, changes: Changes, relay: Relay, told: Told, project_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what comes behind its batch: publishing that would overtake it."""
    monkeypatch.setattr(outbox, "BATCH", 2)
    await add(pool, changes, *(an_event(project_id, str(number)) for number in range(5)))
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def hold(events: Sequence[Event]) -> None:
        reached.set()
        await go_on.wait()

    slow = Told()
    slow.before = hold
    first = asyncio.create_task(Relay(pool, changes, slow).relay())
    await reached.wait()
    assert (await relay.relay(), told.events) == (0, [])
    go_on.set()
    assert (await first, slow.ids) == (5, ["0", "1", "2", "3", "4"])


async def test_one_that_cannot_be_published_waits_and_holds_up_no_other_project(
    pool: Pool, changes: Changes, relay: Relay, told: Told, project_id: str
) -> None:
    other = await add_project(pool)

    async def refuse(events: Sequence[Event]) -> None:
        if events[0].project_id == project_id:
            raise Unavailable("NATS is away", reason="EVENT_BUS_UNAVAILABLE")

    told.before = refuse
    await add(pool, changes, an_event(project_id, "waits"), an_event(other, "passes"))
    assert (await relay.relay(), told.ids, await left(pool)) == (1, ["passes"], 1)
    told.before = None
    assert (await relay.relay(), told.ids) == (1, ["passes", "waits"])


async def test_large_ones_go_a_few_at_a_time(
    pool: Pool, changes: Changes, relay: Relay, told: Told, project_id: str
) -> None:
    sizes: list[int] = []

    async def note(events: Sequence[Event]) -> None:
        sizes.append(len(events))

    told.before = note
    large = b'"' + b"x" * 900_000 + b'"'
    await add(pool, changes, *(an_event(project_id, str(number), large) for number in range(9)))
    assert await relay.relay() == 9
    assert (sizes, told.ids) == ([4, 4, 1], [str(number) for number in range(9)])


async def test_one_that_no_stream_takes_fails_its_transaction(pool: Pool, changes: Changes, project_id: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await add(pool, changes, an_event(project_id, data=b'"' + b"x" * 1_048_000 + b'"'))
    assert (caught.value.reason, await left(pool)) == ("EVENT_TOO_LARGE", 0)


@pytest.mark.parametrize(("name", "most"), [("MAX_WAITING", 3), ("MAX_WAITING_BYTES", 60_000)])
async def test_only_so_many_of_a_project_wait(
    pool: Pool,
    changes: Changes,
    relay: Relay,
    told: Told,
    project_id: str,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    most: int,
) -> None:
    monkeypatch.setattr(outbox, name, most)
    large = b'"' + b"x" * 19_000 + b'"'
    await add(pool, changes, *(an_event(project_id, str(number), large) for number in range(2)))
    for events in (2, 3):
        with pytest.raises(Unavailable, match="wait to be published") as caught:
            await add(pool, changes, *(an_event(project_id, data=large) for _ in range(events)))
        assert (caught.value.reason, caught.value.retry_after_ms) == ("OUTBOX_FULL", outbox.RETRY_AFTER_MS)
    await add(pool, changes, an_event(await add_project(pool), "another's"))
    await add(pool, changes, an_event(project_id, "2", large))
    assert await relay.relay() == 4
    assert sorted(told.ids) == ["0", "1", "2", "another's"]
    await add(pool, changes, an_event(project_id, data=large))


async def test_an_announcement_wakes_the_relay(pool: Pool, changes: Changes, told: Told, project_id: str) -> None:
    relay = Relay(pool, changes, told, poll_s=3600)
    await changes.start()
    await relay.start()
    for number in range(3):
        await add(pool, changes, an_event(project_id, str(number)))

        async def published(wanted: int = number + 1) -> bool:
            return len(told.events) == wanted

        await eventually(published)
    await relay.close()


async def test_what_leaves_and_what_fails_is_counted(pool: Pool, changes: Changes, told: Told, project_id: str) -> None:
    metrics = Metrics()
    relay = Relay(pool, changes, told, metrics=metrics)

    async def fail(_: Sequence[Event]) -> None:
        raise Unavailable("NATS is away", reason="EVENT_BUS_UNAVAILABLE")

    await add(pool, changes, *(an_event(project_id, str(number)) for number in range(3)))
    told.before = fail
    await relay.relay()
    told.before = None
    await relay.relay()
    assert shown(metrics, "atlas_outbox_failures") == {"storage": 1}
    assert shown(metrics, "atlas_outbox_events") == {"storage": 3}


async def test_what_waits_is_told_by_one_process_of_all(
    pool: Pool, changes: Changes, tenants: Tenants, admin: AsyncConnection, project_id: str
) -> None:
    await add(pool, changes, *(an_event(project_id) for _ in range(3)))
    async with transaction(pool) as conn:
        await conn.execute("UPDATE event_outbox SET created_at = now() - make_interval(mins => 2)")
    for role, minutes, refused in (("b", 1, None), ("a", 3, None), ("b", 2, None), ("a", 9, "damaged")):
        await admin.execute(
            "INSERT INTO atlas_kept.outbox (role, event, written_at, refused, refused_at)"
            " VALUES (%s, 'x', now() - make_interval(mins => %s), %s, now())",
            [role, minutes, refused],
        )
    processes = [Metrics(), Metrics()]
    backlogs = [Backlog(pool, tenants, metrics, sample_s=0.02) for metrics in processes]
    for each in backlogs:
        await each.start()

    async def sums() -> dict[str, float]:
        counted = [shown(metrics, "atlas_outbox_waiting") for metrics in processes]
        return {name: sum(each.get(name, 0) for each in counted) for name in ("storage", "functions")}

    async def all_told() -> bool:
        return await sums() == {"storage": 3, "functions": 3}

    await eventually(all_told)
    (teller,) = (number for number in (0, 1) if shown(processes[number], "atlas_outbox_waiting").get("storage"))
    ages_s = shown(processes[teller], "atlas_outbox_oldest_seconds")
    assert 120 <= ages_s["storage"] < 150
    assert 180 <= ages_s["functions"] < 210
    await backlogs[teller].close()
    assert set(shown(processes[teller], "atlas_outbox_waiting").values()) == {0}
    await eventually(all_told)
    await admin.execute("DELETE FROM atlas_kept.outbox")

    async def forgotten() -> bool:
        ages_s = shown(processes[1 - teller], "atlas_outbox_oldest_seconds")
        return await sums() == {"storage": 3, "functions": 0} and ages_s["functions"] == 0

    await eventually(forgotten)
    await backlogs[1 - teller].close()


async def test_counting_what_waits_walks_no_more_than_is_counted(admin: AsyncConnection) -> None:
    """Also where the server has no statistics of the table."""
    await admin.execute(
        "INSERT INTO atlas_kept.outbox (role, event)"
        " SELECT 'r' || i % 5, repeat('x', 500) FROM generate_series(1, 5000) AS i"
    )
    cursor = await admin.execute(f"EXPLAIN (ANALYZE, TIMING OFF) {backlog._FUNCTIONS}".encode(), [100, 250])
    plan = "\n".join(line for (line,) in await cursor.fetchall())
    await admin.execute("DELETE FROM atlas_kept.outbox")
    assert "Sort" not in plan, plan
    assert max(float(rows) for rows in re.findall(r"actual rows=([\d.]+)", plan)) <= 1_000, plan


def shown(metrics: Metrics, family: str) -> dict[str, float]:
    """By outbox."""
    text = exposition(None, metrics.numbers).decode()
    (found,) = (each for each in text_string_to_metric_families(text) if each.name == family)
    return {sample.labels["outbox"]: sample.value for sample in found.samples}
