# ruff: noqa: E501 (programs in strings)
"""Promises, console, `Response`, `ctx` and the Web's globals: one program, the same answer on every engine."""

import json
from typing import Any

import pytest

from engines.contract import Outcome
from tests.fix_engines import CONTEXT, PROJECT, Evaluate, Site

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def value_of(evaluate: Evaluate, source: str) -> Any:
    result = await evaluate(source)
    assert result.outcome is Outcome.OK, result
    return json.loads(result.value)


async def test_promises_settle_in_the_order_of_the_language(evaluate: Evaluate) -> None:
    source = """(async () => {
      const order = [];
      queueMicrotask(() => order.push("micro"));
      const slow = (async () => { await null; await null; order.push("two"); })();
      const fast = Promise.resolve().then(() => order.push("one"));
      order.push("now");
      await Promise.all([slow, fast]);
      return order;
    })()"""
    assert await value_of(evaluate, source) == ["now", "micro", "one", "two"]


async def test_top_level_await_is_done_before_the_first_call(site: Site) -> None:
    source = (
        "const ready = await new Promise((done) => queueMicrotask(() => done('ready'))); export default () => ready"
    )
    assert (await site.run(source)).value == b'"ready"'


@pytest.mark.parametrize("source", ["new Promise(() => {})", "(async () => { await new Promise(() => {}) })()"])
async def test_a_promise_that_cannot_settle_ends_at_once(evaluate: Evaluate, source: str) -> None:
    result = await evaluate(source)
    assert result.outcome is Outcome.NEVER_SETTLES, result
    assert result.metrics.wall_ms < 1_000
    assert (await evaluate("1")).value == b"1"


async def test_async_generators_and_iteration(evaluate: Evaluate) -> None:
    source = """(async () => {
      async function* three() { for (let i = 0; i < 3; i++) { await null; yield i } }
      const all = []; for await (const each of three()) all.push(each); return all })()"""
    assert await value_of(evaluate, source) == [0, 1, 2]


async def test_the_console_is_kept_with_its_levels(site: Site) -> None:
    source = """export default () => {
      console.log("text", 1, true, null, undefined); console.info({a: [1, "b"]}); console.warn("w"); console.error("e");
      console.debug("%s is %d", "x", 5); return 1 }"""
    result = await site.run(source)
    assert [(line.level, line.text) for line in result.logs] == [
        ("log", "text 1 true null undefined"),
        ("info", "{ a: [ 1, 'b' ] }"),
        ("warn", "w"),
        ("error", "e"),
        ("debug", "x is 5"),
    ]
    assert all(0 <= line.at_ms < 5_000 for line in result.logs)


async def test_what_a_failing_run_wrote_is_kept(site: Site) -> None:
    result = await site.run("export default () => { console.log('before'); throw new Error('x') }")
    assert [line.text for line in result.logs] == ["before"]


async def test_the_console_of_one_run_is_not_the_nexts(site: Site) -> None:
    deployed = await site.deploy("export default (text) => { console.log(text) }")
    assert [line.text for line in (await deployed("first")).logs] == ["first"]
    assert [line.text for line in (await deployed("second")).logs] == ["second"]


async def test_more_console_than_is_kept_is_cut_and_said(site: Site) -> None:
    result = await site.run(
        "export default () => { for (let i = 0; i < 20000; i++) console.log('line ' + i); return 1 }"
    )
    assert result.outcome is Outcome.OK, result
    assert result.logs_truncated
    assert result.logs[0].text == "line 0"
    assert sum(len(line.text) for line in result.logs) <= 64 * 1024


async def test_a_response_answers_with_exactly_that(site: Site) -> None:
    source = """export default () => new Response("héllo", {status: 418, headers: {"X-Mine": "1", "content-type": "text/tea"}})"""
    result = await site.run(source)
    assert result.outcome is Outcome.OK, result
    assert result.response is not None
    assert result.response.status == 418
    assert dict(result.response.headers) == {"x-mine": "1", "content-type": "text/tea"}
    assert result.response.body == "héllo".encode()


RESPONSES = [
    ("Response.json({a: 1})", 200, "application/json", b'{"a":1}'),
    ("new Response(new Uint8Array([0, 255]))", 200, None, b"\x00\xff"),
    ("new Response(null, {status: 204})", 204, None, b""),
    ("new Response('text')", 200, "text/plain;charset=UTF-8", b"text"),
    ("new Response(new URLSearchParams({a: 'b c'}))", 200, "application/x-www-form-urlencoded;charset=UTF-8", b"a=b+c"),
    ("Response.redirect('https://example.com/x', 307)", 307, None, b""),
]


@pytest.mark.parametrize(("source", "status", "content_type", "body"), RESPONSES, ids=[row[0] for row in RESPONSES])
async def test_responses_of_every_kind(
    evaluate: Evaluate, source: str, status: int, content_type: str | None, body: bytes
) -> None:
    result = await evaluate(source)
    assert result.outcome is Outcome.OK, result
    assert result.response is not None
    assert (result.response.status, result.response.body) == (status, body)
    assert dict(result.response.headers).get("content-type") == content_type


async def test_the_context_is_the_second_argument_and_frozen(site: Site) -> None:
    source = """export default (input, ctx) => {
      const tried = []; const change = (what) => { try { what() } catch { tried.push("refused") } };
      change(() => { "use strict"; ctx.project_id = "other" }); change(() => { "use strict"; ctx.request.query.a = 1 });
      return [ctx, tried] }"""
    context = {**CONTEXT, "invocation_id": "é-1", "env": {"A": "1"}}
    result = await site.run(source, context=context)
    assert result.outcome is Outcome.OK, result
    assert json.loads(result.value) == [context, ["refused", "refused"]]
    assert context["project_id"] == PROJECT


EXPRESSIONS: list[tuple[str, Any]] = [
    ("new URL('../b?x=1#h', 'https://user:pw@example.com:8080/a/c').href", "https://user:pw@example.com:8080/b?x=1#h"),
    ("[...new URLSearchParams('a=1&b=%20&a=2')]", [["a", "1"], ["b", " "], ["a", "2"]]),
    ("[...new TextEncoder().encode('é😀')]", [0xC3, 0xA9, 0xF0, 0x9F, 0x98, 0x80]),
    ("new TextDecoder().decode(new Uint8Array([0xc3, 0xa9, 0xff]))", "é\ufffd"),
    ("btoa('abc') + atob('YWJj')", "YWJjabc"),
    ("structuredClone({d: new Date(5), m: new Map([[1, [2]]])}).m.get(1)", [2]),
    ("typeof crypto.randomUUID()", "string"),
    ("crypto.getRandomValues(new Uint8Array(8)).length", 8),
    ("[...new Headers({B: '2', a: '1'})]", [["a", "1"], ["b", "2"]]),
    ("new AbortController().signal.aborted", False),
    ("Object.fromEntries(new Map([['a', 1]]))", {"a": 1}),
    ("[3, 1, 2].toSorted()", [1, 2, 3]),
    ("Object.groupBy([1, 2, 3], (n) => n % 2 ? 'odd' : 'even')", {"odd": [1, 3], "even": [2]}),
    ("'é'.normalize('NFD').length", 2),
    ("/(?<year>\\d{4})/u.exec('in 2026').groups.year", "2026"),
    ("(10n ** 20n).toString()", "100000000000000000000"),
    ("typeof performance.now()", "number"),
    ("new Date(Date.UTC(2026, 0, 31)).toISOString()", "2026-01-31T00:00:00.000Z"),
    ("[typeof process?.env, 1].length", 2),
]


@pytest.mark.parametrize(("source", "value"), EXPRESSIONS[:-1], ids=[row[0][:40] for row in EXPRESSIONS[:-1]])
async def test_the_webs_globals(evaluate: Evaluate, source: str, value: Any) -> None:
    assert await value_of(evaluate, source) == value


async def test_randomness_differs_between_values_of_a_run(evaluate: Evaluate) -> None:
    source = "[new Set(Array.from({length: 50}, () => crypto.randomUUID())).size, Math.random() !== Math.random()]"
    assert await value_of(evaluate, source) == [50, True]


async def test_typescript_runs(site: Site) -> None:
    source = """
    enum Colour { Red = "red" }
    namespace Shapes { export const sides = (name: string): number => name === "square" ? 4 : 3 }
    type Input = { name: string };
    abstract class Base<T> { constructor(protected readonly value: T) {} abstract get(): T }
    class Box extends Base<string> { get(): string { return this.value! as string } }
    export default (input: Input) => [Colour.Red, Shapes.sides(input.name), new Box("in").get()] satisfies unknown[]
    """
    deployed = await site.deploy(source, language="typescript")
    result = await deployed({"name": "square"})
    assert json.loads(result.value) == ["red", 4, "in"]
