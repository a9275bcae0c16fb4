"""The capabilities of one invocation, as an engine calls them: JSON text in, JSON text out, hostile arguments."""

import asyncio
from collections.abc import AsyncIterator
from ipaddress import ip_network

import orjson
import pytest
from aiohttp import web

from engines.contract import Host, HostError, Limits
from server.host.api import CALLS_AT_ONCE, HostApi, InvocationHost
from server.host.database import Database
from server.host.fetch import Fetcher
from server.host.keyvalue import KeyValue

LIMITS = Limits(wall_ms=10_000, cpu_ms=1_000, memory_bytes=1, fetch_calls=2)


@pytest.fixture
async def api(database: Database, valkey_url: str) -> AsyncIterator[HostApi]:
    found = HostApi(database, KeyValue(valkey_url), Fetcher(allowed=[ip_network("127.0.0.0/8")]))
    yield found
    await found.keyvalue.close()
    await found.fetcher.close()


@pytest.fixture
def host(api: HostApi, shared_project: str) -> InvocationHost:
    return api.for_invocation(shared_project, LIMITS)


async def call(host: Host, op: str, *args: object) -> object:
    return orjson.loads(await host.call(op, orjson.dumps(args)))


async def test_every_operation(host: InvocationHost) -> None:
    assert await call(host, "db.query", "SELECT $1::int AS n", [3]) == [{"n": 3}]
    assert await call(host, "db.query", "SELECT 1 AS n") == [{"n": 1}]
    assert await call(host, "db.query", "SELECT 1 AS n", None) == [{"n": 1}]
    assert await call(host, "kv.set", "k", {"a": 1}, {"ttl_s": 60}) is None
    assert await call(host, "kv.set", "k", {"a": 1}) is None
    assert await call(host, "kv.get", "k") == {"a": 1}
    assert await call(host, "kv.delete", "k") is True
    assert host.calls == 7


@pytest.mark.parametrize(
    ("op", "args", "part"),
    [
        ("db.query", b"", "arguments are not JSON"),
        ("db.query", b'["\\ud800"]', "half of a surrogate pair"),
        ("db.query", b"[" * 100_000, "arguments are not JSON"),
        ("db.query", b"\xff", "arguments are not JSON"),
        ("kv.set", b'["k",[' + b"[]," * 100_000 + b"1]]", "more than 100000 commas and brackets"),
        ("db.query", b"{}", "arguments must be an array, got object"),
        ("db.query", b"[]", "takes 1 to 2 arguments, got 0"),
        ("db.query", b'["a",[],3]', "takes 1 to 2 arguments, got 3"),
        ("db.query", b"[5]", "atlas.db.query: sql must be a string, got number"),
        ("db.query", b'["SELECT 1","x"]', "atlas.db.query: params must be an array, got string"),
        ("db.query", b'["SELECT 1",{}]', "atlas.db.query: params must be an array, got object"),
        ("db.query", b'["  "]', "sql is empty"),
        ("db.query", b'["SELECT 1\\u0000"]', "U+0000"),
        ("db.query", b'["' + b"x" * 2_000_000 + b'"]', "sql is longer than"),
        ("kv.get", b"[]", "takes 1 arguments, got 0"),
        ("kv.get", b"[{}]", "key must be a string, got object"),
        ("kv.set", b'["k"]', "takes 2 to 3 arguments, got 1"),
        ("kv.set", b'["k",1,5]', "options must be an object, got number"),
        ("kv.set", b'["k",1,{"ttl":5}]', "unknown field 'ttl'"),
        ("kv.set", b'["k",1,{"ttl_s":"5"}]', "ttl_s must be a number, got string"),
        ("kv.set", b'["k",1,{"ttl_s":true}]', "ttl_s must be a number, got boolean"),
        ("kv.delete", b"[null]", "key must be a string, got null"),
        ("fetch", b"[null]", "url must be a string, got null"),
        ("fetch", b'["http://x",[]]', "options must be an object, got array"),
    ],
)
async def test_hostile_arguments(host: InvocationHost, op: str, args: bytes, part: str) -> None:
    with pytest.raises(HostError) as caught:
        await host.call(op, args)
    assert caught.value.code == "invalid_argument"
    assert part in caught.value.message


@pytest.mark.parametrize("op", ["", "db", "db.query ", "__class__", "kv.clear", "db.forget", "x" * 10_000])
async def test_operations_that_do_not_exist(host: InvocationHost, op: str) -> None:
    with pytest.raises(HostError) as caught:
        await host.call(op, b"[]")
    assert caught.value.code == "unknown_op"
    assert len(caught.value.message) < 200


async def test_fetches_are_counted_whether_they_succeed_or_not(host: InvocationHost) -> None:
    for _ in range(2):
        with pytest.raises(HostError) as caught:
            await call(host, "fetch", "http://169.254.169.254/")
        assert caught.value.code == "fetch_blocked"
    with pytest.raises(HostError) as caught:
        await call(host, "fetch", "http://169.254.169.254/")
    assert (caught.value.code, host.fetch_calls) == ("fetch_limit", 3)
    assert caught.value.message == "atlas.fetch: call 3 of 2 allowed for this invocation"


async def test_calls_run_at_once_up_to_a_bound(api: HostApi, shared_project: str) -> None:
    inside, most = 0, 0
    everyone = asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        if inside == CALLS_AT_ONCE["fetch"]:
            everyone.set()
        async with asyncio.timeout(10):
            await everyone.wait()
        inside -= 1
        return web.Response(text="ok")

    runner = web.AppRunner(app := web.Application(), shutdown_timeout=0.1)
    app.router.add_get("/", handler)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host = api.for_invocation(shared_project, Limits(wall_ms=20_000, cpu_ms=1, memory_bytes=1, fetch_calls=20))
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    answers = await asyncio.gather(*(host.call("fetch", orjson.dumps([url])) for _ in range(20)))
    assert [orjson.loads(answer)["status"] for answer in answers] == [200] * 20
    assert most == CALLS_AT_ONCE["fetch"]
    await runner.cleanup()


async def test_a_call_gets_no_more_time_than_its_invocation_has(api: HostApi, shared_project: str) -> None:
    host = api.for_invocation(shared_project, Limits(wall_ms=100, cpu_ms=1, memory_bytes=1, fetch_calls=1))
    endless = "WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r) SELECT count(*) FROM r"
    with pytest.raises(HostError) as caught:
        await call(host, "db.query", endless)
    assert caught.value.code == "sql_timeout"
