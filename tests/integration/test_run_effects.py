"""What a run leaves beside its rows: its cause ahead of them, and its events once they are committed."""

import asyncio
from typing import Any
from uuid import uuid4

import orjson
import pytest
from psycopg import AsyncConnection

from engines.contract import HostError
from server.events import cause, run_outbox
from server.events.bus import EventBus
from server.events.envelope import Cause
from server.events.publisher import Publisher
from server.events.run_outbox import Relay, relay
from server.host import publishing
from server.host.api import HostApi, InvocationHost
from server.host.origin import Origin, origin_of
from server.postgres import effects
from server.postgres.tenants import Tenants, schema_of
from server.telemetry.metrics import Metrics
from tests.fix_effects import LIMITS, SETTINGS, Decoded, ask, begin, stored, waiting
from tests.fix_runs import eventually

RUN, TRIGGER = str(uuid4()), str(uuid4())
ORIGIN = Origin(run_id=RUN, event_id="e1", trigger_id=TRIGGER, depth=3)
CAUSE = Cause(run_id=RUN, trigger_id=TRIGGER, depth=3)


@pytest.fixture
async def host(hosts: HostApi, project: str) -> InvocationHost:
    """Of a run that an event started."""
    await ask(hosts.for_invocation(project, LIMITS), "db.query", "CREATE TABLE t (n int)")
    return hosts.for_invocation(project, LIMITS, origin=ORIGIN)


@pytest.fixture
def by_hand(hosts: HostApi, host: InvocationHost) -> InvocationHost:
    """Of a run that no event started, in the same project."""
    return hosts.for_invocation(host._project_id, LIMITS, origin=Origin(run_id=RUN))


def _nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


def test_what_a_run_comes_from() -> None:
    assert origin_of(RUN, None) == Origin(run_id=RUN, depth=1)
    told = {"id": "e", "type": "a", "trigger_id": TRIGGER, "delivery_id": "d", "attempt": 1}
    assert origin_of(RUN, orjson.dumps(told)) == Origin(run_id=RUN, event_id="e", trigger_id=TRIGGER, depth=1)
    told |= {"cause": {"run_id": RUN, "depth": 4}}
    assert origin_of(RUN, orjson.dumps(told)).cause == Cause(run_id=RUN, trigger_id=TRIGGER, depth=5)
    told |= {"cause": {"run_id": RUN, "depth": 1_000}}
    assert origin_of(RUN, orjson.dumps(told)).depth == 1_000


def test_steps_of_workflows_do_once_each_their_own() -> None:
    def mark(run_id: str, node_id: str, attempt: int = 1, name: str = "") -> str:
        told = {"id": "e", "type": "a", "trigger_id": TRIGGER, "attempt": attempt}
        told |= {"workflow": {"run_id": run_id, "node_id": node_id}}
        return origin_of(str(uuid4()), orjson.dumps(told)).mark(name)

    other = str(uuid4())
    assert mark(RUN, "charge") == mark(RUN, "charge", attempt=2) == f"workflow/{RUN}/charge/"
    assert len({mark(RUN, "charge"), mark(RUN, "ship"), mark(other, "charge"), mark(RUN, "charge", name="n")}) == 4


class TestCause:
    def read(self, lines: list[str], tenants: Tenants, role: str) -> list[Cause | None]:
        """Of the messages among the lines."""
        told = [line.partition("content:")[2] for line in lines if line.startswith("message: transactional: 1")]
        return [cause.read(content.encode(), role, tenants.sealer) for content in told]

    async def test_it_goes_ahead_of_the_rows_of_a_query(
        self, host: InvocationHost, decoded: Decoded, tenants: Tenants
    ) -> None:
        await ask(host, "db.query", "INSERT INTO t VALUES ($1)", [1])
        begun, message, row, committed = await decoded.lines()
        assert (begun, committed) == ("BEGIN", "COMMIT")
        assert f"prefix: {effects.CAUSE_PREFIX}," in message
        assert "INSERT: n[integer]:1" in row
        role = schema_of(host._project_id)
        assert self.read([message], tenants, role) == [CAUSE]
        assert self.read([message], tenants, schema_of(str(uuid4()))) == [None]

    async def test_it_goes_ahead_of_the_rows_of_a_transaction_once(
        self, host: InvocationHost, decoded: Decoded, tenants: Tenants
    ) -> None:
        held = await begin(host)
        for number in range(3):
            await ask(host, "tx.query", 1, "INSERT INTO t VALUES ($1)", [number])
        await ask(host, "tx.commit", 1)
        await held
        lines = await decoded.lines()
        assert [line[:7] for line in lines] == ["BEGIN", "message", "table p", "table p", "table p", "COMMIT"]
        assert self.read(lines, tenants, schema_of(host._project_id)) == [CAUSE]

    async def test_types_that_are_asked_for_do_not_lose_it(self, host: InvocationHost, decoded: Decoded) -> None:
        await ask(host, "db.query", "CREATE TABLE words (w text)")
        await decoded.lines()
        await ask(host, "db.query", "INSERT INTO words VALUES ($1)", [5])
        assert [line[:7] for line in await decoded.lines()] == ["BEGIN", "message", "table p", "COMMIT"]

    async def test_what_looks_like_a_read_and_writes_has_it_and_is_done_once(
        self, host: InvocationHost, decoded: Decoded
    ) -> None:
        body = "INSERT INTO t VALUES (1); SELECT 1"
        await ask(host, "db.query", f"CREATE FUNCTION add_one() RETURNS int LANGUAGE sql AS '{body}'")
        await decoded.lines()
        for sql in ("SELECT add_one()", "SELECT add_one()", "WITH a AS (SELECT add_one()) TABLE a"):
            assert await ask(host, "db.query", sql) == [{"add_one": 1}]
            assert [line[:7] for line in await decoded.lines()] == ["BEGIN", "message", "table p", "COMMIT"]

    async def test_a_read_commits_nothing(self, host: InvocationHost, admin: AsyncConnection, decoded: Decoded) -> None:
        await ask(host, "db.query", "INSERT INTO t VALUES (1)")
        before = await (await admin.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())")).fetchone()
        assert await ask(host, "db.query", "SELECT n FROM t WHERE n = $1", [1]) == [{"n": 1}]
        assert await ask(host, "db.query", "SELECT n FROM t WHERE n::text = $1", [1]) == [{"n": 1}]
        assert before == await (await admin.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())")).fetchone()

    @pytest.mark.parametrize(
        "sql",
        [
            "INSERT INTO t VALUES ($1)",
            "/* a */ merge INTO t USING (VALUES ($1::int)) AS v (n) ON false WHEN NOT MATCHED THEN INSERT VALUES (v.n)",
            "WITH a AS (INSERT INTO t VALUES ($1) RETURNING n) SELECT n::text FROM a",
        ],
    )
    async def test_a_run_that_no_event_started_has_its_own(
        self, by_hand: InvocationHost, decoded: Decoded, tenants: Tenants, sql: str
    ) -> None:
        await ask(by_hand, "db.query", sql, [1])
        lines = await decoded.lines()
        assert [line[:7] for line in lines] == ["BEGIN", "message", "table p", "COMMIT"]
        assert self.read(lines, tenants, schema_of(by_hand._project_id)) == [Cause(run_id=RUN, depth=1)]
        await ask(by_hand, "db.query", "CREATE TABLE words (w text)")
        await decoded.lines()
        await ask(by_hand, "db.query", "INSERT INTO words VALUES ($1)", [5])  # whose type is asked for
        assert [line[:7] for line in await decoded.lines()] == ["BEGIN", "message", "table p", "COMMIT"]

    async def test_a_transaction_of_a_run_that_no_event_started_tells_it_with_its_first_change(
        self, by_hand: InvocationHost, decoded: Decoded
    ) -> None:
        for changes in (0, 2):
            held = await begin(by_hand, changes)
            assert await ask(by_hand, "tx.query", changes, "SELECT n FROM t WHERE n = $1", [7]) == []
            for _ in range(changes):
                await ask(by_hand, "tx.query", changes, "INSERT INTO t VALUES ($1)", [7])
            await ask(by_hand, "tx.commit", changes)
            await held
            found = [line[:7] for line in await decoded.lines()]
            assert found == (["BEGIN", "message", "table p", "table p", "COMMIT"] if changes else [])

    async def test_a_run_that_no_event_started_may_end_transactions_itself(
        self, by_hand: InvocationHost, decoded: Decoded
    ) -> None:
        body = "BEGIN INSERT INTO t VALUES (1); COMMIT; END"
        await ask(by_hand, "db.query", f"CREATE PROCEDURE ending() LANGUAGE plpgsql AS '{body}'")
        await decoded.lines()
        await ask(by_hand, "db.query", "CALL ending()")
        assert [line[:7] for line in await decoded.lines()] == ["BEGIN", "table p", "COMMIT"]
        await ask(by_hand, "db.query", "VACUUM t")

    @pytest.mark.parametrize("sql", ["COMMIT", "CALL ending()", "DO 'BEGIN COMMIT; INSERT INTO t VALUES (1); END'"])
    async def test_it_cannot_be_left_behind(self, host: InvocationHost, decoded: Decoded, sql: str) -> None:
        body = "BEGIN INSERT INTO t VALUES (1); COMMIT; INSERT INTO t VALUES (2); END"
        await ask(host, "db.query", f"CREATE PROCEDURE ending() LANGUAGE plpgsql AS '{body}'")
        await decoded.lines()
        with pytest.raises(HostError) as caught:
            await ask(host, "db.query", sql)
        assert caught.value.code in ("sql_unsupported", "sql_2D000")
        assert await decoded.lines() == []


class TestPublish:
    async def test_it_is_in_the_stream_when_the_promise_resolves(
        self, host: InvocationHost, event_bus: EventBus
    ) -> None:
        answer = await ask(host, "events.publish", "order.paid", {"amount": 5}, {"id": "x", "subject": "order/7"})
        assert answer == {"id": "x", "duplicate": False}
        (event,) = await stored(event_bus)
        assert (event.id, event.type, event.project_id, event.source) == (
            "x",
            "order.paid",
            host._project_id,
            "function",
        )
        assert (event.data.value, event.subject, event.cause) == ({"amount": 5}, "order/7", CAUSE)
        assert await ask(host, "events.publish", "order.paid", 6, {"id": "x"}) == {"id": "x", "duplicate": True}

    async def test_what_is_nested_without_end(self, host: InvocationHost) -> None:
        deep = b"[" * 900 + b"]" * 900
        for op, args in (("events.publish", b'["a",%b]' % deep), ("tx.commit", b"[1,%b]" % deep)):
            held = await begin(host)
            with pytest.raises(HostError) as caught:
                await host.call(op, args)
            assert caught.value.code == "invalid_argument"
            await ask(host, "tx.rollback", 1)
            await held

    async def test_a_run_that_no_event_started_is_a_cause_too(
        self, hosts: HostApi, host: InvocationHost, event_bus: EventBus
    ) -> None:
        await ask(hosts.for_invocation(host._project_id, LIMITS, origin=Origin(run_id=RUN)), "events.publish", "a", 1)
        (event,) = await stored(event_bus)
        assert event.cause == Cause(run_id=RUN, depth=1)

    async def test_so_many_of_a_run_and_no_more(
        self, host: InvocationHost, event_bus: EventBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(publishing, "MAX_EVENTS", 3)
        answers = await asyncio.gather(*(ask(host, "events.publish", "a", n) for n in range(5)), return_exceptions=True)
        refusals = [why for why in answers if isinstance(why, HostError)]
        assert [why.code for why in refusals] == ["events_limit"] * 2
        assert "event 4 of 3 allowed" in refusals[0].message
        assert len(await stored(event_bus)) == 3

    @pytest.mark.parametrize(
        ("args", "part"),
        [
            (["cdc.INSERT.t", 1], "made by the service alone"),
            (["cron", 1], "made by the service alone"),
            (["", 1], "type is missing"),
            (["a b", 1], "type is"),
            ([5, 1], "type must be a string"),
            (["a", 1, {"id": "a b"}], "id is"),
            (["a", 1, {"id": 5}], "id must be a string"),
            (["a", 1, {"subject": "x" * 300}], "subject"),
            (["a", 1, {"source": "s"}], "unknown field 'source'"),
            (["a", 1, {"cause": {"depth": 1}}], "unknown field 'cause'"),
            (["a", "x" * 1_000_001], "at most 1000000 are allowed"),
            (["a", _nested(65)], "nested deeper than 64"),
            (["a", _nested(250)], "nested deeper than 64"),
            (["a"], "takes 2 to 4 arguments"),
            (["a", 1, {}, "1"], "number must be a whole number"),
        ],
    )
    async def test_what_cannot_be_an_event(self, host: InvocationHost, args: list[object], part: str) -> None:
        with pytest.raises(HostError) as caught:
            await ask(host, "events.publish", *args)
        assert caught.value.code in ("invalid_argument", "transaction_ended")
        assert part in caught.value.message


class TestOutbox:
    @pytest.fixture
    def publisher(self, event_bus: EventBus) -> Publisher:
        return Publisher(event_bus, SETTINGS)

    async def test_what_is_committed_is_published_and_nothing_else(
        self, host: InvocationHost, admin: AsyncConnection, event_bus: EventBus, publisher: Publisher
    ) -> None:
        for number, end in enumerate(("tx.rollback", "tx.commit", "tx.rollback")):
            held = await begin(host, number)
            await ask(host, "tx.query", number, "INSERT INTO t VALUES ($1)", [number])
            await ask(host, "events.publish", "order.paid", number, {"id": f"e{number}"}, number)
            await ask(host, "events.publish", "order.paid", number, {"transactional": True})
            assert await waiting(admin) == (2 if number == 2 else 0)
            await ask(host, end, number)
            await held
        assert await relay(admin, publisher) == 2
        assert await relay(admin, publisher) == 0
        found = await stored(event_bus)
        assert [(event.data.value, event.cause, event.source) for event in found] == [(1, CAUSE, "function")] * 2
        assert found[0].id == "e1"

    async def test_without_a_transaction_nothing_is_transactional(
        self, host: InvocationHost, admin: AsyncConnection
    ) -> None:
        with pytest.raises(HostError) as caught:
            await ask(host, "events.publish", "a", 1, {"transactional": True})
        assert caught.value.code == "no_transaction"
        assert await waiting(admin) == 0

    async def test_they_keep_their_order(
        self, host: InvocationHost, admin: AsyncConnection, event_bus: EventBus, publisher: Publisher
    ) -> None:
        held = await begin(host)
        for number in range(90):
            await ask(host, "events.publish", f"a.n{number % 7}", number, None, 1)
        await ask(host, "tx.commit", 1)
        await held
        while await relay(admin, publisher):
            pass
        assert [event.data.value for event in await stored(event_bus)] == list(range(90))

    async def test_no_project_waits_for_the_many_of_another(
        self,
        host: InvocationHost,
        hosts: HostApi,
        admin: AsyncConnection,
        event_bus: EventBus,
        publisher: Publisher,
        shared_project: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(run_outbox, "BATCH", 6)
        for run, count in ((host, 50), (hosts.for_invocation(shared_project, LIMITS), 3)):
            held = await begin(run)
            for number in range(count):
                await ask(run, "events.publish", "a", number, None, 1)
            await ask(run, "tx.commit", 1)
            await held
        assert await relay(admin, publisher) == 6
        found = await stored(event_bus)
        for project in (host._project_id, shared_project):
            assert [event.data.value for event in found if event.project_id == project] == [0, 1, 2]
        await admin.execute("DELETE FROM atlas_kept.outbox")

    async def test_a_worker_is_woken_by_a_commit(
        self, host: InvocationHost, admin: AsyncConnection, event_bus: EventBus, publisher: Publisher, tenants: Tenants
    ) -> None:
        relays = [Relay(tenants, event_bus, publisher, poll_s=600) for _ in range(2)]
        for each in relays:
            await each.start()
        for number in range(3):
            held = await begin(host, number)
            await ask(host, "events.publish", "a", number, None, number)
            await ask(host, "tx.commit", number)
            await held

        async def all_there() -> bool:
            return len(await stored(event_bus)) == 3 and await waiting(admin) == 0

        await eventually(all_there)
        for each in relays:
            await each.close()

    async def test_one_that_nats_never_takes_is_set_aside(
        self, host: InvocationHost, admin: AsyncConnection, event_bus: EventBus, publisher: Publisher
    ) -> None:
        held = await begin(host)
        for number in range(3):
            await ask(host, "events.publish", "a", number, None, 1)
        await ask(host, "tx.commit", 1)
        await held
        await admin.execute("UPDATE atlas_kept.outbox SET event = 'damaged' WHERE event LIKE '%%\"data\":1%%'")
        metrics = Metrics()
        assert await relay(admin, publisher, metrics) == 3
        counted = {record.name[1:]: record.doubles for record in metrics.numbers.records()}
        assert counted == {("functions", "published"): (2,), ("functions", "refused"): (1,)}
        assert [event.data.value for event in await stored(event_bus)] == [0, 2]
        row = await (await admin.execute("DELETE FROM atlas_kept.outbox RETURNING refused")).fetchone()
        assert row is not None
        assert "not an event" in row[0]

    async def test_a_project_that_is_dropped_leaves_nothing(
        self, host: InvocationHost, admin: AsyncConnection, tenants: Tenants
    ) -> None:
        held = await begin(host, once="")
        await ask(host, "events.publish", "a", 1, None, 1)
        await ask(host, "tx.commit", 1, 5)
        await held
        await tenants.drop(host._project_id)
        for table in ("outbox", "mark"):
            cursor = await admin.execute(
                f"SELECT FROM atlas_kept.{table} WHERE role = %s", [schema_of(host._project_id)]
            )
            assert cursor.rowcount == 0

    async def test_marks_are_kept_for_so_long(self, host: InvocationHost, admin: AsyncConnection) -> None:
        for number, once in enumerate(("old", "new")):
            held = await begin(host, number, once=once)
            await ask(host, "tx.commit", number, None)
            await held
        role = schema_of(host._project_id)
        await admin.execute(
            "UPDATE atlas_kept.mark SET set_at = now() - make_interval(days => %s) WHERE role = %s AND key ~ '/old$'",
            [int(run_outbox.KEEP_DAYS) + 1, role],
        )
        await effects.sweep(admin, run_outbox.KEEP_DAYS)
        cursor = await admin.execute("SELECT key FROM atlas_kept.mark WHERE role = %s", [role])
        assert [key for (key,) in await cursor.fetchall()] == [f"event/{TRIGGER}/e1/new"]

    @pytest.mark.parametrize(
        ("rows", "event_bytes"),
        [(effects.MAX_WAITING - 1, 1), (1, effects.MAX_WAITING_BYTES - 1_000)],
        ids=["events", "bytes"],
    )
    async def test_only_so_many_of_a_project_wait(
        self,
        host: InvocationHost,
        hosts: HostApi,
        admin: AsyncConnection,
        shared_project: str,
        rows: int,
        event_bytes: int,
    ) -> None:
        await admin.execute(
            "INSERT INTO atlas_kept.outbox (role, event) SELECT %s, repeat('x', %s) FROM generate_series(1, %s)",
            [schema_of(host._project_id), event_bytes, rows],
        )
        held = await begin(host)
        await ask(host, "tx.query", 1, "INSERT INTO t VALUES (1)")
        await ask(host, "events.publish", "a", 1, None, 1)
        with pytest.raises(HostError) as caught:
            await ask(host, "events.publish", "a", "x" * 500, None, 1)
        assert caught.value.code == "outbox_full"
        assert f"at most {effects.MAX_WAITING} with {effects.MAX_WAITING_BYTES} bytes may wait" in caught.value.message
        await held
        assert await waiting(admin) == rows
        assert await ask(host, "db.query", "SELECT n FROM t") == []
        other = hosts.for_invocation(shared_project, LIMITS)
        held = await begin(other)
        await ask(other, "events.publish", "a", 1, None, 1)
        await ask(other, "tx.commit", 1)
        await held
        await admin.execute("DELETE FROM atlas_kept.outbox")

    async def test_what_was_set_aside_is_kept_for_so_long(
        self, host: InvocationHost, admin: AsyncConnection, publisher: Publisher
    ) -> None:
        held = await begin(host)
        for number in range(4):
            await ask(host, "events.publish", "a", number, None, 1)
        await ask(host, "tx.commit", 1)
        await held
        await admin.execute("UPDATE atlas_kept.outbox SET event = 'damaged' WHERE event NOT LIKE '%%\"data\":3%%'")
        assert await relay(admin, publisher) == 4
        cursor = await admin.execute("SELECT sequence FROM atlas_kept.outbox WHERE refused IS NOT NULL")
        old, *kept = sorted(await cursor.fetchall())
        await admin.execute(
            "UPDATE atlas_kept.outbox SET refused_at = now() - make_interval(days => %s) WHERE sequence = %s",
            [int(run_outbox.KEEP_DAYS) + 1, *old],
        )
        await effects.sweep(admin, run_outbox.KEEP_DAYS)
        cursor = await admin.execute("SELECT sequence FROM atlas_kept.outbox")
        assert sorted(await cursor.fetchall()) == kept

    async def test_looking_for_what_waits_walks_none_that_was_set_aside(
        self, host: InvocationHost, admin: AsyncConnection
    ) -> None:
        role = schema_of(host._project_id)
        await admin.execute(
            "INSERT INTO atlas_kept.outbox (role, event, refused, refused_at)"
            " SELECT %s, 'damaged', 'why', now() FROM generate_series(1, 20000)",
            [role],
        )
        await admin.execute("ANALYZE atlas_kept.outbox")
        plan = await (
            await admin.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {run_outbox._WAITING}", [100, 200, 1_000_000])
        ).fetchone()
        await admin.execute("DELETE FROM atlas_kept.outbox")
        assert plan is not None
        assert _walked(plan[0][0]["Plan"]) < 100


def _walked(plan: dict[str, Any]) -> int:
    """Rows that were read, kept or not."""
    own = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
    return int(own * plan["Actual Loops"]) + sum(_walked(part) for part in plan.get("Plans", []))
