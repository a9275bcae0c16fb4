"""Reading and changing the ledger on a real Postgres."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from server.dispatch.cancel import Canceller
from server.dispatch.deliveries import Deliveries, Filter
from server.dispatch.replay import KEPT_ATTEMPTS, DeadLetters, Replayed, Replayer
from server.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from server.postgres.changes import Changes
from server.postgres.control import Pool, transaction
from server.runs import rows
from server.runs.record import RunRecord, cancelled
from tests.fix_functions import add_project
from tests.fix_ledger import EVENT_BODY, an_attempt, count, insert_delivery, put_delivery
from tests.fix_runs import a_record, a_run, eventually
from tests.fix_triggers import add_function, add_trigger, change_trigger

T0 = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def deliveries(pool: Pool) -> Deliveries:
    return Deliveries(pool)


@pytest.fixture
def replayer(pool: Pool, changes: Changes) -> Replayer:
    return Replayer(pool, changes, batch=10)


class TestReading:
    async def test_lists_are_filtered_and_paged(
        self, deliveries: Deliveries, pool: Pool, project_id: str, trigger_id: str
    ) -> None:
        other = str(uuid4())
        made = [
            await put_delivery(
                pool,
                project_id,
                (trigger_id, other)[number % 2],
                event_id=f"e{number}",
                event_type=("order.paid", "order.sent")[number // 5],
                state=("done", "dead", "queued")[number % 3],
                outcome=("ok", "exception", "lost")[number % 3],
                created_at=T0 + timedelta(minutes=number),
            )
            for number in range(10)
        ]
        await put_delivery(pool, await add_project(pool), trigger_id)

        async def listed(**wanted: Any) -> list[int]:
            page = await deliveries.list(project_id, Filter(**wanted))
            return [made.index(item.id) for item in page.items]

        assert await listed() == [*range(9, -1, -1)]
        assert await listed(trigger=trigger_id.upper()) == [8, 6, 4, 2, 0]
        assert await listed(event="e4") == [4]
        assert await listed(event_type="order.sent") == [9, 8, 7, 6, 5]
        assert await listed(state="dead") == [7, 4, 1]
        assert await listed(state="done") == [9, 6, 3, 0]
        assert await listed(outcome="lost") == [8, 5, 2]
        assert await listed(since=T0 + timedelta(minutes=3), until=T0 + timedelta(minutes=6)) == [5, 4, 3]
        assert await listed(trigger=other, event_type="order.paid", state="dead") == [1]
        seen: list[str] = []
        token = ""
        while token or not seen:
            page = await deliveries.list(project_id, Filter(), 4, token)
            seen += [item.id for item in page.items]
            token = page.next_page_token
        assert seen == made[::-1]

    @pytest.mark.parametrize(
        "wanted",
        [
            {"trigger": "x"},
            {"event": "a b"},
            {"event_type": "a b"},
            {"state": "fine"},
            {"state": "dead' OR true --"},
            {"outcome": "good"},
        ],
    )
    async def test_a_filter_that_is_wrong_is_named(
        self, deliveries: Deliveries, project_id: str, wanted: dict[str, Any]
    ) -> None:
        with pytest.raises(InvalidArgument) as raised:
            await deliveries.list(project_id, Filter(**wanted))
        assert raised.value.field == next(iter(wanted))

    async def test_one_is_shown_with_attempts_runs_and_event(
        self, deliveries: Deliveries, pool: Pool, project_id: str, trigger_id: str
    ) -> None:
        record = a_record(project_id, outcome="exception")
        async with transaction(pool) as conn:
            await rows.finish(conn, [record])
        lost = an_attempt(2, "lost", ended_at=None, reason="PROCESS_DIED", message="")
        delivery_id = await put_delivery(
            pool,
            project_id,
            trigger_id,
            state="running",
            run_id=str(uuid4()),
            began_at=T0,
            attempts=3,
            history=[an_attempt(run_id=record.run.id), lost],
        )
        shown = await deliveries.get(project_id, delivery_id.upper())
        first, second, now = shown.delivery.history
        assert first.run is not None
        assert (first.number, first.outcome, first.run.run) == (1, "exception", record.run)
        assert first.began_at is not None
        assert (first.began_at.tzinfo, first.run.logs) == (UTC, ())
        assert second.error is not None
        assert (second.number, second.outcome, second.run, second.ended_at) == (2, "lost", None, None)
        assert (second.error.reason, second.error.message) == ("PROCESS_DIED", "")
        assert (now.number, now.run_id, now.began_at, now.outcome) == (3, shown.delivery.run_id, T0, "")
        assert shown.event == EVENT_BODY

    async def test_another_projects_delivery_is_not_there(
        self, deliveries: Deliveries, replayer: Replayer, pool: Pool, project_id: str, trigger_id: str
    ) -> None:
        theirs = await put_delivery(pool, await add_project(pool), trigger_id)
        for ask in (deliveries.get, replayer.replay):
            with pytest.raises(NotFound):
                await ask(project_id, theirs)
            with pytest.raises(NotFound):
                await ask(project_id, str(uuid4()))
            with pytest.raises(InvalidArgument):
                await ask(project_id, "x")
        assert (await replayer.replay_all(project_id, DeadLetters(ids=[theirs]))).count == 0

    async def test_a_run_of_another_project_is_not_shown(
        self, deliveries: Deliveries, pool: Pool, project_id: str, trigger_id: str
    ) -> None:
        record = a_record(await add_project(pool))
        async with transaction(pool) as conn:
            await rows.finish(conn, [record])
        delivery_id = await put_delivery(pool, project_id, trigger_id, history=[an_attempt(run_id=record.run.id)])
        (attempt,) = (await deliveries.get(project_id, delivery_id)).delivery.history
        assert attempt.run is None


class TestReplaying:
    @pytest.mark.parametrize("state", ["dead", "cancelled", "skipped"])
    async def test_it_is_due_at_once_and_counts_anew(
        self, replayer: Replayer, pool: Pool, project_id: str, trigger_id: str, state: str
    ) -> None:
        history = [an_attempt(number) for number in range(1, KEPT_ATTEMPTS + 3)]
        delivery_id = await put_delivery(
            pool, project_id, trigger_id, state=state, attempts=5, refusals=2, history=history, due_at=T0
        )
        again = await replayer.replay(project_id, delivery_id)
        assert (again.state, again.attempts, again.replays, again.finished_at) == ("queued", 0, 1, None)
        assert abs(again.due_at - datetime.now(UTC)) < timedelta(minutes=1)
        assert [item.number for item in again.history] == [*range(3, KEPT_ATTEMPTS + 3)]
        assert await count(pool, "deliveries", "refusals = 0 AND lease IS NULL AND replayed_at = due_at") == 1

    async def test_workers_are_woken(
        self, pool: Pool, control_url: str, replayer: Replayer, project_id: str, trigger_id: str
    ) -> None:
        heard: list[str] = []
        worker = Changes(control_url)
        worker.subscribe("delivery", heard.append, lambda: None)
        await worker.start()
        one, other = [await put_delivery(pool, project_id, trigger_id) for _ in range(2)]
        await replayer.replay(project_id, one)
        await replayer.replay_all(project_id, DeadLetters(ids=[other]))

        async def woken() -> bool:
            return heard == [project_id, project_id]

        await eventually(woken)
        await worker.close()

    @pytest.mark.parametrize(
        ("state", "reason"),
        [
            ("done", "DELIVERY_DONE"),
            ("queued", "DELIVERY_UNDER_WAY"),
            ("running", "DELIVERY_UNDER_WAY"),
            ("held", "DELIVERY_UNDER_WAY"),
        ],
    )
    async def test_what_is_done_or_under_way_stays_as_it_is(
        self, replayer: Replayer, pool: Pool, project_id: str, trigger_id: str, state: str, reason: str
    ) -> None:
        delivery_id = await put_delivery(pool, project_id, trigger_id, state=state)
        with pytest.raises(FailedPrecondition) as raised:
            await replayer.replay(project_id, delivery_id)
        assert raised.value.reason == reason
        assert (await replayer.replay_all(project_id, DeadLetters())).count == 0
        assert await count(pool, "deliveries", f"state = '{state}' AND replays = 0") == 1

    async def test_what_cannot_run_stays_dead(
        self, replayer: Replayer, pool: Pool, changes: Changes, project_id: str, trigger_id: str
    ) -> None:
        off = await add_trigger(pool, changes, await add_function(pool, project_id, "off"))
        await change_trigger(pool, changes, off, "enabled = false")
        reasons = {
            await put_delivery(pool, project_id, off): "TRIGGER_DISABLED",
            await put_delivery(pool, project_id, str(uuid4())): "TRIGGER_DELETED",
            await put_delivery(pool, project_id, trigger_id, body=None): "EVENT_KEPT_NO_MORE",
        }
        for delivery_id, reason in reasons.items():
            with pytest.raises(FailedPrecondition) as raised:
                await replayer.replay(project_id, delivery_id)
            assert raised.value.reason == reason
        assert (await replayer.replay_all(project_id, DeadLetters())).count == 0
        assert await count(pool, "deliveries", "state = 'dead'") == 3

    async def test_a_filter_chooses(
        self, replayer: Replayer, pool: Pool, changes: Changes, project_id: str, trigger_id: str
    ) -> None:
        other = await add_trigger(pool, changes, await add_function(pool, project_id, "other"))
        for number in range(30):
            await put_delivery(
                pool,
                project_id,
                (trigger_id, other)[number % 2],
                event_type=("order.paid", "order.sent")[number // 15],
                outcome=("exception", "lost", "wall_limit")[number % 3],
                error={"reason": f"R{number % 5}", "message": "\0" * (number % 2)},
                created_at=T0 + timedelta(minutes=number),
            )

        async def chosen(**wanted: Any) -> int:
            replayed = (await replayer.replay_all(project_id, DeadLetters(**wanted))).count
            assert await count(pool, "deliveries", "state = 'queued'") == replayed
            async with transaction(pool) as conn:
                await conn.execute("UPDATE deliveries SET state = 'dead', finished_at = now() WHERE state = 'queued'")
            return replayed

        assert await chosen(trigger=other) == 15
        assert await chosen(event_type="order.sent") == 15
        assert await chosen(outcome="lost") == 10
        assert await chosen(reason="R1") == 6
        assert await chosen(reason="none") == 0
        assert await chosen(since=T0 + timedelta(minutes=20)) == 10
        assert await chosen(since=T0 + timedelta(minutes=20), until=T0 + timedelta(minutes=22)) == 2
        assert await chosen(trigger=other, outcome="lost", reason="R1") == 1
        assert await chosen() == 30

    async def test_many_are_replayed_call_by_call_oldest_first(
        self, pool: Pool, changes: Changes, project_id: str, trigger_id: str
    ) -> None:
        async with transaction(pool) as conn:
            for number in range(25):
                await insert_delivery(conn, project_id, trigger_id, created_at=T0 + timedelta(seconds=number))
        replayer = Replayer(pool, changes, batch=10, call_s=0)
        told: list[int] = []
        token = ""
        while token or not told:
            replayed = await replayer.replay_all(project_id, DeadLetters(), token)
            told.append(replayed.count)
            token = replayed.next_page_token
            async with transaction(pool) as conn:  # they die again before the next call
                await conn.execute("UPDATE deliveries SET state = 'dead', finished_at = now() WHERE state = 'queued'")
        assert told == [10, 10, 5]
        assert await count(pool, "deliveries", "replays = 1") == 25
        with pytest.raises(InvalidArgument, match="page_token"):
            await replayer.replay_all(project_id, DeadLetters(outcome="lost"), "AAAA")

    async def test_the_end_is_seen_where_batches_end(
        self, replayer: Replayer, pool: Pool, project_id: str, trigger_id: str
    ) -> None:
        for _ in range(10):
            await put_delivery(pool, project_id, trigger_id)
        assert await replayer.replay_all(project_id, DeadLetters()) == Replayed(10, "")

    @pytest.mark.parametrize(
        ("wanted", "field"),
        [
            ({"ids": ["x"]}, "ids[0]"),
            ({"ids": ["5180f1e5-bc06-4ee5-b484-e0f4e1f1fb19"] * 1001}, "ids"),
            ({"trigger": "x"}, "trigger"),
            ({"event_type": "a..b"}, "event_type"),
            ({"outcome": "good"}, "outcome"),
            ({"reason": "a\nb"}, "reason"),
            ({"reason": "x" * 101}, "reason"),
        ],
        ids=lambda value: str(value)[:30],
    )
    async def test_a_filter_that_is_wrong_is_named(
        self, replayer: Replayer, pool: Pool, project_id: str, trigger_id: str, wanted: dict[str, Any], field: str
    ) -> None:
        await put_delivery(pool, project_id, trigger_id)
        with pytest.raises(InvalidArgument) as raised:
            await replayer.replay_all(project_id, DeadLetters(**wanted))
        assert raised.value.field == field
        assert await count(pool, "deliveries", "state = 'dead'") == 1


class Runs:
    """Peers, of whom one runs what the test says; `end` is what its worker writes then."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.asked: list[str] = []
        self.answer: RunRecord | None = None
        self.writes = ""

    async def cancel(self, project_id: str, run_id: str) -> RunRecord | None:
        self.asked.append(run_id)
        if self.writes:
            async with transaction(self.pool) as conn:
                await conn.execute(f"UPDATE deliveries SET {self.writes} WHERE run_id = %s".encode(), [run_id])
        return self.answer


@pytest.fixture
def runs(pool: Pool) -> Runs:
    return Runs(pool)


@pytest.fixture
def canceller(pool: Pool, changes: Changes, runs: Runs) -> Canceller:
    return Canceller(pool, changes, runs, settle_s=0.05)


async def put_running(pool: Pool, project_id: str, trigger_id: str, *, leased: bool = True) -> tuple[str, str]:
    """Delivery and run."""
    run_id, lease = str(uuid4()), str(uuid4())
    async with transaction(pool) as conn:
        if leased:
            await conn.execute(
                "INSERT INTO dispatch_leases (id, expires_at) VALUES (%s, now() + interval '1 hour')", [lease]
            )
    columns = {"state": "running", "run_id": run_id, "lease": lease, "attempts": 1, "began_at": T0}
    return await put_delivery(pool, project_id, trigger_id, **columns), run_id


class TestCancelling:
    @pytest.mark.parametrize("state", ["queued", "held"])
    async def test_one_that_waits_will_not_run(
        self, canceller: Canceller, runs: Runs, pool: Pool, project_id: str, trigger_id: str, state: str
    ) -> None:
        delivery_id = await put_delivery(pool, project_id, trigger_id, state=state)
        ended = await canceller.cancel(project_id, delivery_id)
        assert ended.error is not None
        assert (ended.state, ended.error.reason, ended.finished_at is None) == ("cancelled", "CANCELLED", False)
        assert runs.asked == []

    @pytest.mark.parametrize("state", ["done", "dead", "skipped", "cancelled"])
    async def test_what_is_finished_stays_as_it_is(
        self, canceller: Canceller, pool: Pool, project_id: str, trigger_id: str, state: str
    ) -> None:
        delivery_id = await put_delivery(pool, project_id, trigger_id, state=state)
        with pytest.raises(FailedPrecondition, match=state):
            await canceller.cancel(project_id, delivery_id)

    async def test_one_that_runs_is_ended_and_its_worker_says_so(
        self, canceller: Canceller, runs: Runs, pool: Pool, project_id: str, trigger_id: str
    ) -> None:
        delivery_id, run_id = await put_running(pool, project_id, trigger_id)
        runs.answer = cancelled(a_run(project_id, id=run_id), at=T0)
        runs.writes = "state = 'cancelled', outcome = 'cancelled', finished_at = now()"
        ended = await canceller.cancel(project_id, delivery_id)
        assert (ended.state, ended.outcome, runs.asked) == ("cancelled", "cancelled", [run_id])

    async def test_when_its_worker_does_not_say_so_we_do(
        self, canceller: Canceller, runs: Runs, pool: Pool, project_id: str, trigger_id: str
    ) -> None:
        delivery_id, run_id = await put_running(pool, project_id, trigger_id)
        runs.answer = cancelled(a_run(project_id, id=run_id), at=T0)
        ended = await canceller.cancel(project_id, delivery_id)
        (attempt,) = ended.history
        assert (ended.state, attempt.outcome, attempt.run_id, attempt.began_at) == (
            "cancelled",
            "cancelled",
            run_id,
            T0,
        )
        assert await count(pool, "deliveries", "lease IS NULL") == 1

    async def test_one_that_would_be_tried_again_is_not(
        self, canceller: Canceller, runs: Runs, pool: Pool, project_id: str, trigger_id: str
    ) -> None:
        delivery_id, _ = await put_running(pool, project_id, trigger_id)
        runs.writes = "state = 'queued', lease = NULL"
        assert (await canceller.cancel(project_id, delivery_id)).state == "cancelled"

    async def test_one_that_was_quicker_is_done(
        self, canceller: Canceller, runs: Runs, pool: Pool, project_id: str, trigger_id: str
    ) -> None:
        delivery_id, run_id = await put_running(pool, project_id, trigger_id)
        runs.answer = a_record(project_id, run=a_run(project_id, id=run_id))
        runs.writes = "state = 'done', outcome = 'ok', finished_at = now()"
        with pytest.raises(FailedPrecondition, match="done"):
            await canceller.cancel(project_id, delivery_id)

    async def test_one_whose_process_died_is_lost(
        self, canceller: Canceller, pool: Pool, project_id: str, trigger_id: str
    ) -> None:
        delivery_id, _ = await put_running(pool, project_id, trigger_id, leased=False)
        ended = await canceller.cancel(project_id, delivery_id)
        assert (ended.state, ended.outcome, ended.history[0].outcome) == ("cancelled", "lost", "lost")

    async def test_one_whose_process_does_not_answer_goes_on(
        self, canceller: Canceller, runs: Runs, pool: Pool, project_id: str, trigger_id: str
    ) -> None:
        delivery_id, run_id = await put_running(pool, project_id, trigger_id)
        with pytest.raises(Unavailable):
            await canceller.cancel(project_id, delivery_id)
        assert set(runs.asked) == {run_id}
        assert await count(pool, "deliveries", "state = 'running'") == 1

    async def test_another_projects_is_not_there(
        self, canceller: Canceller, pool: Pool, project_id: str, trigger_id: str
    ) -> None:
        theirs = await put_delivery(pool, await add_project(pool), trigger_id, state="queued")
        with pytest.raises(NotFound):
            await canceller.cancel(project_id, theirs)
        assert await count(pool, "deliveries", "state = 'queued'") == 1
