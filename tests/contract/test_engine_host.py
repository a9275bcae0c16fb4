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
    (
        "atlas.events.publish('order.paid', {a: [1]}, {id: 'x', subject: 's'})",
        "events.publish",
        ["order.paid", {"a": [1]}, {"id": "x", "subject": "s", "transactional": False}, None],
    ),
    (
        "atlas.events.publish('a', undefined, {transactional: true})",
        "events.publish",
        ["a", None, {"id": None, "subject": None, "transactional": True}, None],
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


class Ledger:
    """A host with transactions, and what was asked of it."""

    def __init__(self, answers: dict[str, Any] | None = None) -> None:
        self.seen: list[Any] = []
        self.over = asyncio.Event()
        self.answers = answers or {}

    async def __call__(self, op: str, args: list[Any]) -> Any:
        self.seen.append([op, *args[1:]] if op.startswith("tx.") else [op, *args])
        answer = self.answers.get(op)
        if isinstance(answer, HostError):
            raise answer
        if op == "tx.open":
            await self.over.wait()
        elif op in ("tx.commit", "tx.rollback"):
            self.over.set()
        return answer


async def told(site: Site, source: str, ledger: Ledger) -> Any:
    """What the program returns, or [code or name, message] of what it throws."""
    wrapped = f"try {{ {source} }} catch (e) {{ return [e.code ?? e.name, e.message] }}"
    return await value_of(site, wrapped, ledger)


OPENED = [["tx.open", {"exactly_once": None}], ["tx.begin"]]


async def test_a_transaction_ends_with_its_callback(hosted: Site) -> None:
    ledger = Ledger({"tx.query": [{"n": 1}], "events.publish": {"id": "i", "duplicate": False}})
    source = """return await atlas.db.transaction(async (tx) => {
      const rows = await tx.query("SELECT $1", [new Date(0)]);
      return [rows, await tx.publish("order.paid", {a: 1})] })"""
    assert await told(hosted, source, ledger) == [[{"n": 1}], {"id": "i", "duplicate": False}]
    published = ledger.seen.pop(3)
    assert published[:4] == [
        *("events.publish", "order.paid", {"a": 1}, {"id": None, "subject": None, "transactional": False}),
    ]
    assert isinstance(published[4], int)
    assert ledger.seen == [*OPENED, ["tx.query", "SELECT $1", ["1970-01-01T00:00:00.000Z"]], ["tx.commit"]]


@pytest.mark.parametrize("callback", ["() => { throw new Error('no') }", "async () => { throw new Error('no') }"])
async def test_a_callback_that_throws_rolls_back(hosted: Site, callback: str) -> None:
    ledger = Ledger()
    assert await told(hosted, f"return await atlas.db.transaction({callback})", ledger) == ["Error", "no"]
    assert ledger.seen == [*OPENED, ["tx.rollback"]]


async def test_a_commit_that_is_refused_is_told(hosted: Site) -> None:
    ledger = Ledger({"tx.commit": HostError("sql_23503", "violates")})
    assert await told(hosted, "return await atlas.db.transaction(() => 1)", ledger) == ["sql_23503", "violates"]
    assert ledger.seen == [*OPENED, ["tx.commit"], ["tx.rollback"]]


@pytest.mark.parametrize("use", ["query('SELECT 1')", "publish('a', 1)"])
async def test_a_transaction_that_is_over_is_not_used(hosted: Site, use: str) -> None:
    ledger = Ledger()
    source = f"let kept; await atlas.db.transaction((tx) => {{ kept = tx }}); await kept.{use}"
    code, message = await told(hosted, source, ledger)
    assert (code, "is over" in message) == ("transaction_ended", True)
    assert ledger.seen == [*OPENED, ["tx.commit"]]


async def test_why_a_transaction_could_not_be_opened(hosted: Site) -> None:
    refusals: dict[str, Any] = {
        "tx.open": HostError("transaction_open", "another"),
        "tx.begin": HostError("transaction_ended", "unknown"),
    }
    assert await told(hosted, "await atlas.db.transaction(() => 1)", Ledger(refusals)) == [
        "transaction_open",
        "another",
    ]


async def test_what_was_done_before_is_not_done_again(hosted: Site) -> None:
    ledger = Ledger({"tx.begin": {"value": {"order": 7}}})
    ledger.over.set()
    source = "return await atlas.db.transaction(() => { throw 1 }, {exactlyOnce: true})"
    assert await told(hosted, source, ledger) == {"order": 7}
    assert ledger.seen == [["tx.open", {"exactly_once": ""}], ["tx.begin"]]


@pytest.mark.parametrize(("value", "kept"), [("({order: 7})", {"order": 7}), ("undefined", None), ("() => 1", None)])
async def test_what_is_done_once_tells_what_it_answered(hosted: Site, value: str, kept: Any) -> None:
    ledger = Ledger()
    await told(hosted, f"await atlas.db.transaction(() => ({value}), {{exactlyOnce: 'name'}}); return 1", ledger)
    assert ledger.seen == [["tx.open", {"exactly_once": "name"}], ["tx.begin"], ["tx.commit", kept]]


async def test_an_answer_that_is_no_json_is_not_committed(hosted: Site) -> None:
    ledger = Ledger()
    source = "await atlas.db.transaction(() => { const a = {}; a.a = a; return a }, {exactlyOnce: true})"
    assert (await told(hosted, source, ledger))[0] == "TypeError"
    assert ledger.seen[-1] == ["tx.rollback"]


@pytest.mark.parametrize(
    "source",
    [
        "atlas.db.transaction()",
        "atlas.db.transaction(1)",
        "atlas.db.transaction(() => 1, {exactlyOnce: 5})",
        "atlas.events.publish(5, 1)",
        "atlas.events.publish()",
    ],
)
async def test_arguments_that_make_no_sense(hosted: Site, source: str) -> None:
    ledger = Ledger()
    assert (await told(hosted, f"await {source}", ledger))[0] == "TypeError"
    assert ledger.seen == []


async def test_a_transaction_left_open_ends_with_its_run(hosted: Site) -> None:
    deployed = await hosted.deploy(
        "export default async (x) => { let opened; const open = new Promise((done) => { opened = done });"
        " atlas.db.transaction(() => { opened(); return new Promise(() => {}) }); await open; return 1 }"
    )
    ended: list[str] = []

    async def hold(op: str, args: list[Any]) -> Any:
        if op == "tx.open":
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(op)

    for _ in range(2):
        assert (await deployed(1, host=Scripted(hold))).value == b"1"
    assert ended == ["tx.open", "tx.open"]


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
