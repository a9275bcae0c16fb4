# ruff: noqa: E501 (programs in strings)
"""Functions that are `exactly_once`, in a real sandbox on a real Postgres: what of a run is kept, and how often."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import uuid4

import orjson
import pytest
import pytest_asyncio
from psycopg import AsyncConnection

from engines.contract import HostError, Outcome, Program, Result
from engines.quickjs.engine import QuickJS
from server.errors import Unavailable
from server.events import stream
from server.events.bus import EventBus
from server.events.publisher import Publisher
from server.events.run_outbox import relay
from server.host import run_transaction
from server.host.api import HostApi, InvocationHost
from server.host.database import Database
from server.host.fetch import Fetcher
from server.host.keyvalue import KeyValue
from server.host.origin import Origin
from server.host.publishing import Publishing
from server.invocations.exactly_once import DONE, run_once
from server.postgres.channel import ConnectionLost
from server.postgres.tenants import Tenants, schema_of
from tests.fix_effects import LIMITS, SETTINGS, Decoded, ask, stored
from tests.fix_runs import eventually
from tests.fix_sandbox import program, run

RUN = "11111111-1111-4111-8111-111111111111"
TRIGGER = "22222222-2222-4222-8222-222222222222"
pytestmark = pytest.mark.asyncio(loop_scope="module")

EVENT = Origin(run_id=RUN, event_id="e", trigger_id=TRIGGER, depth=3)
SLOW = "SELECT count(*) FROM generate_series(1, 1000000000)"
INSERT = 'await atlas.db.query("INSERT INTO orders (total) VALUES ($1)", [input ?? 1]);'


class Shop:
    """A project with a table, and attempts at runs of a function in it."""

    def __init__(self, engine: QuickJS, hosts: HostApi, project: str, bus: EventBus, admin: AsyncConnection) -> None:
        self.engine = engine
        self.hosts = hosts
        self.project = project
        self.bus = bus
        self.admin = admin
        self.outside = hosts.for_invocation(project, LIMITS)

    async def attempt(
        self, code: str, value: object = None, *, origin: Origin = EVENT, repeated: bool = True
    ) -> Result:
        whole = self.hosts.run_transaction(self.project, origin, repeated=repeated)
        host = self.hosts.for_invocation(self.project, LIMITS, origin=origin, whole=whole)
        return await run_once(whole, partial(run, self.engine, self.program(code), value, host=host))

    def program(self, code: str) -> Program:
        """Each is a function of its own, so that none meets another's code that is still warm."""
        return program(code, function=code)

    async def totals(self) -> list[Any]:
        rows = await ask(self.outside, "db.query", "SELECT total FROM orders ORDER BY id")
        return [row["total"] for row in rows]

    async def marks(self) -> int:
        return (await self.admin.execute("SELECT FROM atlas_kept.mark WHERE role = %s", [self.role])).rowcount

    @property
    def role(self) -> str:
        return schema_of(self.project)

    async def is_clean(self) -> bool:
        """No connection is in use; one that is cut may take a moment."""
        return repr(self.hosts.database._connections).startswith("<Connections 0 in use")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one_shop(tenants: Tenants, valkey_url: str, nats_url: str) -> AsyncIterator[Shop]:
    """For all tests of the module."""
    project = str(uuid4())
    await tenants.provision(project)
    bus, engine, database = EventBus(nats_url), QuickJS(spares=1, max_children=8), Database(tenants)
    await bus.start()
    await stream.ensure(bus, SETTINGS)
    await engine.start()
    hosts = HostApi(database, KeyValue(valkey_url), Fetcher(), publishing=Publishing(Publisher(bus, SETTINGS), bus))
    async with tenants.admin() as admin:
        yield Shop(engine, hosts, project, bus, admin)
    await hosts.keyvalue.close()
    await hosts.fetcher.close()
    await database.close()
    await engine.close()
    await bus.jetstream.delete_stream(stream.NAME)
    await bus.close()
    await tenants.drop(project)


@pytest_asyncio.fixture(loop_scope="module")
async def shop(one_shop: Shop) -> AsyncIterator[Shop]:
    """With an empty table, and nothing done yet."""
    for sql in (
        "DROP TABLE IF EXISTS orders CASCADE",
        "CREATE TABLE orders (id serial PRIMARY KEY, total numeric CHECK (total > 0))",
    ):
        await ask(one_shop.outside, "db.query", sql)
    await one_shop.admin.execute("DELETE FROM atlas_kept.mark WHERE role = %s", [one_shop.role])
    yield one_shop
    await eventually(one_shop.is_clean)


def failure(result: Result) -> tuple[str | None, str]:
    assert result.outcome is Outcome.EXCEPTION, result
    assert result.error is not None
    return result.error.code, result.error.message


class TestWhatIsKept:
    async def test_it_is_done_once_for_all_attempts(self, shop: Shop) -> None:
        code = f"console.log('called'); {INSERT} return [ctx.invocation_id ?? null, Math.random(), 12345678901234567890, '\\ud800']"
        first = await shop.attempt(code, 5)
        again = await shop.attempt(code, 6, origin=replace(EVENT, run_id=TRIGGER))
        assert (first.outcome, again.outcome, again.value) == (Outcome.OK, Outcome.OK, first.value)
        assert ([line.text for line in first.logs], again.logs) == (["called"], (DONE,))
        assert await shop.totals() == [5]
        others = [
            replace(EVENT, event_id="f"),
            replace(EVENT, trigger_id=RUN),
            replace(EVENT, step="run/node"),
            Origin(run_id=RUN),
        ]
        for number, origin in enumerate(others):
            for _ in range(2):
                assert (await shop.attempt(code, number + 1, origin=origin)).outcome is Outcome.OK
        assert await shop.totals() == [5, 1, 2, 3, 4]

    @pytest.mark.parametrize(
        ("code", "answer"), [("", b"null"), ("return {a: [1.0, '\\u0000']}", b'{"a":[1,"\\u0000"]}')]
    )
    async def test_one_that_does_nothing_in_the_database_has_an_answer_too(
        self, shop: Shop, code: str, answer: bytes
    ) -> None:
        first = await shop.attempt(code)
        again = await shop.attempt("throw new Error('called')")
        assert (first.value, again.value, again.logs) == (answer, answer, (DONE,))

    async def test_a_response_is_answered_again(self, shop: Shop) -> None:
        code = f"{INSERT} return new Response(new Uint8Array([0, 255]), {{status: 201, headers: {{'x-a': 'é'}}}})"
        first = await shop.attempt(code)
        again = await shop.attempt(code)
        assert first.response is not None
        assert (first.response.status, first.response.body) == (201, b"\0\xff")
        assert again.response == first.response
        assert await shop.totals() == [1]

    async def test_a_response_that_is_a_failure_keeps_nothing(self, shop: Shop) -> None:
        for status in (400, 503):
            result = await shop.attempt(f"{INSERT} return new Response('no', {{status: {status}}})")
            assert result.response is not None
            assert result.response.status == status
        assert await shop.totals() == []
        assert (await shop.attempt(f"{INSERT} return 1")).value == b"1"
        assert await shop.totals() == [1]

    async def test_one_that_throws_keeps_nothing(self, shop: Shop) -> None:
        assert failure(await shop.attempt(f"{INSERT} throw new Error('no')")) == (None, "no")
        assert await shop.totals() == []
        assert (await shop.attempt(f"{INSERT} return 2")).value == b"2"
        assert await shop.totals() == [1]

    async def test_its_events_are_published_with_it(self, shop: Shop) -> None:
        code = """await atlas.events.publish('a', input, {transactional: true});
          await atlas.db.transaction((tx) => tx.publish('b', input)); if (input === 1) throw 1"""
        for value in (1, 2, 3):
            await shop.attempt(code, value)
        assert await relay(shop.admin, Publisher(shop.bus, SETTINGS)) == 2
        told = [(event.type, event.data.value, event.cause) for event in await stored(shop.bus)]
        assert sorted(told, key=str) == [("a", 2, EVENT.cause), ("b", 2, EVENT.cause)]

    async def test_its_changes_have_one_cause(self, shop: Shop) -> None:
        await shop.admin.execute("SELECT pg_create_logical_replication_slot('effects', 'test_decoding')")
        try:
            await shop.attempt(f"{INSERT} {INSERT}")
            lines = [line.partition(":")[0] for line in await Decoded(shop.admin).lines()]
        finally:
            await shop.admin.execute("SELECT pg_drop_replication_slot('effects')")
        assert [line[:7] for line in lines if "atlas_kept" not in line] == [
            "BEGIN",
            "message",
            "table p",
            "table p",
            "COMMIT",
        ]

    async def test_called_by_hand_it_is_a_transaction_that_is_not_remembered(self, shop: Shop) -> None:
        by_hand = Origin(run_id=RUN)
        await shop.attempt(f"{INSERT} throw 1", origin=by_hand, repeated=False)
        for _ in range(2):
            assert (await shop.attempt(f"{INSERT} return 1", origin=by_hand, repeated=False)).value == b"1"
        assert (await shop.attempt("return 2", origin=by_hand, repeated=False)).value == b"2"
        assert await shop.totals() == [1, 1]
        assert await shop.marks() == 0


class TestWhatEndsIt:
    async def test_an_sql_error_that_is_caught_ends_it_all_the_same(self, shop: Shop) -> None:
        code = f"""{INSERT} try {{ await atlas.db.query("INSERT INTO orders (total) VALUES (0)") }} catch (e) {{ }}
          try {{ {INSERT} }} catch (e) {{ console.log(e.code) }} return 1"""
        result = await shop.attempt(code)
        code_, message = failure(result)
        assert code_ == "transaction_rolled_back"
        assert (
            "The transaction of this exactly_once function: rolled back, because a statement failed: new row" in message
        )
        assert [line.text for line in result.logs] == ["transaction_rolled_back"]
        assert await shop.totals() == []

    async def test_a_constraint_that_refuses_the_commit(self, shop: Shop) -> None:
        await ask(
            shop.outside,
            "db.query",
            "CREATE TABLE IF NOT EXISTS c (n int REFERENCES orders DEFERRABLE INITIALLY DEFERRED)",
        )
        code = f'{INSERT} await atlas.db.query("INSERT INTO c VALUES (77)"); return 1'
        assert failure(await shop.attempt(code))[0] == "sql_23503"
        assert await shop.totals() == []

    @pytest.mark.parametrize("code", [f"await atlas.db.query('{SLOW}')", "for (;;) await atlas.db.query('SELECT 1')"])
    async def test_it_is_open_for_so_long_and_no_longer(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch, code: str
    ) -> None:
        monkeypatch.setattr(run_transaction, "MAX_MS", 200)
        told = failure(await shop.attempt(f"{INSERT} {code}"))
        assert told[0] == "transaction_timeout"
        assert "exactly_once function: open for 200 ms, which is the most; rolled back" in told[1]
        assert await shop.totals() == []

    async def test_the_end_of_its_run(self, shop: Shop) -> None:
        attempt = asyncio.create_task(shop.attempt(f"{INSERT} await atlas.db.query('{SLOW}')"))

        async def runs() -> bool:
            sql = "SELECT FROM pg_stat_activity WHERE query = %s AND state = 'active' AND usename = %s"
            return (await shop.admin.execute(sql, [SLOW, shop.role])).rowcount == 1

        await eventually(runs)
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        assert await shop.totals() == []

    async def test_a_database_that_is_away_lets_nothing_run(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        async def away(project_id: str) -> None:
            raise ConnectionLost("away")

        await shop.hosts.database.forget(shop.project)
        with monkeypatch.context() as patched:
            patched.setattr(shop.hosts.database._connections, "_connect", away)
            with pytest.raises(Unavailable, match="cannot be known now"):
                await shop.attempt("return 1")
            told = failure(await shop.attempt(f"{INSERT}", origin=Origin(run_id=RUN), repeated=False))
        assert told[0] == "unavailable"
        assert (await shop.attempt(f"{INSERT} return 1")).value == b"1"


class TestTwoAtATime:
    """A lease that ran out while its run goes on."""

    async def test_the_slower_one_answers_what_the_faster_did(self, shop: Shop) -> None:
        whole = shop.hosts.run_transaction(shop.project, EVENT, repeated=True)
        fast = shop.hosts.for_invocation(shop.project, LIMITS, origin=EVENT, whole=whole)
        await ask(fast, "db.query", "INSERT INTO orders (total) VALUES (7)")
        slow = asyncio.create_task(
            shop.attempt(f"console.log('called'); try {{ {INSERT} }} catch (e) {{ return e.code }}")
        )

        async def waits() -> bool:
            sql = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = %s"
            return (await shop.admin.execute(sql, [shop.role])).rowcount == 1

        await eventually(waits)
        await whole.commit('{"value":"fast"}')
        await whole.close()
        result = await slow
        assert (result.outcome, result.value) == (Outcome.OK, b'"fast"')
        assert [line.text for line in result.logs] == ["called", DONE.text]
        assert await shop.totals() == [7]

    @pytest.mark.parametrize("code", ["return 1", "throw 1"])
    async def test_also_when_it_sees_that_at_its_end(self, shop: Shop, code: str) -> None:
        async def meanwhile(faster: str) -> Result:
            assert (await shop.attempt(faster)).value == b'"fast"'
            return await run(shop.engine, shop.program(code))

        whole = shop.hosts.run_transaction(shop.project, EVENT, repeated=True)
        result = await run_once(whole, partial(meanwhile, f"{INSERT} return 'fast'"))
        expected = (Outcome.OK, b'"fast"') if code == "return 1" else (Outcome.EXCEPTION, b"null")
        assert (result.outcome, result.value) == expected
        assert await shop.totals() == [1]


class TestTransactionsWithin:
    async def test_they_are_part_of_it(self, shop: Shop) -> None:
        code = """const ids = [];
          for (let n = 1; n < 3; n++) ids.push(await atlas.db.transaction(async (tx) => {
            const rows = await tx.query("INSERT INTO orders (total) VALUES ($1) RETURNING total", [n]); return rows[0].total }));
          const seen = await atlas.db.query("SELECT count(*)::int AS n FROM orders");
          if (input === "fail") throw 1; return [ids, seen[0].n]"""
        await shop.attempt(code, "fail")
        assert await shop.totals() == []
        assert (await shop.attempt(code)).value == b"[[1,2],2]"
        assert await shop.totals() == [1, 2]

    @pytest.mark.parametrize(
        "within",
        ["async () => { throw new Error('no') }", "(tx) => tx.query('SELECT 1/0')", "(tx) => tx.query('COMMIT')"],
    )
    async def test_one_that_fails_ends_it_all(self, shop: Shop, within: str) -> None:
        code = f"{INSERT} try {{ await atlas.db.transaction({within}) }} catch (e) {{ }} return 1"
        assert failure(await shop.attempt(code))[0] == "transaction_rolled_back"
        assert await shop.totals() == []

    async def test_one_at_a_time(self, shop: Shop) -> None:
        code = f"""const codes = [];
          await atlas.db.transaction(async () => {{
            {INSERT} try {{ await atlas.db.transaction(() => 1) }} catch (e) {{ codes.push(e.code) }} }});
          return codes"""
        assert (await shop.attempt(code)).value == b'["transaction_open"]'
        assert await shop.totals() == [1]

    async def test_what_was_done_by_name_before_is_not_done_again(self, shop: Shop) -> None:
        """By an attempt at a version that was not yet exactly_once."""
        charge = """const told = await atlas.db.transaction(async (tx) => {
          await tx.query("INSERT INTO orders (total) VALUES (1)"); return ["charged", input] }, {exactlyOnce: 'charge'});"""
        host = shop.hosts.for_invocation(shop.project, LIMITS, origin=EVENT)
        assert (await run(shop.engine, shop.program(f"{charge} throw 1"), 1, host=host)).outcome is Outcome.EXCEPTION
        assert (await shop.attempt(f"{charge} {INSERT} return told", 2)).value == b'["charged",1]'
        assert await shop.totals() == [1, 2]
        other = replace(EVENT, event_id="f")
        assert (await shop.attempt(f"{charge} return told", 3, origin=other)).value == b'["charged",3]'
        host = shop.hosts.for_invocation(shop.project, LIMITS, origin=other)
        assert (await run(shop.engine, shop.program(f"{charge} return told;"), 4, host=host)).value == b'["charged",3]'
        assert await shop.totals() == [1, 2, 1]


class TestAttacks:
    @pytest.mark.parametrize(
        "sql",
        ["COMMIT", "ROLLBACK", "END", "/**/;COMMIT AND CHAIN", "SAVEPOINT guard", "PREPARE TRANSACTION 'x'", "BEGIN"],
    )
    async def test_it_is_not_ended_from_within(self, shop: Shop, sql: str) -> None:
        code = f"""{INSERT} try {{ await atlas.db.query({sql!r}) }} catch (e) {{ console.log(e.code) }} throw new Error('end')"""
        result = await shop.attempt(code)
        assert failure(result) == (None, "end")
        assert [line.text for line in result.logs] == ["sql_unsupported"]
        assert await shop.totals() == []

    @pytest.mark.parametrize("sql", ["DO 'BEGIN COMMIT; END'", "CALL ending()", "SELECT 1; COMMIT", "SET ROLE none"])
    async def test_what_would_end_it_fails_it(self, shop: Shop, sql: str) -> None:
        await ask(
            shop.outside, "db.query", "CREATE OR REPLACE PROCEDURE ending() LANGUAGE plpgsql AS 'BEGIN COMMIT; END'"
        )
        code = f"{INSERT} try {{ await atlas.db.query({orjson.dumps(sql).decode()}) }} catch (e) {{ }} return 1"
        assert failure(await shop.attempt(code))[0] == "transaction_rolled_back"
        assert await shop.totals() == []

    async def test_a_sandbox_that_was_taken_over_commits_nothing_early(self, shop: Shop) -> None:
        """It may call whatever the host offers, in any order."""
        whole = shop.hosts.run_transaction(shop.project, EVENT, repeated=True)
        host = shop.hosts.for_invocation(shop.project, LIMITS, origin=EVENT, whole=whole)
        await ask(host, "db.query", "INSERT INTO orders (total) VALUES (1)")
        for op, number in (("tx.commit", 1), ("tx.commit", 0), ("tx.rollback", 1), ("tx.begin", -1)):
            assert (await refused(host, op, number)).code == "transaction_ended"
        opening = asyncio.create_task(ask(host, "tx.open", 1, {"exactly_once": "x"}))
        await asyncio.sleep(0)
        await ask(host, "tx.begin", 1)
        await ask(host, "tx.commit", 1, "told")
        await opening
        for op in ("tx.commit", "tx.query"):
            assert (await refused(host, op, 1, "SELECT 1")).code == "transaction_ended"
        await ask(host, "tx.rollback", 1)
        assert await shop.totals() == []
        await ask(host, "db.query", "INSERT INTO orders (total) VALUES (2)")
        await whole.commit('{"value":1}')
        await whole.close()
        assert await shop.totals() == [1, 2]
        assert (await refused(host, "db.query", "INSERT INTO orders (total) VALUES (3)")).code == "transaction_ended"
        assert await shop.totals() == [1, 2]

    @pytest.mark.parametrize(
        "left",
        [
            f"atlas.db.query('{SLOW}');",
            f"for (let n = 0; n < 20; n++) atlas.db.query('{SLOW}');",
            "atlas.db.transaction(() => new Promise(() => {}));",
            f"atlas.db.transaction((tx) => tx.query('{SLOW}'));",
            f"atlas.db.query('{SLOW}'); atlas.events.publish('a', 1, {{transactional: true}});",
        ],
    )
    async def test_what_it_does_not_wait_for_is_not_half_done(self, shop: Shop, left: str) -> None:
        code = f"{INSERT} {left} await atlas.kv.get('k'); await atlas.kv.get('k'); return 1"
        assert failure(await shop.attempt(code))[0] == "not_awaited"
        assert await shop.totals() == []

    async def test_a_transaction_that_fails_unheard_fails_it(self, shop: Shop) -> None:
        code = f"""{INSERT} const slow = atlas.db.query("SELECT count(*) FROM generate_series(1, 200000)");
          atlas.db.transaction(() => {{ throw 1 }}).catch(() => {{}}); await slow; return 1"""
        assert failure(await shop.attempt(code))[0] in ("not_awaited", "transaction_rolled_back")
        assert await shop.totals() == []

    async def test_what_never_left_the_sandbox_is_not_part_of_it(self, shop: Shop) -> None:
        late = 'const late = () => atlas.db.query("INSERT INTO orders (total) VALUES (66)").catch(() => {});'
        code = f"{late} {INSERT} setTimeout(late, 0); Promise.resolve().then(late); late(); return 1"
        assert (await shop.attempt(code)).value == b"1"
        assert await shop.totals() == [1]
        assert (await shop.attempt("return 2", origin=replace(EVENT, event_id="f"))).value == b"2"
        assert await shop.totals() == [1]

    @pytest.mark.parametrize("code", ["return 1", "throw 1"])
    async def test_settings_it_leaves_are_gone_with_it(self, shop: Shop, code: str) -> None:
        setting = "DO 'BEGIN SET search_path = pg_catalog; SET statement_timeout = 1234; END'"
        await shop.attempt(f'await atlas.db.query("{setting}"); {code}')
        assert await ask(shop.outside, "db.query", "SHOW statement_timeout") == [{"statement_timeout": "65s"}]

    async def test_a_connection_for_all_that_it_does_at_a_time(self, shop: Shop) -> None:
        code = """await Promise.all(Array.from({length: 30}, (_, n) => atlas.db.query("INSERT INTO orders (total) VALUES ($1)", [n + 1])));
          return 1"""
        assert (await shop.attempt(code)).value == b"1"
        assert await shop.totals() == list(range(1, 31))


async def refused(host: InvocationHost, op: str, *args: object) -> HostError:
    with pytest.raises(HostError) as caught:
        await ask(host, op, *args)
    return caught.value
