"""Deliveries outlive what can fail on their way: workers that die at any step, NATS or Postgres away, queues full.

Nothing is lost, a finished pair never runs again, and every run there was is in the ledger.
"""

import asyncio
import json
import logging
import secrets
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from server.dispatch import consumer
from server.dispatch.lease import LEASE_S, Lease
from server.events import history, stream
from server.invocations.invoke import Call
from server.postgres.changes import Changes
from server.postgres.control import open_pool, transaction
from server.postgres.migrate import migrate
from server.stack import postgres
from server.stack.account import servant
from server.stack.part import Part, Running, start
from tests.fault.dispatch_victim import STEPS, STEPS_OF_PAST
from tests.fix_dispatch import Answer, Gate, Site, close_site, open_site
from tests.fix_functions import add_project
from tests.fix_runs import OwnNats, eventually
from tests.fix_stack import QUICK as UNSAFE

EVENTS = 24
OUTAGE_S = 10.0


@pytest.fixture
def site(dispatch_site: Site) -> Site:
    return dispatch_site


def ran(file: Path) -> Counter[tuple[str, str]]:
    """Runs there were, by delivery and run."""
    return Counter(tuple(line.split()) for line in file.read_text().splitlines())  # type: ignore[misc]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """By dispatch: not once for each message or attempt."""
    return [record.message for record in caplog.records if record.name == "atlas.dispatch"]


def appending(file: Path) -> Any:
    async def work(call: Call) -> Answer:
        with file.open("a") as lines:
            lines.write(f"{json.loads(call.event or b'')['delivery_id']} {call.run_id}\n")
        return None

    return work


async def all_is_told(site: Site, file: Path, *, expected: int) -> None:
    """Every delivery is done once, after as many lost attempts as its history says, and no other run took place."""
    rows, told = await site.rows(), set[tuple[str, str]]()
    assert len(rows) == expected
    for row in rows:
        outcomes = [entry["outcome"] for entry in row["history"]]
        assert outcomes == ["lost"] * (len(outcomes) - 1) + ["ok"]
        assert row["attempts"] == len(outcomes)
        told |= {(str(row["id"]), entry["run_id"]) for entry in row["history"]}
    runs = ran(file)
    assert set(runs.values()) == {1}
    assert set(runs) <= told
    assert {delivery for delivery, _ in runs} == {str(row["id"]) for row in rows}


async def die(site: Site, step: str, nth: int, file: Path) -> None:
    """A worker's life until it has done a step so many times."""
    told = (site.control_url, site.nats_url, step, str(nth), str(file))
    victim = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.fault.dispatch_victim", *told, cwd=Path(__file__).parents[2]
    )
    try:
        async with asyncio.timeout(60):
            assert await victim.wait() == -9
    finally:
        with suppress(ProcessLookupError):
            victim.kill()


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("step", STEPS)
async def test_a_worker_that_dies_at_any_step_loses_nothing(
    site: Site, tmp_path: Path, step: str, ordered: bool
) -> None:
    await site.trigger(order_key="k" if ordered else None, retry={"attempts": 20})
    file = tmp_path / "runs"
    file.touch()
    nth = {"fetched": 1, "claimed": 1, "recorded": 2}.get(step, 5)
    await site.publish(*({"k": number % 3} for number in range(EVENTS)))
    await die(site, step, nth, file)
    # What it had in hand comes again when its time to acknowledge is over; here nobody waits for that.
    await site.bus.jetstream.delete_consumer(stream.NAME, consumer.DURABLE)
    finished = {str(row["id"]) for row in await site.rows() if row["state"] == "done"}
    before = ran(file)
    worker = await (await site.worker(appending(file), lease_s=1.0)).start()
    await site.until({"done": EVENTS}, within_s=60)
    await all_is_told(site, file, expected=EVENTS)
    assert not finished & {json.loads(call.event or b"")["delivery_id"] for call in worker.invoker.calls}
    assert before <= ran(file)


async def test_workers_that_die_on_their_way_through_the_past_lose_nothing_and_run_nothing_twice(
    site: Site, tmp_path: Path
) -> None:
    """Each of them in another step, in the middle of 3 pages; all of it was acknowledged before there was a trigger."""
    events, file = 3 * history.AT_ONCE - 6, tmp_path / "runs"
    file.touch()
    first = await (await site.worker()).start()
    await site.publish(*({"k": number} for number in range(events)))
    await site.taken()
    await first.dispatcher.close(0)
    made = await site.trigger(retry={"attempts": 20})
    async with transaction(site.pool) as conn:
        await conn.execute(
            "INSERT INTO trigger_backfills (trigger_id, project_id, start_from)"
            " VALUES (%s, %s, now() - interval '1 minute')",
            [made, site.project_id],
        )
    for step in STEPS_OF_PAST:
        await die(site, step, 2 if step == "looked" else 1, file)
    await (await site.worker(appending(file), lease_s=1.0)).start()
    await site.until({"done": events}, within_s=60)
    await all_is_told(site, file, expected=events)


async def test_a_worker_that_kills_every_worker_ends_as_a_dead_letter(site: Site) -> None:
    """Attempts that are lost count."""
    trigger_id = await site.trigger(paused=True, retry={"attempts": 2})
    await (await site.worker(lease_s=0.5)).start()
    await site.publish(1)
    await site.until({"held": 1})
    async with transaction(site.pool) as conn:
        await conn.execute(
            "UPDATE deliveries SET state = 'running', attempts = 2, lease = gen_random_uuid(),"
            " run_id = gen_random_uuid(), began_at = now()"
        )
    await site.change(trigger_id, "paused = false")
    await site.until({"dead": 1})
    (row,) = await site.rows()
    assert (row["attempts"], row["outcome"], row["error"]["reason"]) == (2, "lost", "WORKER_LOST")


async def test_a_claim_whose_answer_was_lost_is_queued_again(site: Site) -> None:
    """It was committed, and the connection broke before that was known: nobody runs it."""
    gate = Gate()
    worker = await (await site.worker(gate, lease_s=0.5)).start()
    await site.trigger()
    await site.publish(1)
    await site.until({"running": 1})
    await site.publish(2)
    await site.until({"running": 2})
    async with transaction(site.pool) as conn:
        await conn.execute(
            "UPDATE deliveries SET run_id = gen_random_uuid() WHERE sequence = (SELECT max(sequence) FROM deliveries)"
        )

    async def again() -> bool:
        return len(worker.invoker.calls) == 3

    await eventually(again)
    gate.open.set()
    await site.until({"done": 2})
    assert [[entry["outcome"] for entry in row["history"]] for row in await site.rows()] == [["ok"], ["lost", "ok"]]


async def test_a_worker_that_was_taken_over_writes_nothing(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    first = await (await site.worker(gate, lease_s=1.0)).start()
    await site.trigger()
    await site.publish(1)
    await site.until({"running": 1})
    await first.dispatcher._starter.close()  # it would take it up again as well
    async with transaction(site.pool) as conn:
        await conn.execute("DELETE FROM dispatch_leases")
    second = await (await site.worker(lease_s=1.0)).start()
    await site.until({"done": 1})
    gate.open.set()

    async def late() -> bool:
        return any(getattr(record, "action", "") == "dispatch.late" for record in caplog.records)

    await eventually(late)
    (row,) = await site.rows()
    ends = [(entry["outcome"], entry["run_id"]) for entry in row["history"]]
    runs = [call.run_id for each in (first, second) for call in each.invoker.calls]
    assert ends == [("lost", runs[0]), ("ok", runs[1])]


async def test_events_wait_while_nats_is_away(
    pool: Any, changes: Changes, control_url: str, own_nats: OwnNats, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "atlas.dispatch")
    site = await open_site(pool, changes, control_url, own_nats.url)
    file = tmp_path / "runs"

    async def slowly(call: Call) -> Answer:
        await asyncio.sleep(0.05)
        answer: Answer = await appending(file)(call)
        return answer

    for _ in range(2):
        await (await site.worker(slowly)).start()
    await site.trigger()
    await site.trigger(order_key="k")
    await site.publish(*({"k": number % 2} for number in range(40)))

    async def begun() -> bool:
        return file.exists()

    await eventually(begun)
    own_nats.kill()
    await asyncio.sleep(OUTAGE_S)
    assert len(said(caplog)) < 20
    own_nats.start()
    await site.publish(*({"k": number % 2} for number in range(10)))
    await site.until({"done": 100}, within_s=60)
    await all_is_told(site, file, expected=100)
    await close_site(site)


class OwnPostgres:
    """A Postgres of one test, to be killed and started."""

    def __init__(self, part: Part, url: str) -> None:
        self.part, self.url = part, url
        self.running: Running | None = None

    def start(self) -> None:
        self.running = start(self.part, f"pytest-{secrets.token_hex(4)}")
        self.running.wait_ready()

    def kill(self) -> None:
        if self.running is not None:
            self.running.kill()
            self.running.stop()
            self.running = None


@pytest.fixture
def own_postgres(stack_dir: Path) -> Iterator[OwnPostgres]:
    """Running, with a database of the control plane; what it says is written is written."""
    name, account = f"pg-{secrets.token_hex(4)}", servant()
    data, sockets = stack_dir / name, stack_dir / f"{name}.s"
    programs = postgres.prepare(data, sockets, stack_dir / "bin", account)
    options = {**UNSAFE, "synchronous_commit": "on"}
    server = OwnPostgres(
        postgres.part(data, sockets, programs, stack_dir / f"{name}.log", account, **options),
        postgres.url(sockets, "control"),
    )
    server.start()
    with psycopg.connect(postgres.url(sockets, "postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE control")
    yield server
    server.kill()


@pytest.fixture
async def own_site(own_postgres: OwnPostgres, nats_url: str) -> AsyncIterator[Site]:
    await migrate(own_postgres.url)
    changes = Changes(own_postgres.url)
    async with open_pool(own_postgres.url, max_size=5) as pool:
        site = await open_site(pool, changes, own_postgres.url, nats_url)
        yield site
        await close_site(site)
        await changes.close()


async def test_events_wait_while_postgres_is_away(
    own_site: Site, own_postgres: OwnPostgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "atlas.dispatch")
    site, file = own_site, tmp_path / "runs"

    async def slowly(call: Call) -> Answer:
        await asyncio.sleep(0.05)
        answer: Answer = await appending(file)(call)
        return answer

    for _ in range(2):
        await (await site.worker(slowly, lease_s=4.0, pool_s=1.0)).start()
    await site.trigger()
    await site.trigger(order_key="k")
    await site.publish(*({"k": number % 2} for number in range(40)))

    async def begun() -> bool:
        return file.exists()

    await eventually(begun)
    own_postgres.kill()
    await site.publish(*({"k": number % 2} for number in range(10)))
    await asyncio.sleep(OUTAGE_S)
    assert len(said(caplog)) < 20
    own_postgres.start()

    async def done() -> bool:
        try:
            return await site.states() == {"done": 100}
        except Exception:
            return False

    await eventually(done, within_s=60)
    await all_is_told(site, file, expected=100)


async def test_a_full_worker_leaves_events_to_others(site: Site) -> None:
    gate = Gate()
    first = await (await site.worker(gate, slots=2)).start()
    triggers = [await site.trigger(event_type=f"full.n{number}") for number in range(2)]
    for number in range(2):
        await site.publish(1, type=f"full.n{number}")
    await site.until({"running": 2})
    await site.publish(*range(20), type="full.n0")
    second = await (await site.worker(slots=64)).start()
    await site.until({"running": 2, "done": 20}, within_s=30)
    assert (len(first.invoker.calls), len(second.invoker.calls)) == (2, 20)
    gate.open.set()
    await site.until({"done": 22})
    assert {str(row["trigger_id"]) for row in await site.rows()} == set(triggers)


async def test_a_project_that_is_deleted_leaves_nothing_that_runs(site: Site) -> None:
    worker = await (await site.worker()).start()
    await site.trigger(paused=True)
    await site.publish(1)
    await site.until({"held": 1})
    other = await add_project(site.pool)
    async with transaction(site.pool) as conn:
        await conn.execute("DELETE FROM projects WHERE id = %s", [site.project_id])
        await site.changes.announce(conn, "project", site.project_id)
    await site.until({"cancelled": 1})
    await site.publish(2, project_id=other)
    await site.publish(3)
    await site.taken()
    assert worker.invoker.calls == []


class Leaping:
    """A clock that goes only when told."""

    at_s = 1_000.0

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return self.at_s


async def test_after_an_absence_of_the_database_others_have_the_time_to_come_back(site: Site) -> None:
    """It was away for less than a lease, and for longer than another's lease still lasted."""
    clock, other = Leaping(), str(uuid4())
    lease = Lease(site.pool, known=frozenset, found=lambda: None, clock=clock)

    async def others() -> bool:
        async with transaction(site.pool) as conn:
            cursor = await conn.execute("SELECT FROM dispatch_leases WHERE id = %s", [other])
            return cursor.rowcount == 1

    async def look() -> None:
        await lease.renew()
        await lease.reap()

    await lease.start()
    async with transaction(site.pool) as conn:
        await conn.execute("INSERT INTO dispatch_leases VALUES (%s, now() - interval '1 second')", [other])
    for _ in range(int(LEASE_S) - 1):
        clock.at_s += 1.0
        await look()
    clock.at_s += LEASE_S - 2.0
    await look()
    for _ in range(int(LEASE_S) - 1):
        assert await others()
        clock.at_s += 1.0
        await look()
    assert await others()
    clock.at_s += 1.0
    await look()
    assert not await others()
    await lease.close()
