# ruff: noqa: E501 (programs in strings)
"""`atlas.*`: the same calls, answers and errors on every engine that has them."""

import asyncio
import base64
import json
from typing import Any

import pytest

from engines.contract import HostError, Outcome
from tests.fix_engines import Site
from tests.fix_sandbox import Scripted, Silence

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVAL = "export default async (source) => await (0, eval)(`(async () => { ${source} })()`)"


async def value_of(site: Site, source: str, answer: Any) -> Any:
    result = await site.run(EVAL, source, host=Scripted(answer))
    assert result.outcome is Outcome.OK, result
    return json.loads(result.value)


CALLS = [
    ("atlas.db.query('select $1', [1, 'a', null])", "db.query", ["select $1", [1, "a", None]]),
    ("atlas.db.query('select 1')", "db.query", ["select 1", []]),
    (
        "atlas.db.query('', [new Date(0), undefined, 10n, new Uint8Array([1, 255]), [1n], {a: 1}])",
        "db.query",
        ["", ["1970-01-01T00:00:00.000Z", None, "10", {"$bytes": "Af8="}, ["1"], {"a": 1}]],
    ),
    ("atlas.kv.get('k')", "kv.get", ["k"]),
    ("atlas.kv.delete('k')", "kv.delete", ["k"]),
    ("atlas.kv.set('k', {a: [1]})", "kv.set", ["k", {"a": [1]}, {"ttl_s": None}]),
    ("atlas.storage.delete('b', 'a/c')", "storage.delete", ["b", "a/c"]),
    ("atlas.kv.set('k', undefined, {ttl: 1.5})", "kv.set", ["k", None, {"ttl_s": 1.5}]),
]


@pytest.mark.parametrize(("source", "op", "args"), CALLS, ids=[row[0][:40] for row in CALLS])
async def test_calls_reach_the_host_with_their_arguments(hosted: Site, source: str, op: str, args: list[Any]) -> None:
    seen: list[Any] = []

    def remember(op: str, args: list[Any]) -> None:
        seen.append((op, args))

    await value_of(hosted, f"await {source}; return 1", remember)
    assert seen == [(op, args)]


async def test_errors_of_the_host_have_message_and_code(hosted: Site) -> None:
    def refuse(op: str, args: list[Any]) -> Any:
        raise HostError("syntax_error", "near 'selec'")

    source = "try { await atlas.db.query('selec') } catch (e) { return [e instanceof Error, e.message, e.code] }"
    assert await value_of(hosted, source, refuse) == [True, "near 'selec'", "syntax_error"]


async def test_calls_run_concurrently(hosted: Site) -> None:
    together = asyncio.Barrier(8)

    async def meet(op: str, args: list[Any]) -> Any:
        async with asyncio.timeout(5):
            await together.wait()
        return args[0]

    source = "return await Promise.all(Array.from({length: 8}, (_, i) => atlas.kv.get('k' + i)))"
    result = await hosted.run(EVAL, source, host=Scripted(meet))
    assert json.loads(result.value) == [f"k{number}" for number in range(8)]
    assert result.metrics.host_calls == 8


def respond(op: str, args: list[Any]) -> Any:
    assert op == "fetch"
    return {
        "status": 201,
        "status_text": "Created",
        "url": args[0],
        "redirected": False,
        "headers": [["content-type", "application/json"], ["x-a", "1"]],
        "body_base64": base64.b64encode(b'{"sent":1}').decode(),
    }


@pytest.mark.parametrize("name", ["fetch", "atlas.fetch"])
async def test_fetch_answers_a_response(hosted: Site, name: str) -> None:
    source = f"""const r = await {name}("https://example.com/x?y");
      const copy = r.clone();
      return [r.status, r.ok, r.statusText, r.url, r.headers.get("X-A"), await r.json(), await copy.text(),
        r instanceof Response, r.bodyUsed] """
    assert await value_of(hosted, source, respond) == [
        *(201, True, "Created", "https://example.com/x?y", "1", {"sent": 1}, '{"sent":1}', True, True),
    ]


async def test_fetch_sends_method_headers_and_body(hosted: Site) -> None:
    seen: list[Any] = []

    def remember(op: str, args: list[Any]) -> Any:
        seen.extend(args)
        return respond(op, args)

    source = """await fetch("https://example.com/", {method: "put", headers: {"X-B": "2"}, body: JSON.stringify({a: "é"}),
      timeout: 1500, redirect: "manual"}); return 1"""
    await value_of(hosted, source, remember)
    url, options = seen
    assert url == "https://example.com/"
    assert options["method"] == "PUT"
    assert ["x-b", "2"] in options["headers"]
    assert base64.b64decode(options["body_base64"]) == '{"a":"é"}'.encode()
    assert (options["timeout_ms"], options["redirect"]) == (1500, "manual")


async def test_a_run_that_waits_for_its_host_can_be_cancelled(hosted: Site) -> None:
    deployed = await hosted.deploy("export default async (x) => x ? 1 : await atlas.kv.get('k')")
    host = Silence()
    run = asyncio.create_task(deployed(host=host))
    await host.asked.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert host.cancelled == 1
    assert (await deployed(1)).value == b"1"


async def test_calls_left_behind_are_cancelled_and_never_answer_the_next_run(hosted: Site) -> None:
    deployed = await hosted.deploy(
        "let seen = []; export default (leave) => {"
        " if (leave) { atlas.kv.get('left').then((v) => seen.push(v), (e) => seen.push(e)); return 0 } return seen }"
    )
    host = Silence()
    assert (await deployed(True, host=host)).value == b"0"
    assert (await deployed(False)).value == b"[]"
    assert host.cancelled == host.calls


async def test_too_many_calls_at_once_are_refused(hosted: Site) -> None:
    source = "const all = await Promise.allSettled(Array.from({length: 70}, () => atlas.kv.get('k')))"
    source += "; return all.filter((one) => one.status === 'rejected').length"
    assert await value_of(hosted, source, lambda op, args: 1) in (0, 6)


async def test_timers_fire_in_order(hosted: Site) -> None:
    source = """const order = []; await new Promise((done) => {
      setTimeout(() => { order.push("late"); done() }, 20); setTimeout(() => order.push("soon"), 1);
      const gone = setTimeout(() => order.push("never"), 5); clearTimeout(gone); order.push("now") }); return order"""
    assert await value_of(hosted, source, lambda op, args: None) == ["now", "soon", "late"]


async def test_a_timer_left_behind_ends_with_its_run(hosted: Site) -> None:
    deployed = await hosted.deploy(
        "let fired = 0; export default async (wait) => {"
        " if (!wait) { setTimeout(() => fired++, 1); return 0 }"
        " await new Promise((done) => setTimeout(done, 50)); return fired }"
    )
    assert (await deployed(False)).value == b"0"
    assert (await deployed(True)).value == b"0"


STORED = {
    "bucket": "b",
    "path": "a/é",
    "size": 3,
    "content_type": "text/plain",
    "checksum": "ab",
    "etag": '"ab"',
    "metadata": {"n": 1},
    "created_at": "2026-01-01T00:00:00Z",
    "updated_at": "2026-01-02T00:00:00Z",
}
SHOWN = {
    **{name: STORED[name] for name in ("bucket", "path", "size", "checksum", "etag", "metadata")},
    "contentType": "text/plain",
    "createdAt": "2026-01-01T00:00:00Z",
    "updatedAt": "2026-01-02T00:00:00Z",
}


@pytest.mark.parametrize(
    ("call", "body", "options"),
    [
        ("'é\\ud800', {metadata: {n: 1}}", "é\ufffd".encode(), ("text/plain;charset=UTF-8", {"n": 1}, None)),
        ("''", b"", ("text/plain;charset=UTF-8", None, None)),
        ("new Uint8Array([0, 255]).subarray(1), {overwrite: false}", b"\xff", (None, None, False)),
        ("new Uint16Array([1]).buffer, {contentType: 'image/png'}", b"\1\0", ("image/png", None, None)),
        ("'x'.repeat(100000), null", b"x" * 100_000, ("text/plain;charset=UTF-8", None, None)),
    ],
)
async def test_objects_are_put_as_bytes(hosted: Site, call: str, body: bytes, options: tuple[Any, ...]) -> None:
    seen: list[Any] = []

    def remember(op: str, args: list[Any]) -> Any:
        seen.append((op, *args))
        return STORED

    assert await value_of(hosted, f"return await atlas.storage.put('b', 'a/é', {call})", remember) == SHOWN
    ((op, bucket, path, base64_text, sent),) = seen
    assert (op, bucket, path, base64.b64decode(base64_text)) == ("storage.put", "b", "a/é", body)
    assert (sent["content_type"], sent["metadata"], sent["overwrite"]) == options


@pytest.mark.parametrize("call", ["1, 'p', 'x'", "'b', null, 'x'", "'b', 'p', {}", "'b', 'p'", "'b', 'p', 1"])
async def test_what_is_no_object_never_reaches_the_host(hosted: Site, call: str) -> None:
    source = f"try {{ await atlas.storage.put({call}) }} catch (e) {{ return e.name }}"
    assert await value_of(hosted, source, lambda op, args: 1 / 0) == "TypeError"


async def test_an_object_is_read_in_each_way_and_more_than_once(hosted: Site) -> None:
    content = b'\xef\xbb\xbf{"a":"\xc3\xa9"}'

    def give(op: str, args: list[Any]) -> Any:
        assert (op, args) == ("storage.get", ["b", "p", {"offset": 1, "length": None}])
        return {**STORED, "body_base64": base64.b64encode(content).decode()}

    source = """const o = await atlas.storage.get("b", "p", {offset: 1}); const bytes = await o.bytes();
      return [{...o}, await o.text(), await o.json(), [...bytes].length, bytes instanceof Uint8Array,
        (await o.arrayBuffer()).byteLength, (await o.arrayBuffer()) instanceof ArrayBuffer, JSON.stringify(o) === JSON.stringify({...o})]"""
    assert await value_of(hosted, source, give) == [SHOWN, '{"a":"é"}', {"a": "é"}, 13, True, 13, True, True]


async def test_objects_are_listed(hosted: Site) -> None:
    seen: list[Any] = []

    def give(op: str, args: list[Any]) -> Any:
        seen.append((op, args))
        return {"objects": [STORED, STORED], "cursor": "next" if len(seen) == 1 else None}

    source = """const first = await atlas.storage.list("b", {prefix: "a/", limit: 2});
      return [first, await atlas.storage.list("b", {cursor: first.cursor}), await atlas.storage.list("b")]"""
    first, second, third = await value_of(hosted, source, give)
    assert (first, second["cursor"]) == ({"objects": [SHOWN, SHOWN], "cursor": "next"}, None)
    assert third == second
    assert seen == [
        ("storage.list", ["b", {"prefix": "a/", "limit": 2, "cursor": None}]),
        ("storage.list", ["b", {"prefix": None, "limit": None, "cursor": "next"}]),
        ("storage.list", ["b", {"prefix": None, "limit": None, "cursor": None}]),
    ]


async def test_an_object_that_is_not_there_is_null_and_one_that_was_is_told(hosted: Site) -> None:
    source = "return [await atlas.storage.get('b', 'p'), await atlas.storage.delete('b', 'p')]"
    assert await value_of(hosted, source, lambda op, args: None if op == "storage.get" else False) == [None, False]


async def test_an_object_that_is_too_large_for_a_call_is_refused_before_it_travels(hosted: Site) -> None:
    source = "try { await atlas.storage.put('b', 'p', new Uint8Array(6 * 1024 * 1024)) } catch (e) { return [e.name, e.code] }"
    assert await value_of(hosted, source, lambda op, args: 1 / 0) == ["AtlasError", "storage_body_limit"]
