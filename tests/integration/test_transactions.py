"""atlas.db.transaction on a real Postgres: what is committed, what is not, and what becomes of the connection."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from engines.contract import HostError, Limits
from server.host import transaction
from server.host.api import HostApi, InvocationHost
from server.host.connections import PER_PROJECT
from server.host.database import Database
from server.host.fetch import Fetcher
from server.host.keyvalue import KeyValue
from server.host.origin import Origin
from server.postgres.tenants import Tenants
from tests.fix_runs import eventually

LIMITS = Limits(wall_ms=20_000, cpu_ms=1_000, memory_bytes=1, fetch_calls=2)


@pytest.fixture
async def api(database: Database, valkey_url: str) -> AsyncIterator[HostApi]:
    found = HostApi(database, KeyValue(valkey_url), Fetcher())
    yield found
    await found.keyvalue.close()
    await found.fetcher.close()


@pytest.fixture
async def host(api: HostApi, project: str) -> InvocationHost:
    found = api.for_invocation(project, LIMITS)
    await call(found, "db.query", "CREATE TABLE t (n int PRIMARY KEY, v jsonb, CHECK (n < 100))")
    return found


async def call(host: InvocationHost, op: str, *args: object) -> Any:
    return orjson.loads(await host.call(op, orjson.dumps(args)))


async def refused(host: InvocationHost, op: str, *args: object) -> HostError:
    with pytest.raises(HostError) as caught:
        await call(host, op, *args)
    return caught.value


async def begin(host: InvocationHost, number: int = 1, once: str | None = None) -> asyncio.Task[Any]:
    """The call that holds it."""
    held = asyncio.create_task(call(host, "tx.open", number, {"exactly_once": once}))
    await asyncio.sleep(0)
    assert await call(host, "tx.begin", number) is None
    return held


async def numbers(host: InvocationHost) -> list[int]:
    return [row["n"] for row in await call(host, "db.query", "SELECT n FROM t ORDER BY n")]


async def is_clean(api: HostApi) -> bool:
    return repr(api.database._connections).startswith("<Connections 0 in use")


async def test_what_is_committed_is_seen_then_and_not_before(host: InvocationHost, api: HostApi) -> None:
    held = await begin(host)
    assert await call(host, "tx.query", 1, "INSERT INTO t VALUES (1), (2)") == []
    assert await call(host, "tx.query", 1, "SELECT sum(n) AS s FROM t WHERE n > $1", [0]) == [{"s": 3}]
    assert await numbers(host) == []
    await call(host, "tx.commit", 1)
    assert await held is None
    assert await numbers(host) == [1, 2]
    assert await is_clean(api)


async def test_one_that_is_rolled_back_leaves_nothing(host: InvocationHost, api: HostApi) -> None:
    held = await begin(host)
    await call(host, "tx.query", 1, "INSERT INTO t VALUES (1)")
    await call(host, "tx.rollback", 1)
    await held
    assert await numbers(host) == []
    assert (await refused(host, "tx.query", 1, "SELECT 1")).code == "transaction_ended"
    assert (await refused(host, "tx.commit", 1)).code == "transaction_ended"
    await call(host, "tx.rollback", 1)
    assert await is_clean(api)


async def test_one_in_which_nothing_was_done(host: InvocationHost, api: HostApi) -> None:
    for number, end in enumerate(("tx.commit", "tx.rollback")):
        held = await begin(host, number)
        await call(host, end, number)
        await held
    assert await is_clean(api)


async def test_parameters_have_the_types_they_have_in_a_query(host: InvocationHost) -> None:
    held = await begin(host)
    await call(host, "tx.query", 1, "CREATE TABLE words (w text, ids uuid[], j jsonb)")
    ids = ["00000000-0000-4000-8000-000000000001"]
    insert = "INSERT INTO words VALUES ($1, $2, $3) RETURNING *"
    assert await call(host, "tx.query", 1, insert, [5, ids, [1]]) == [{"w": "5", "ids": ids, "j": [1]}]
    assert await call(host, "tx.query", 1, "SELECT $1 IS NULL AS n", [None]) == [{"n": True}]
    await call(host, "tx.commit", 1)
    await held
    assert await call(host, "db.query", "SELECT w FROM words") == [{"w": "5"}]


async def test_a_statement_that_fails_ends_it(host: InvocationHost, api: HostApi) -> None:
    held = await begin(host)
    await call(host, "tx.query", 1, "INSERT INTO t VALUES ($1)", [1])
    assert (await refused(host, "tx.query", 1, "INSERT INTO t VALUES ($1)", [1])).code == "sql_23505"
    await held
    for op, *args in (("tx.query", "SELECT 1"), ("tx.commit",)):
        why = await refused(host, op, 1, *args)
        assert why.code == "transaction_rolled_back"
        assert "duplicate key" in why.message
    assert await numbers(host) == []
    assert await is_clean(api)


async def test_a_deferred_constraint_refuses_the_commit(host: InvocationHost, api: HostApi) -> None:
    await call(host, "db.query", "CREATE TABLE c (n int REFERENCES t (n) DEFERRABLE INITIALLY DEFERRED)")
    held = await begin(host)
    await call(host, "tx.query", 1, "INSERT INTO c VALUES (7)")
    assert (await refused(host, "tx.commit", 1)).code == "sql_23503"
    await held
    assert await call(host, "db.query", "SELECT * FROM c") == []
    assert await is_clean(api)


@pytest.mark.parametrize(
    "sql",
    [
        *("COMMIT", "commit", "END", "ROLLBACK", "ABORT", "BEGIN", "START TRANSACTION"),
        *("COMMIT AND CHAIN", "SAVEPOINT guard", "RELEASE guard", "ROLLBACK TO guard", "PREPARE TRANSACTION 'x'"),
        *("COMMIT PREPARED 'x'", "DISCARD ALL", ";;COMMIT", " \t\n\v\f;COMMIT;", "-- x\nCOMMIT", "-- x\rCOMMIT"),
        *("/* a /* b */ -- */COMMIT", "/**//*/**/*/;commit"),
        "PREPARE p AS SELECT 1",
    ],
)
async def test_only_its_callback_ends_it(host: InvocationHost, sql: str) -> None:
    held = await begin(host)
    await call(host, "tx.query", 1, "INSERT INTO t VALUES (1)")
    assert (await refused(host, "tx.query", 1, sql)).code == "sql_unsupported"
    assert await call(host, "tx.query", 1, "SELECT n FROM t") == [{"n": 1}]
    await call(host, "tx.rollback", 1)
    await held
    assert await numbers(host) == []


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("SET statement_timeout = 0", "sql_unsupported"),
        ("NOTIFY x", "sql_unsupported"),
        ("LISTEN x", "sql_unsupported"),
        ("DECLARE c CURSOR FOR SELECT 1", "sql_unsupported"),
        ("DO 'BEGIN COMMIT; END'", "sql_2D000"),
        ("DO 'BEGIN ROLLBACK; END'", "sql_2D000"),
        ("CALL ending()", "sql_2D000"),
        ("VACUUM t", "sql_25001"),
        ("SELECT 1; SELECT 2", "sql_42601"),
        ("SELECT 1; COMMIT", "sql_42601"),
        ("INSERT INTO t VALUES (100)", "sql_23514"),
        ("SELECT generate_series(1, 20000)", "rows_limit"),
        ("SELECT repeat('x', 5000000)", "bytes_limit"),
        ("COPY t TO STDOUT", "sql_unsupported"),
    ],
)
async def test_what_is_refused_in_it_rolls_it_back(host: InvocationHost, api: HostApi, sql: str, code: str) -> None:
    await call(host, "db.query", "CREATE PROCEDURE ending() LANGUAGE plpgsql AS 'BEGIN COMMIT; END'")
    held = await begin(host)
    await call(host, "tx.query", 1, "INSERT INTO t VALUES (1)")
    assert (await refused(host, "tx.query", 1, sql)).code == code
    assert (await refused(host, "tx.commit", 1)).code == "transaction_rolled_back"
    await held
    assert await numbers(host) == []
    assert await is_clean(api)


async def test_locks_and_deferred_constraints_may_be_used(host: InvocationHost) -> None:
    held = await begin(host)
    for sql in ("LOCK TABLE t", "SET CONSTRAINTS ALL DEFERRED", "INSERT INTO t VALUES (3)"):
        await call(host, "tx.query", 1, sql)
    await call(host, "tx.commit", 1)
    await held
    assert await numbers(host) == [3]


async def test_there_is_one_at_a_time(host: InvocationHost) -> None:
    held = await begin(host)
    assert (await refused(host, "tx.open", 2)).code == "transaction_open"
    assert (await refused(host, "tx.begin", 2)).code == "transaction_ended"
    assert (await refused(host, "tx.query", 2, "SELECT 1")).code == "transaction_ended"
    await call(host, "tx.commit", 1)
    await held
    held = await begin(host, 3)
    assert (await refused(host, "tx.query", 1, "SELECT 1")).code == "transaction_ended"
    await call(host, "tx.commit", 3)
    await held


async def test_statements_go_one_after_the_other(host: InvocationHost) -> None:
    held = await begin(host)
    await asyncio.gather(*(call(host, "tx.query", 1, "INSERT INTO t VALUES ($1)", [n]) for n in range(20)))
    await call(host, "tx.commit", 1)
    await held
    assert await numbers(host) == list(range(20))


async def test_queries_go_on_beside_it(host: InvocationHost) -> None:
    held = await begin(host)
    slow = asyncio.create_task(call(host, "tx.query", 1, "SELECT count(*) FROM t, generate_series(1, 3000000)"))
    assert await asyncio.gather(*(call(host, "db.query", "SELECT 1 AS n") for _ in range(8))) == [[{"n": 1}]] * 8
    await slow
    await call(host, "tx.rollback", 1)
    await held


async def test_the_end_of_the_run_rolls_it_back(host: InvocationHost, api: HostApi) -> None:
    held = await begin(host)
    await call(host, "tx.query", 1, "INSERT INTO t VALUES (1)")
    running = asyncio.create_task(call(host, "tx.query", 1, "SELECT count(*) FROM generate_series(1, 1000000000)"))
    await asyncio.sleep(0)
    running.cancel()
    held.cancel()
    await asyncio.wait([held, running])
    assert held.cancelled()
    assert running.cancelled()
    assert await numbers(host) == []

    async def clean() -> bool:
        return await is_clean(api)

    await eventually(clean)


@pytest.mark.parametrize("idle", [True, False])
async def test_it_is_open_for_so_long_and_no_longer(
    host: InvocationHost, api: HostApi, idle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "MAX_MS", 300)
    held = await begin(host)
    await call(host, "tx.query", 1, "INSERT INTO t VALUES (1)")
    if not idle:
        why = await refused(host, "tx.query", 1, "SELECT count(*) FROM generate_series(1, 1000000000)")
        assert why.code == "transaction_timeout"
    await held
    why = await refused(host, "tx.commit", 1)
    assert (why.code, "300 ms" in why.message) == ("transaction_timeout", True)
    assert await numbers(host) == []
    assert await is_clean(api)


async def test_what_it_did_to_its_session_is_gone(host: InvocationHost, project: str, api: HostApi) -> None:
    setting = "DO 'BEGIN SET search_path = pg_catalog; SET statement_timeout = 1; END'"
    for end in ("tx.commit", "tx.rollback"):
        held = await begin(host)
        await call(host, "tx.query", 1, setting)
        await call(host, end, 1)
        await held
        found = await call(host, "db.query", "SHOW statement_timeout")
        assert found == [{"statement_timeout": "65s"}]


async def test_a_project_cannot_open_more_than_it_has_connections(api: HostApi, project: str, tenants: Tenants) -> None:
    """Those that wait are told."""
    api.database._connections._wait_s = 0.2
    hosts = [api.for_invocation(project, LIMITS) for _ in range(PER_PROJECT + 1)]
    held = [await begin(host) for host in hosts[:-1]]
    waiting = asyncio.create_task(call(hosts[-1], "tx.open", 1))
    await asyncio.sleep(0)
    assert (await refused(hosts[-1], "tx.begin", 1)).code == "unavailable"
    await waiting
    for host in hosts[:-1]:
        await call(host, "tx.rollback", 1)
    await asyncio.gather(*held)
    assert await is_clean(api)


class TestExactlyOnce:
    async def test_it_is_done_once_for_all_deliveries_of_an_event(self, api: HostApi, host: InvocationHost) -> None:
        project = host._project_id
        first = api.for_invocation(project, LIMITS, origin=Origin(run_id="r1", event_id="e", trigger_id="t"))
        held = await begin(first, once="")
        await call(first, "tx.query", 1, "INSERT INTO t VALUES (1)")
        await call(first, "tx.commit", 1, {"order": 7})
        await held

        again = api.for_invocation(project, LIMITS, origin=Origin(run_id="r2", event_id="e", trigger_id="t"))
        waiting = asyncio.create_task(call(again, "tx.open", 1, {"exactly_once": ""}))
        await asyncio.sleep(0)
        assert await call(again, "tx.begin", 1) == {"value": {"order": 7}}
        await waiting
        assert (await refused(again, "tx.query", 1, "INSERT INTO t VALUES (2)")).code == "transaction_ended"
        for number, origin, once in (
            (2, Origin(run_id="r2", event_id="e", trigger_id="t"), "another"),
            (3, Origin(run_id="r2", event_id="e", trigger_id="u"), ""),
            (4, Origin(run_id="r2", event_id="f", trigger_id="t"), ""),
            (5, Origin(run_id="r2"), ""),
        ):
            other = api.for_invocation(project, LIMITS, origin=origin)
            held = await begin(other, once=once)
            await call(other, "tx.query", 1, "INSERT INTO t VALUES ($1)", [number])
            await call(other, "tx.commit", 1, None)
            await held
        assert await numbers(host) == [1, 2, 3, 4, 5]
        assert await is_clean(api)

    async def test_one_that_was_rolled_back_was_not_done(self, api: HostApi, host: InvocationHost) -> None:
        origin = Origin(run_id="r1", event_id="e", trigger_id="t")
        for end in ("tx.rollback", "tx.commit"):
            run = api.for_invocation(host._project_id, LIMITS, origin=origin)
            held = await begin(run, once="")
            await call(run, "tx.query", 1, "INSERT INTO t VALUES (1)")
            await call(run, end, 1)
            await held
        assert await numbers(host) == [1]

    async def test_two_at_a_time_do_it_once(self, api: HostApi, host: InvocationHost) -> None:
        """A lease that ran out while its run goes on."""
        origin = Origin(run_id="r1", event_id="e", trigger_id="t")
        first, second = (api.for_invocation(host._project_id, LIMITS, origin=origin) for _ in range(2))
        held = await begin(first, once="")
        waiting = asyncio.create_task(call(second, "tx.open", 1, {"exactly_once": ""}))
        await asyncio.sleep(0)
        asked = asyncio.create_task(call(second, "tx.begin", 1))
        await call(first, "tx.query", 1, "INSERT INTO t VALUES (1)")
        await call(first, "tx.commit", 1, "told")
        await held
        assert await asked == {"value": "told"}
        await waiting

    async def test_what_it_tells_is_not_endless(self, api: HostApi, host: InvocationHost) -> None:
        run = api.for_invocation(host._project_id, LIMITS, origin=Origin(run_id="r"))
        held = await begin(run, once="")
        assert (await refused(run, "tx.commit", 1, "x" * transaction.MAX_TOLD_BYTES)).code == "result_too_large"
        await call(run, "tx.rollback", 1)
        await held
        assert await is_clean(api)


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("tx.open", b"[]"),
        ("tx.open", b'["1"]'),
        ("tx.open", b"[true]"),
        ("tx.open", b"[1.5]"),
        ("tx.open", b'[1, {"exactly_once": 5}]'),
        ("tx.open", b'[1, {"exactly_once": "a\\nb"}]'),
        ("tx.open", b'[1, {"exactlyOnce": ""}]'),
        ("tx.open", b'[1, {"exactly_once": "' + b"x" * 101 + b'"}]'),
        ("tx.begin", b"[null]"),
        ("tx.query", b'[1, "  "]'),
        ("tx.query", b'[1, "SELECT 1", [{"$bytes": "?"}]]'),
        ("tx.query", b'[1, "SELECT $1", ["\\u0000"]]'),
        ("tx.query", b'[{}, "SELECT 1"]'),
        ("tx.commit", b"{}"),
        ("tx.rollback", b"[[]]"),
    ],
)
async def test_hostile_arguments(host: InvocationHost, op: str, args: bytes) -> None:
    with pytest.raises(HostError) as caught:
        await host.call(op, args)
    assert caught.value.code == "invalid_argument"
