"""Deliveries from the stream to the written outcome: done, retried, dead, held, each pair once."""

import asyncio
import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import nats
import pytest

from engines.contract import Outcome, Result
from server.dispatch import consumer, intake, ledger, parked
from server.dispatch.holds import Holds
from server.dispatch.planning import choose
from server.errors import NotFound, Unavailable
from server.events import stream
from server.events.envelope import encode
from server.events.json_text import read
from server.invocations.invoke import Call
from server.postgres.control import transaction
from tests.fix_dispatch import THREW, TYPE, Answer, Gate, Site, status
from tests.fix_ledger import insert_delivery
from tests.fix_runs import eventually
from tests.fix_triggers import add_workflow

PATIENT = {"attempts": 5, "backoff_ms": 3_600_000, "max_backoff_ms": 86_400_000}


@pytest.fixture
def site(dispatch_site: Site) -> Site:
    return dispatch_site


async def test_an_event_runs_the_triggers_that_it_fires_with_all_that_is_known(site: Site) -> None:
    worker = await (await site.worker()).start()
    one = await site.trigger(conditions=[{"field": "amount", "op": "gt", "value": 100}])
    two = await site.trigger()
    await site.trigger(event_type="order.sent")
    high, low = await site.publish({"amount": 101}, {"amount": 100})
    await site.until({"done": 3})
    assert Counter(call.trigger for call in worker.invoker.calls) == Counter({one: 1, two: 2})
    (call,) = (call for call in worker.invoker.calls if call.trigger == one)
    assert (call.project_id, call.slug, call.function_id, call.tier) == (
        site.project_id,
        "hello",
        site.function_id,
        "free",
    )
    assert json.loads(call.body.data)["id"] == high
    assert call.event is not None
    told = json.loads(call.event)
    assert (told["id"], told["type"], told["attempt"]) == (high, TYPE, 1)
    assert (told["trigger_id"], told["delivery_id"]) == (one, site.id_of(one, high))
    (row,) = await site.rows(one)
    assert (row["state"], row["outcome"], row["attempts"], row["error"]) == ("done", "ok", 1, None)
    (entry,) = row["history"]
    assert (entry["attempt"], entry["run_id"], entry["outcome"]) == (1, call.run_id, "ok")
    assert datetime.fromisoformat(entry["began_at"]) <= datetime.fromisoformat(entry["ended_at"]) <= datetime.now(UTC)
    assert row["finished_at"] is not None
    await site.taken()
    assert low in {row["event_id"] for row in await site.rows(two)}


async def test_a_workflow_is_started_once_under_the_id_of_the_delivery(site: Site) -> None:
    worker = await (await site.worker()).start()
    workflow_id = await add_workflow(site.pool, site.project_id)
    trigger_id = str(uuid4())
    async with transaction(site.pool) as conn:
        await conn.execute(
            "INSERT INTO triggers (id, project_id, event_type, target_type, workflow_id)"
            " VALUES (%s, %s, %s, 'workflow', %s)",
            [trigger_id, site.project_id, TYPE, workflow_id],
        )
        await site.changes.announce(conn, "trigger", f"{site.project_id}/{trigger_id}")
    await site.changes.fence()
    (event_id,) = await site.publish({"a": 1})
    await site.until({"done": 1})
    (given,) = worker.workflows.started
    assert json.loads(given.pop("event"))["id"] == event_id
    assert given == {
        "project_id": site.project_id,
        "workflow_id": workflow_id,
        "run_id": site.id_of(trigger_id, event_id),
        "trigger_id": trigger_id,
    }


async def test_a_failure_is_tried_again_and_every_attempt_is_told(site: Site) -> None:
    answers: list[Answer] = [THREW, status(503), None]

    async def work(call: Call) -> Answer:
        return answers.pop(0)

    worker = await (await site.worker(work)).start()
    await site.trigger()
    await site.publish(1)
    await site.until({"done": 1})
    (row,) = await site.rows()
    assert [(entry["attempt"], entry["outcome"], entry.get("reason")) for entry in row["history"]] == [
        (1, "exception", "FUNCTION_EXCEPTION"),
        (2, "exception", "FUNCTION_ANSWERED_STATUS"),
        (3, "ok", None),
    ]
    assert "503" in row["history"][1]["message"]
    assert len({call.run_id for call in worker.invoker.calls}) == 3
    assert [json.loads(call.event or b"")["attempt"] for call in worker.invoker.calls] == [1, 2, 3]


async def test_what_fails_for_good_is_a_dead_letter(site: Site) -> None:
    async def work(call: Call) -> Answer:
        kind = json.loads(call.body.data)["data"]
        if kind == "gone":
            return NotFound("no such function", reason="FUNCTION_NOT_FOUND")
        if kind == "nul":
            raise RuntimeError("a fault of ours \0 \ud800")
        return Result(outcome=Outcome(kind))

    worker = await (await site.worker(work)).start()
    await site.trigger()
    await site.publish("exception", "fuel_limit", "load_failed", "gone", "nul")
    await site.until({"dead": 5})
    found = {json.loads(call.body.data)["id"]: json.loads(call.body.data)["data"] for call in worker.invoker.calls}
    rows = {found[row["event_id"]]: row for row in await site.rows()}
    assert {kind: (row["attempts"], row["outcome"], row["error"]["reason"]) for kind, row in rows.items()} == {
        "exception": (3, "exception", "FUNCTION_EXCEPTION"),
        "fuel_limit": (1, "fuel_limit", "FUEL_LIMIT"),
        "load_failed": (1, "load_failed", "FUNCTION_LOAD_FAILED"),
        "gone": (1, "load_failed", "FUNCTION_NOT_FOUND"),
        "nul": (3, "crashed", "INTERNAL_FAULT"),
    }


async def test_a_refusal_is_no_attempt(site: Site) -> None:
    answers: list[Answer] = [Unavailable("full", reason="OVERLOADED"), Unavailable("away", reason="X"), None]

    async def work(call: Call) -> Answer:
        return answers.pop(0)

    await (await site.worker(work)).start()
    await site.trigger(retry={"attempts": 1})
    await site.publish(1)
    await site.until({"done": 1})
    (row,) = await site.rows()
    assert (row["attempts"], row["refusals"], len(row["history"])) == (1, 2, 1)


async def test_a_run_that_is_cancelled_is_not_tried_again(site: Site) -> None:
    async def work(call: Call) -> Answer:
        return Result(outcome=Outcome.CANCELLED)

    await (await site.worker(work)).start()
    await site.trigger()
    await site.publish(1)
    await site.until({"cancelled": 1})


async def test_a_pair_that_is_known_is_left_alone(site: Site) -> None:
    """However often its event comes: published again, or the consumer lost."""
    worker = await (await site.worker()).start()
    await site.trigger()
    event = site.event(1)
    await site.publisher.publish([event])
    await site.until({"done": 1})
    for number in range(3):
        await site.bus.jetstream.publish(
            stream.subject_of(TYPE), (await stored(site))[0], headers={"Nats-Msg-Id": f"again-{number}"}
        )
    await site.taken()
    await site.bus.jetstream.delete_consumer(stream.NAME, consumer.DURABLE)
    (other,) = await site.publish(2)
    await site.until({"done": 2})
    assert Counter(json.loads(call.body.data)["id"] for call in worker.invoker.calls) == {event.id: 1, other: 1}


async def test_of_another_event_with_a_known_id_the_first_is_what_is_kept(site: Site) -> None:
    """No trigger runs twice for an id. One that is newer gets the second as it came, and tried again the first."""
    worker = await (await site.worker(lambda call: fails_at_first(call, new))).start()
    new, old = "", await site.trigger()
    first = site.event(1)
    await site.publisher.publish([first])
    await site.until({"done": 1})
    new = await site.trigger()
    await site.bus.jetstream.publish(stream.subject_of(TYPE), encode(replace(first, data=read(b"2"))))
    await site.until({"done": 2})
    calls = [(call.trigger, json.loads(call.body.data)["data"]) for call in worker.invoker.calls]
    assert calls == [(old, 1), (new, 2), (new, 1)]


async def fails_at_first(call: Call, trigger_id: str) -> Answer:
    attempt = json.loads(call.event or b"")["attempt"]
    return THREW if (call.trigger, attempt) == (trigger_id, 1) else None


async def stored(site: Site) -> list[bytes]:
    async with transaction(site.pool) as conn:
        cursor = await conn.execute("SELECT body FROM delivered_events")
        return [bytes(body) for (body,) in await cursor.fetchall()]


async def test_the_stream_may_be_lost(site: Site) -> None:
    await (await site.worker()).start()
    await site.trigger()
    await site.publish(1)
    await site.until({"done": 1})
    await site.bus.jetstream.delete_stream(stream.NAME)
    await site.publish(2)
    await site.until({"done": 2})


async def test_what_is_no_event_is_parked_and_blocks_nothing(site: Site) -> None:
    await (await site.worker()).start()
    await site.trigger()
    subject = stream.subject_of(TYPE)
    rubbish = [b"", b"{", b'"\\ud800"', b"\xff" * 100_000, b"[]", b'{"id": "\\u0000"}']
    for body in rubbish:
        await site.bus.jetstream.publish(subject, body)
    await site.bus.jetstream.publish(stream.subject_of("another"), await encoded(site))
    await site.publish(1)
    await site.until({"done": 1})
    await site.taken()
    async with transaction(site.pool) as conn:
        cursor = await conn.execute("SELECT subject, reason, body, body_bytes FROM parked_messages ORDER BY sequence")
        found = await cursor.fetchall()
    assert [bytes(body) for _, _, body, _ in found][:6] == [body[:65_536] for body in rubbish]
    assert [size for _, _, _, size in found][:6] == [len(body) for body in rubbish]
    assert all(reason for _, reason, _, _ in found)
    assert len(found) == 7


@pytest.mark.parametrize(
    "headers", [b"", b"NATS/1.0\r\nA: \xff\r\n\r\n", b"NATS/1.0 503 \xff\r\n\r\n", b"NATS/1.0", b"\xff\r\n\r\n"]
)
async def test_odd_subjects_and_headers_do_not_end_the_connection(site: Site, headers: bytes) -> None:
    await (await site.worker()).start()
    await site.trigger()
    publisher = await nats.connect(site.nats_url)
    sizes = b"%d %d" % (len(headers), len(headers) + 2)
    await publisher._send_command(b"PUB atlasdb.events.\xff 2\r\n{}\r\n")
    await publisher._send_command(b"HPUB atlasdb.events.a " + sizes + b"\r\n" + headers + b"{}\r\n")
    await publisher.flush()
    await publisher.close()
    await site.publish(1)
    await site.until({"done": 1})
    await site.taken()


async def test_what_is_parked_comes_again_and_is_parked_once(site: Site) -> None:
    moment = datetime(2026, 7, 1, tzinfo=UTC)
    message = consumer.Message("atlasdb.events.a", b"{", "", 7, moment)
    for _ in range(2):
        async with transaction(site.pool) as conn:
            await parked.park(conn, [(message, "no event")])
    async with transaction(site.pool) as conn:
        cursor = await conn.execute("SELECT sequence, parked_at FROM parked_messages")
        assert await cursor.fetchall() == [(7, moment)]


async def encoded(site: Site) -> bytes:
    return encode(site.event(3))


async def test_a_paused_trigger_holds_what_fires_it_and_runs_it_later(site: Site) -> None:
    worker = await (await site.worker()).start()
    trigger_id = await site.trigger(paused=True)
    await site.publish(1, 2, 3)
    await site.until({"held": 3})
    assert worker.invoker.calls == []
    await site.change(trigger_id, "paused = false")
    await site.until({"done": 3})
    assert all(row["released_at"] for row in await site.rows())


async def test_what_is_held_goes_on_in_batches_of_each_trigger_in_turn(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "BATCH", 2)
    release, order = ledger.release, []

    async def releasing(conn: Any, trigger_id: str, *, enabled: bool) -> int:
        order.append(trigger_id)
        if len(order) == 2:
            await conn.execute("UPDATE triggers SET paused = false WHERE id = %s", [late])
        return await release(conn, trigger_id, enabled=enabled)

    monkeypatch.setattr(ledger, "release", releasing)
    many, few, late = sorted([await site.trigger(paused=True) for _ in range(3)])
    async with transaction(site.pool) as conn:
        for trigger_id, count in ((many, 5), (few, 1), (late, 1)):
            for _ in range(count):
                await insert_delivery(conn, site.project_id, trigger_id, state="held")
        await conn.execute("UPDATE triggers SET paused = false WHERE id <> %s", [late])
    released: list[None] = []
    await Holds(site.pool, lambda: released.append(None)).look()
    assert order == [many, few, many, late, many]
    assert len(released) == 5
    assert await site.states() == {"queued": 7}


async def test_what_waits_is_held_when_its_trigger_is_paused_and_cancelled_when_it_is_gone(site: Site) -> None:
    async def work(call: Call) -> Answer:
        return THREW

    await (await site.worker(work)).start()
    paused = await site.trigger(retry=PATIENT)
    ordered = await site.trigger(retry=PATIENT, order_key="k")
    gone = await site.trigger(retry=PATIENT)
    await site.publish({"k": 1}, {"k": 1})
    await site.until({"queued": 6})
    for trigger_id in (paused, ordered):
        await site.change(trigger_id, "paused = true")
    await site.change(gone, "enabled = false")
    async with transaction(site.pool) as conn:
        await conn.execute("UPDATE deliveries SET due_at = now()")
        await site.changes.announce(conn, "delivery", site.project_id)
    await site.until({"held": 2}, paused)
    await site.until({"held": 2}, ordered)
    await site.until({"cancelled": 2}, gone)
    assert {row["error"]["reason"] for row in await site.rows(gone)} == {"TRIGGER_DISABLED"}
    await site.change(ordered, "enabled = false")
    await site.until({"cancelled": 2}, ordered)


async def test_a_disabled_trigger_lets_events_pass(site: Site) -> None:
    worker = await (await site.worker()).start()
    await site.trigger(enabled=False)
    other = await site.trigger()
    await site.publish(1)
    await site.until({"done": 1})
    assert [call.trigger for call in worker.invoker.calls] == [other]


async def test_a_delivery_that_is_queued_by_somebody_runs_at_once(site: Site) -> None:
    """As a replay does."""

    async def work(call: Call) -> Answer:
        return THREW if len(worker.invoker.calls) == 1 else None

    worker = await (await site.worker(work)).start()
    await site.trigger(retry={"attempts": 1})
    await site.publish(1)
    await site.until({"dead": 1})
    async with transaction(site.pool) as conn:
        await conn.execute("UPDATE deliveries SET state = 'queued', attempts = 0, replays = 1, replayed_at = now()")
        await site.changes.announce(conn, "delivery", site.project_id)
    await site.until({"done": 1})
    (row,) = await site.rows()
    assert [entry["outcome"] for entry in row["history"]] == ["exception", "ok"]


async def test_an_event_that_is_not_kept_any_more_is_told(site: Site) -> None:
    await (await site.worker()).start()
    await site.trigger(paused=True)
    await site.publish(1)
    await site.until({"held": 1})
    async with transaction(site.pool) as conn:
        await conn.execute("DELETE FROM delivered_events")
        await conn.execute("UPDATE triggers SET paused = false, updated_at = now()")
        await site.changes.announce(conn, "trigger", f"{site.project_id}/{(await site.rows())[0]['trigger_id']}")
    await site.until({"dead": 1})
    assert (await site.rows())[0]["error"]["reason"] == "EVENT_GONE"


async def test_draining_gives_back_what_does_not_end(site: Site) -> None:
    gate = Gate()
    worker = await (await site.worker(gate)).start()
    await site.trigger()
    await site.publish(1, 2, 3)
    await site.until({"running": 3})
    await worker.dispatcher.close(drain_s=0.05)
    await site.until({"queued": 3})
    for row in await site.rows():
        assert (row["attempts"], row["lease"], row["outcome"]) == (0, None, "lost")
        (entry,) = row["history"]
        assert (entry["attempt"], entry["outcome"], entry["reason"]) == (1, "lost", "WORKER_STOPPED")
        assert datetime.fromisoformat(entry["began_at"]) <= datetime.fromisoformat(entry["ended_at"])
        assert row["error"] == {"reason": entry["reason"], "message": entry["message"]}
    assert {row["history"][0]["run_id"] for row in await site.rows()} == {call.run_id for call in worker.invoker.calls}
    async with transaction(site.pool) as conn:
        assert (await (await conn.execute("SELECT count(*) FROM dispatch_leases")).fetchone()) == (0,)
    await (await site.worker()).start()
    await site.until({"done": 3})
    assert {(row["attempts"], len(row["history"]), row["error"]) for row in await site.rows()} == {(1, 2, None)}


async def test_draining_lets_runs_end(site: Site) -> None:
    gate = Gate()
    worker = await (await site.worker(gate)).start()
    await site.trigger()
    await site.publish(1, 2)
    await site.until({"running": 2})
    closing = asyncio.create_task(worker.dispatcher.close(drain_s=10))
    await asyncio.sleep(0)
    gate.open.set()
    await closing
    await site.until({"done": 2})


async def test_two_workers_share_and_none_runs_a_pair_twice(site: Site) -> None:
    async def slowly(call: Call) -> Answer:
        await asyncio.sleep(0.001)
        return None

    workers = [await (await site.worker(slowly, slots=8)).start() for _ in range(2)]
    await site.trigger()
    await site.trigger(concurrency=3)
    await site.publish(*range(300))
    await site.until({"done": 600}, within_s=60)
    runs = Counter((call.trigger, json.loads(call.body.data)["id"]) for each in workers for call in each.invoker.calls)
    assert set(runs.values()) == {1}
    assert all(each.invoker.calls for each in workers)


async def test_the_numbers_are_told(site: Site) -> None:
    worker = await (await site.worker()).start()
    await site.trigger()
    await site.publish(1)
    await site.publish(2, type="another")
    await site.until({"done": 1})
    await site.taken()
    await worker.dispatcher.sample()
    metrics: dict[Any, Any] = {record.name: record.doubles for record in worker.dispatcher._metrics.numbers.records()}
    assert metrics["atlas_events_total", "matched"] == (1,)
    assert metrics["atlas_events_total", "unmatched"] == (1,)
    assert metrics["atlas_deliveries_total", "done"] == (1,)
    assert sum(metrics["atlas_delivery_lag_seconds",][1:]) == 1
    assert metrics["atlas_deliveries_running",] == (0,)
    assert metrics["atlas_deliveries_queued",] == (0,)


async def test_many_triggers_of_one_event_are_all_written(site: Site) -> None:
    worker = await site.worker()
    async with transaction(site.pool) as conn:
        await conn.execute(
            "INSERT INTO triggers (project_id, event_type, target_type, function_id)"
            " SELECT %s, %s, 'function', %s FROM generate_series(1, 1100)",
            [site.project_id, TYPE, site.function_id],
        )
    await worker.start()
    await site.publish("x")
    await site.until({"done": 1100}, within_s=60)

    async def acknowledged() -> bool:
        return not (await site.bus.jetstream.consumer_info(stream.NAME, "dispatch")).num_ack_pending

    await eventually(acknowledged)


@pytest.mark.parametrize("limit", ["PAIRS_IN_HAND", "IN_HAND_BYTES"])
async def test_what_is_in_hand_is_bounded(site: Site, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(intake, limit, 10)
    in_hand: list[int] = []

    def choosing(fired: Any, *given: Any) -> Any:
        in_hand.append(len(fired))
        return choose(fired, *given)

    monkeypatch.setattr(intake, "choose", choosing)
    for _ in range(8):
        await site.trigger()
    await site.publish(*range(40))
    await (await site.worker()).start()
    await site.until({"done": 320}, within_s=60)
    await site.taken()
    assert max(in_hand) <= 10 + 8


async def test_one_request_brings_so_many_bytes_at_most(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "MAX_BYTES", 50_000)
    await site.trigger()
    await site.publish(*("x" * 20_000 for _ in range(9)))
    arrived = asyncio.Event()
    await consumer.ensure(site.bus)
    async with consumer.Pull(site.bus, arrived.set) as pull:
        taken: list[int] = []
        while len(taken) < 9:
            arrived.clear()
            await pull.ask(9)

            async def all_of_it() -> bool:
                return pull._asked == 0

            await eventually(all_of_it)
            some = pull.take()
            assert sum(len(message.body) for message in some) <= 50_000
            taken += [message.sequence for message in some]
            for message in some:
                await pull.ack(message)
    assert len(taken) == len({*taken}) == 9
