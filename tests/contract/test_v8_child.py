# ruff: noqa: E501 (programs in strings)
"""The programs of Node and Deno children: what a function returns, asks, logs and leaves behind, as with QuickJS."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.build import CompileError, build
from engines.frames import Type
from engines.sourcemap import translate_stack
from engines.v8.builtins import BUILTINS
from tests.fix_quickjs_child import Answer, Refused
from tests.fix_v8_child import PROGRAMS, Engine, V8Child

EVAL = "export default (source) => (0, eval)(`(async () => { ${source} })()`)"
PLAIN = "export default (source) => (0, eval)(source)"
Ask = Callable[..., Answer]


def lasting(engine: Engine, code: str) -> Iterator[Ask]:
    child = V8Child(engine)
    try:
        assert child.bind(code).outcome == "ok"
        yield child.invoke
    finally:
        child.close()


@pytest.fixture(scope="module")
def ask(engine: Engine) -> Iterator[Ask]:
    """Evaluates source in the body of an async function, all in one warm child."""
    yield from lasting(engine, EVAL)


@pytest.fixture(scope="module")
def plain(engine: Engine) -> Iterator[Ask]:
    """Evaluates source as a script; its value is what the function returns."""
    yield from lasting(engine, PLAIN)


# Values


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("undefined", "null"),
        ("(() => 1)", "null"),
        ("NaN", "null"),
        ("-0", "0"),
        ("({a: undefined, b: () => 1, c: 1})", '{"c":1}'),
        ("new Map([[1, 2]])", "{}"),
        (r"'\ud800'", r'"\ud800"'),
        ("'é 😀'", '"é 😀"'),
        ("Promise.resolve(5)", "5"),
        ("({then(done) { done('thenable') }})", '"thenable"'),
        ("'é'.repeat(100000)", '"' + "é" * 100_000 + '"'),
    ],
)
def test_results_are_json_as_json_stringify_makes_it(plain: Ask, source: str, text: str) -> None:
    assert plain(source).body.decode() == text


@pytest.mark.parametrize(
    ("kind", "body", "source", "value"),
    [
        ("json", b'{"z":1,"__proto__":{"x":2}}', "(i) => JSON.stringify(i)", '{"z":1,"__proto__":{"x":2}}'),
        ("text", '\ufeffé\0"😀'.encode(), "(t) => [typeof t, t]", ["string", '\ufeffé\0"😀']),
        ("bytes", bytes(range(256)), "(b) => [b instanceof Uint8Array, ...b]", [True, *range(256)]),
    ],
)
def test_input_of_every_kind(v8_child: V8Child, kind: str, body: bytes, source: str, value: Any) -> None:
    v8_child.bind(f"export default {source}")
    assert v8_child.invoke(body, kind=kind).value == value


def test_large_values_pass_both_ways(v8_child: V8Child) -> None:
    v8_child.bind("export default (input) => input")
    value = {"text": "é" * 900_000, "numbers": list(range(100_000))}
    assert v8_child.invoke(value).value == value


@pytest.mark.parametrize("body", [b"{", b"1,2", b"1] , [2", b"", b"\xff", b'"\0"', b"[" * 200_000])
def test_input_that_is_not_json_is_an_exception(v8_child: V8Child, body: bytes) -> None:
    v8_child.bind("export default (input) => input")
    assert v8_child.invoke(body).error["message"] == "The input is not one JSON value"
    assert v8_child.invoke(1).value == 1


def test_ctx_is_deeply_frozen(v8_child: V8Child) -> None:
    v8_child.bind("export default (i, ctx) => { try { ctx.a.b = 2; } catch (e) { return [ctx, e.name]; } }")
    assert v8_child.invoke(ctx={"a": {"b": 1}}).value == [{"a": {"b": 1}}, "TypeError"]


# Errors


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("10n", "TypeError", "The result cannot be JSON: it contains a BigInt"),
        ("{ const a = {}; a.a = a; a }", "TypeError", "The result cannot be JSON: it contains itself"),
        ("({toJSON() { throw new RangeError('mine') }})", "RangeError", "mine"),
        ("Promise.reject(new Error('late'))", "Error", "late"),
        ("throw null", "Error", "Thrown value: null"),
        ("throw {a: 1}", "Error", "Thrown value: { a: 1 }"),
        ("throw new Proxy({}, {get() { throw 2 }, ownKeys() { throw 3 }})", "Error", "Thrown value: [object that cannot be shown]"),
        ("throw Object.defineProperty(new Error('x'), 'stack', {get() { throw 1 }})", "Error", "x"),
        ("throw new DOMException('gone', 'AbortError')", "AbortError", "gone"),
        ("(function f() { f() })()", "RangeError", "Maximum call stack size exceeded"),
        ("import('./other.js')", "ReferenceError", "could not load module 'other.js'"),
        ("process.exit(1)", "Error", "process.exit is not available in a function"),
        ("process.abort()", "Error", "process.abort is not available in a function"),
        ("Response.error()", "TypeError", "Response.error() cannot be the answer of a function"),
    ],
)  # fmt: skip
def test_whatever_is_thrown_is_told(plain: Ask, source: str, name: str, message: str) -> None:
    answer = plain(source)
    assert (answer.outcome, answer.error["name"], answer.error["message"]) == ("exception", name, message)


async def test_stacks_hold_the_authors_places_and_nothing_of_ours(v8_child: V8Child) -> None:
    source = "type T = {\n  a: number\n}\nasync function deep(t: T) {\n  await null\n  throw Object.assign(new Error('x'), {code: 'E_X'})\n}\nexport default async (t: T) => {\n  return await deep(t)\n}"
    built = await build(source, "typescript", filename="orders.ts")
    assert built.source_map is not None
    v8_child.bind(built.code.decode()[1:])
    error = v8_child.invoke().error
    frames = translate_stack(error["stack"], built.source_map).strip().split("\n")
    assert error["code"] == "E_X"
    assert len(frames) == 2
    assert frames[0].startswith("at deep (orders.ts:6:")
    assert "default (orders.ts:9:" in frames[1]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("export const a = 1", "The module has no default export"),
        ("export default 5", "The module has a default export that is not a function"),
        ("throw new Error('top')", "top"),
        ("await 0; throw new Error('later'); export default () => 1", "later"),
        ("await new Promise(() => {}); export default () => 1", "A top-level await waits"),
        ("import fs from 'node:fs'; export default () => 1", "could not load module 'node:fs'"),
        ("import {nope} from 'node:crypto'; export default () => 1", "The requested module 'node:crypto' does not provide an export named 'nope'"),
        ("export default (", "Unexpected end of input"),
        ("\0", "the module holds a NUL character"),
        ("await atlas.kv.get('a'); export default () => 1", "kv.get can be called only while an invocation runs"),
        ("Promise.reject(new Error('lost')); await new Promise((r) => setTimeout(r, 1000)); export default () => 1", "lost"),
    ],
)  # fmt: skip
def test_a_program_that_does_not_load_is_answered_with_why(v8_child: V8Child, code: str, message: str) -> None:
    answer = v8_child.bind(code)
    assert answer.outcome == "load_failed"
    assert answer.error["message"].startswith(message)
    assert v8_child.invoke().outcome == "load_failed"


# Modules


def test_both_sides_know_the_same_builtins() -> None:
    text = (PROGRAMS / "modules.js").read_text()
    listed = text.partition("const ALLOWED = [")[2].partition("]")[0]
    assert set(json.loads(f"[{listed.strip().rstrip(',')}]")) == BUILTINS


async def test_builtins_are_built_and_loaded(v8_child: V8Child) -> None:
    imports = "".join(
        f"import * as all{n} from 'node:{name}'; import one{n} from '{name}';"
        for n, name in enumerate(sorted(BUILTINS))
    )
    names = ", ".join(f"[typeof one{n}, Object.keys(all{n}).length > 1]" for n in range(len(BUILTINS)))
    built = await build(f"{imports} export default () => [{names}]", "javascript", filename="f.js", builtins=BUILTINS)
    assert v8_child.bind(built.code.decode()[1:]).outcome == "ok"
    assert all(kind in ("object", "function") and many for kind, many in v8_child.invoke().value)


@pytest.mark.parametrize("name", ["fs", "node:fs/promises", "node:net", "http", "child_process", "worker_threads", "vm", "node:module", "inspector", "v8", "os", "node:test", "lodash", "node:nothing"])  # fmt: skip
async def test_other_modules_are_refused_at_deploy_and_at_run_time(ask: Ask, name: str) -> None:
    with pytest.raises(CompileError, match=f'Cannot import "{name}"'):
        await build(f"import x from '{name}'; export default () => x", "javascript", filename="f.js", builtins=BUILTINS)
    for source in (
        f"await import('{name}')",
        f"await (0, eval)(\"import('{name}')\")",
        f"await new Function(\"return import('{name}')\")()",
    ):
        assert ask(source).error["message"] == f"could not load module '{name}'"


def test_builtins_work(v8_child: V8Child) -> None:
    code = """import {createHash, pbkdf2} from "node:crypto"; import {Buffer as B} from "buffer"; import zlib from "zlib"; import {promisify} from "node:util";
      import {setTimeout as sleep} from "node:timers/promises"; import {AsyncLocalStorage} from "async_hooks"; import process from "process";
      const local = new AsyncLocalStorage();
      export default async () => {
        const lazy = await import("node:path");
        return [createHash("sha256").update("a").digest("hex").slice(0, 8), B.from("é").toString("base64"), (await promisify(pbkdf2)("a", "b", 1, 4, "sha1")).length,
          (await promisify(zlib.gunzip)(await promisify(zlib.gzip)("zip"))).toString(), await sleep(1, "slept"), await local.run(7, async () => { await sleep(1); return local.getStore(); }),
          await promisify(setTimeout)(1, "timed"), process === globalThis.process, process.env, lazy.join("a", "b")]; }"""
    assert v8_child.bind(code).outcome == "ok"
    assert v8_child.invoke().value == ["ca978112", "w6k=", 4, "zip", "slept", 7, "timed", True, {}, "a/b"]


# The host


def test_calls_of_one_turn_share_a_frame(ask: Ask) -> None:
    source = """const later = async () => { await null; await null; return atlas.kv.get("d") };
      const all = await Promise.all([atlas.kv.get("a"), atlas.db.query("select 1", [new Date(0), 1n, new Uint8Array([1, 255])]), later()]);
      return [...all, await atlas.kv.set("c", 1)]"""
    host = {"kv.get": str.upper, "db.query": lambda *args: list(args), "kv.set": lambda *args: None}
    answer = ask(source, host=host)
    assert answer.value == ["A", ["select 1", ["1970-01-01T00:00:00.000Z", "1", {"$bytes": "Af8="}]], "D", None]
    assert answer.turns == [["kv.get", "db.query", "kv.get"], ["kv.set"]]


def test_host_errors_are_errors_with_a_code_and_a_place(v8_child: V8Child) -> None:
    def refuse(*_: Any) -> None:
        raise Refused("permission_denied", "no such table é")

    v8_child.bind("export default async () => {\n  return await atlas.db.query('x') }")
    error = v8_child.invoke(host={"db.query": refuse}).error
    assert (error["name"], error["message"], error["code"]) == ("AtlasError", "no such table é", "permission_denied")
    assert "default (<input>:3:" in error["stack"]


def test_at_most_64_calls_are_in_flight(v8_child: V8Child) -> None:
    v8_child.bind("export default () => Promise.all(Array.from({length: 200}, (_, i) => atlas.kv.get(String(i))))")
    inv = v8_child.start()
    waiting: list[tuple[int, str]] = []
    seen = 0
    while (frame := v8_child.receive())[0] is Type.HOSTCALL:
        for call, _, args in json.loads(frame[3]):
            waiting.append((call, json.loads(args)[0]))
            seen += 1
        assert len(waiting) <= 64
        while waiting and (seen >= 64):
            call, key = waiting.pop(0)
            v8_child.send(Type.HOSTRES, inv, call, b"\x01" + json.dumps(key).encode())
            if seen < 200:
                break
    assert (frame[0], seen) == (Type.RESULT, 200)


ANSWER = {
    "status": 404,
    "status_text": "Not Found",
    "url": "http://x/end",
    "redirected": True,
    "headers": [["Content-Type", "application/json"], ["set-cookie", "a=1"], ["set-cookie", "b=2"]],
    "body_base64": "eyJhIjoiw6kifQ==",
}


def test_fetch_is_the_hosts_and_answers_a_native_response(ask: Ask) -> None:
    seen: list[Any] = []

    def fetch(url: str, options: dict[str, Any]) -> dict[str, Any]:
        seen.append((url, options))
        return ANSWER

    source = """const r = await fetch(new URL("http://x/a?b"), {method: "post", headers: {"X-A": "1"}, body: "é", timeout: 50});
      const copy = r.clone(); const again = copy.clone();
      return [r instanceof Response, fetch === atlas.fetch, r.status, r.statusText, r.ok, r.url, copy.url, r.redirected, r.type, r.headers.get("content-type"), r.headers.getSetCookie(),
              await r.json(), await copy.text(), (await again.arrayBuffer()).byteLength, r.bodyUsed]"""
    assert ask(source, host={"fetch": fetch}).value == [
        *(True, True, 404, "Not Found", False, "http://x/end", "http://x/end", True, "basic", "application/json"),
        *(["a=1", "b=2"], {"a": "é"}, '{"a":"é"}', 10, True),
    ]
    [(url, options)] = seen
    assert (url, options["method"], options["body_base64"], options["timeout_ms"]) == (
        "http://x/a?b",
        "POST",
        "w6k=",
        50,
    )
    assert dict(options["headers"]) == {"x-a": "1", "content-type": "text/plain;charset=UTF-8"}


@pytest.mark.parametrize(
    ("body", "base64"),
    [
        ("new Uint8Array([0, 255])", "AP8="),
        ("new URLSearchParams({a: 'b c'})", "YT1iK2M="),
        ("new Blob(['ab', 'c'])", "YWJj"),
        ("new ReadableStream({start(c) { c.enqueue(new Uint8Array([97])); c.close() }})", "YQ=="),
        ("null", None),
    ],
)
def test_bodies_of_fetch(ask: Ask, body: str, base64: str | None) -> None:
    seen: list[Any] = []

    def fetch(_: str, options: dict[str, Any]) -> dict[str, Any]:
        seen.append(options["body_base64"])
        return {**ANSWER, "status": 204, "body_base64": ""}

    assert (
        ask(f"return (await fetch('http://x/', {{method: 'PUT', body: {body}}})).text()", host={"fetch": fetch}).value
        == ""
    )
    assert seen == [base64]


def test_a_form_is_sent_with_its_boundary(ask: Ask) -> None:
    seen: list[Any] = []

    def fetch(_: str, options: dict[str, Any]) -> dict[str, Any]:
        seen.append(dict(options["headers"])["content-type"])
        return ANSWER

    source = "const f = new FormData(); f.set('a', new Blob(['x'])); return (await fetch(new Request('http://x/', {method: 'POST', body: f}))).status"
    assert ask(source, host={"fetch": fetch}).value == 404
    assert seen[0].startswith("multipart/form-data; boundary=")


def test_abort_rejects_at_once_and_a_late_answer_is_dropped(v8_child: V8Child) -> None:
    v8_child.bind(EVAL)
    inv = v8_child.start(
        "try { await fetch('http://x/', {signal: AbortSignal.timeout(5)}) } catch (e) { return e.name }"
    )
    [[call, _, _]] = json.loads(v8_child.receive()[3])
    assert v8_child.finish({}).value == "TimeoutError"
    v8_child.send(Type.HOSTRES, inv, call, b"\x01{}")
    assert v8_child.invoke("return 'fine'").value == "fine"
    answer = v8_child.invoke("return fetch('http://x/', {signal: AbortSignal.abort(new Error('mine'))})")
    assert (answer.error["message"], answer.turns) == ("mine", [])


# Responses


def test_a_response_is_answered_with_status_headers_and_body(plain: Ask) -> None:
    text = plain("new Response('héllo', {status: 201, headers: {'X-A': 'b'}})")
    assert (text.meta["kind"], text.meta["status"], text.body) == ("response", 201, "héllo".encode())
    assert sorted(text.meta["headers"]) == [["content-type", "text/plain;charset=UTF-8"], ["x-a", "b"]]
    for source, body in [
        ("new Response(new Uint8Array([0, 255, 1]))", b"\x00\xff\x01"),
        ("Response.json({a: 1})", b'{"a":1}'),
        ("Response.redirect('http://a/b')", b""),
        ("Promise.resolve(new Response(null, {status: 204}))", b""),
        ("new Response(new ReadableStream({start(c) { for (let i = 0; i < 3; i++) c.enqueue(new Uint8Array([97 + i])); c.close() }}))", b"abc"),
        ("new Response(new ReadableStream({async pull(c) { c.enqueue(new TextEncoder().encode(await atlas.kv.get('k'))); c.close() }}))", b"v"),
        ("class Mine extends Response {}; new Mine('mine')", b"mine"),
    ]:  # fmt: skip
        assert plain(source, host={"kv.get": lambda key: "v"}).body == body


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{ const r = new Response('x'); r.text().then(() => r) }", "The body was already read"),
        ("{ const r = new Response('x'); r.body.getReader(); r }", "The body was already read"),
        ("new Response(null, {headers: Array.from({length: 257}, (_, i) => ['x' + i, i])})", "The Response has 257 headers; 256 are the most"),
        ("new Response(null, {headers: {x: 'y'.repeat(66000)}})", "The headers of the Response have 66001 characters; 65536 are the most"),
        ("new Response(new ReadableStream({pull() { throw new Error('mine') }}))", "mine"),
    ],
)  # fmt: skip
def test_a_response_that_cannot_be_sent_is_an_exception(plain: Ask, source: str, message: str) -> None:
    assert plain(source).error["message"] == message


# Console


def test_logs_keep_level_text_and_order(ask: Ask) -> None:
    source = r"""console.log("a", 1, {b: [1, {c: 2}]}); console.info("%s is %d%%", "x", 5, true); console.warn(new Map([[1, new Set("a")]]));
      console.error([1, , 2], null, undefined, -0, 10n, Symbol("s")); console.debug("lone \ud800"); console.assert(false, "no"); console.log();
      console.log(new Proxy({}, {ownKeys() { throw 1 }})); process.stdout.write("out");"""
    assert ask(source).logs == [
        ("log", "a 1 { b: [ 1, { c: 2 } ] }"),
        ("info", "x is 5% true"),
        ("warn", "Map(1) { 1 => Set(1) { 'a' } }"),
        ("error", "[ 1, <1 empty item>, 2 ] null undefined -0 10n Symbol(s)"),
        ("debug", "lone \ufffd"),
        ("error", "Assertion failed: no"),
        ("log", ""),
        ("log", "[object that cannot be shown]"),
        ("log", "out"),
    ]


def test_errors_in_logs_show_only_the_programs_frames(v8_child: V8Child) -> None:
    v8_child.bind("export default () => {\n  console.log(new RangeError('two\\nlines')); console.trace('here') }")
    (_, error), (level, trace) = v8_child.invoke().logs
    assert error.startswith("RangeError: two\nlines\n    at default (<input>:3:")
    assert (level, trace.split("\n")[0]) == ("debug", "Trace: here")
    for text in (error, trace):
        assert "node:internal" not in text
        assert "engines" not in text
        assert text.count("\n    at ") == 1 or text is trace


def test_a_log_flood_is_cut_and_said_to_be(v8_child: V8Child) -> None:
    v8_child.bind(
        "export default () => { for (let i = 0; i < 9000; i++) console.log('é'.repeat(100)); return 1 }", log_bytes=1000
    )
    meta = v8_child.invoke().meta
    assert (len(meta["logs"]), meta["truncated"]) == (5, True)


# Timers, what is left behind, what nobody waits for


def test_timers(ask: Ask) -> None:
    source = """const seen = []; const done = new Promise((resolve) => setTimeout(resolve, 60));
      setTimeout((...a) => seen.push(a), 10, "b", 1); setTimeout(() => seen.push("a"), 1); setImmediate(() => seen.push("immediate"));
      const off = setTimeout(() => seen.push("never"), 2); clearTimeout(off); clearTimeout(undefined);
      let n = 0; const every = setInterval(() => { if (++n === 2) clearInterval(every) }, 3); queueMicrotask(() => seen.push("micro"));
      await done; return [seen.filter((s) => s !== "immediate"), seen.includes("immediate"), n]"""
    assert ask(source).value == [["micro", "a", ["b", 1]], True, 2]


def test_what_callbacks_throw_is_logged(ask: Ask) -> None:
    source = """setTimeout(() => { throw new Error("timer") }, 1); queueMicrotask(() => { throw "microtask" }); process.nextTick(() => { throw new Error("tick") });
      setImmediate(() => { throw new Error("immediate") }); await new Promise((r) => setTimeout(r, 10)); return "fine" """
    answer = ask(source)
    assert answer.value == "fine"
    assert {text.split("\n")[0] for _, text in answer.logs} == {
        "Uncaught 'microtask'",
        "Uncaught Error: tick",
        "Uncaught Error: immediate",
        "Uncaught Error: timer",
    }


def test_a_rejection_that_nobody_handles_ends_the_run(ask: Ask) -> None:
    answer = ask("(async () => { throw new RangeError('lost') })(); await new Promise((r) => setTimeout(r, 5000))")
    assert (answer.outcome, answer.error["name"], answer.error["message"]) == ("exception", "RangeError", "lost")
    assert ask("const p = Promise.reject(1); await null; try { await p } catch (e) { return e }").value == 1


def test_what_is_left_behind_neither_runs_calls_nor_logs_later(v8_child: V8Child) -> None:
    code = """let ran = [];
      const late = async (from) => { await from; ran.push("late"); console.log("late"); setTimeout(() => ran.push("late timer"), 1);
        try { await atlas.kv.get("late") } catch (e) { ran.push(e.code) } throw new Error("late") };
      export default async (step) => {
        if (step === 1) {
          setTimeout(() => ran.push("timeout"), 1); setInterval(() => ran.push("interval"), 1); setImmediate(() => ran.push("immediate"));
          atlas.kv.get("x").then(() => ran.push("call"), () => ran.push("rejected")); queueMicrotask(() => { ran.push("microtask"); console.log("in time") });
          late(crypto.subtle.digest("SHA-256", new Uint8Array(3e7)));
          return "left"; }
        const end = Date.now() + 5000;
        while (!ran.includes("no_invocation") && Date.now() < end) await new Promise((r) => setTimeout(r, 5));
        await new Promise((r) => setTimeout(r, 20)); console.log("second"); return ran; }"""
    v8_child.bind(code)
    first = v8_child.invoke(1, host={"kv.get": lambda key: key})
    assert (first.value, first.logs) == ("left", [("log", "in time")])
    second = v8_child.invoke(2)
    assert second.value == ["microtask", "late", "no_invocation"]
    assert (second.logs, second.turns) == ([("log", "second")], [])


def test_stale_frames_are_ignored(v8_child: V8Child) -> None:
    v8_child.bind("export default async (key) => [key, await atlas.kv.get(key)]")
    first = v8_child.start("a")
    [[call, _, _]] = json.loads(v8_child.receive()[3])
    v8_child.send(Type.HOSTRES, first, call, b'\x01"for a"')
    assert v8_child.finish({}).value == ["a", "for a"]
    v8_child.send(Type.CANCEL, first)
    second = v8_child.start("b")
    [[call, _, _]] = json.loads(v8_child.receive()[3])
    v8_child.send(Type.HOSTRES, first, call, b'\x01"late"')
    v8_child.send(Type.CANCEL, first)
    v8_child.send(Type.HOSTRES, second, call + 1000, b'\x01"unknown call"')
    v8_child.send(Type.HOSTRES, second, call, b'\x01"for b"')
    assert v8_child.finish({}).value == ["b", "for b"]


@pytest.mark.parametrize("wait", ["await atlas.kv.get('a')", "await new Promise((r) => setTimeout(r, 1e6))"])
def test_cancel_ends_a_wait_and_the_process_goes_on(v8_child: V8Child, wait: str) -> None:
    v8_child.bind(EVAL)
    inv = v8_child.start("console.log('before');" + wait + "; console.log('after')")
    if "atlas" in wait:
        assert v8_child.receive()[0] is Type.HOSTCALL
    v8_child.send(Type.CANCEL, inv)
    answer = v8_child.finish({})
    assert (answer.outcome, answer.logs) == ("cancelled", [("log", "before")])
    assert v8_child.invoke("return 'usable'").value == "usable"


# Limits


@pytest.mark.parametrize(
    "source",
    [
        "new Promise(() => {})",
        "({then() {}})",
        "clearTimeout(setTimeout(() => {}, 1)); new Promise(() => {})",
        "new Promise(() => { setTimeout(() => {}, 1) })",
        "crypto.subtle.digest('SHA-256', new Uint8Array(1)).then(() => new Promise(() => {}))",
        "new Response(new ReadableStream({pull() { return new Promise(() => {}) }}))",
    ],
)
def test_a_promise_that_cannot_settle_is_told_at_once(plain: Ask, source: str) -> None:
    started = time.monotonic()
    assert plain(source).outcome == "never_settles"
    assert time.monotonic() - started < 5
    assert plain("1 + 1").value == 2


def test_work_of_the_engines_own_threads_is_in_flight(plain: Ask) -> None:
    assert plain("crypto.subtle.digest('SHA-256', new Uint8Array(2e7)).then((d) => d.byteLength)").value == 32
    source = "new Response(new Blob(['x'.repeat(1e5)]).stream().pipeThrough(new CompressionStream('gzip'))).arrayBuffer().then((b) => b.byteLength)"
    assert 50 < plain(source).value < 5000


@pytest.mark.parametrize(
    "source",
    [
        "(function again() { queueMicrotask(again) })(); new Promise(() => {})",
        "new Promise(() => { (function again() { setTimeout(again, 0) })() })",
        "new Promise(() => { setInterval(() => { const end = Date.now() + 5; while (Date.now() < end); }, 0) })",
        "{ const from = process.cpuUsage().user; while (process.cpuUsage().user - from < 1e5); }",
    ],
)
def test_turns_without_end_and_turns_too_long_end_at_the_cpu_limit(plain: Ask, source: str) -> None:
    answer = plain(source, cpu_ms=60)
    assert (answer.outcome, answer.error["name"]) == ("cpu_limit", "CpuLimit")
    assert 60 <= answer.meta["used"] < 5000
    assert plain("1 + 1").value == 2


def test_waiting_is_not_cpu_time(plain: Ask) -> None:
    answer = plain("new Promise(r => setTimeout(() => r('slept'), 150))", cpu_ms=100)
    assert answer.value == "slept"
    assert answer.meta["wall_us"] >= 150_000
    assert answer.meta["cpu_us"] < 100_000
    assert 1_000_000 < answer.meta["memory_bytes"] < 64_000_000


@pytest.mark.parametrize(
    ("source", "outcome"),
    [
        ("'x'.repeat(5000000)", "result_limit"),
        ("'é'.repeat(3000000)", "result_limit"),
        ("new Response('é'.repeat(3000000))", "result_limit"),
        ("new Response(new ReadableStream({pull(c) { c.enqueue(new Uint8Array(1e5)) }}))", "result_limit"),
        ("throw new RangeError('Array buffer allocation failed')", "memory_limit"),
    ],
)
def test_other_limits(v8_child: V8Child, source: str, outcome: str) -> None:
    v8_child.bind(PLAIN, result_bytes=4_000_000)
    answer = v8_child.invoke(source)
    assert answer.outcome == outcome
    assert answer.meta["used"] > 4_000_000
    assert v8_child.invoke("1 + 1").value == 2


def test_results_up_to_the_limit_pass(plain: Ask) -> None:
    assert len(plain("'x'.repeat(5 * 1024 * 1024 - 2)").body) == 5 * 1024 * 1024
    assert plain("'x'.repeat(5 * 1024 * 1024 - 1)").outcome == "result_limit"
    assert len(plain("new Response(new Uint8Array(5 * 1024 * 1024))").body) == 5 * 1024 * 1024


# Isolation


def test_warm_keeps_the_module_and_fresh_serves_one_call(engine: Engine, v8_child: V8Child) -> None:
    counter = "let n = 0; export default () => ++n"
    v8_child.bind(counter)
    assert [v8_child.invoke().value for _ in range(3)] == [1, 2, 3]
    fresh = V8Child(engine)
    try:
        fresh.bind(counter, isolation="fresh")
        assert fresh.invoke().value == 1
        with pytest.raises((EOFError, ConnectionResetError)):
            fresh.invoke()
    finally:
        fresh.close()


def test_what_reaches_outside_is_not_there(ask: Ask) -> None:
    names = [
        "Deno",
        "require",
        "module",
        "WebSocket",
        "EventSource",
        "XMLHttpRequest",
        "Worker",
        "BroadcastChannel",
        "localStorage",
        "caches",
        "navigator",
        "alert",
        "prompt",
        "close",
        "gc",
    ]
    source = f"return [{json.dumps(names)}.filter((name) => name in globalThis), Object.keys(globalThis), process.env, process.argv, process.getBuiltinModule('fs') ?? null]"
    assert ask(source).value == [[], ["atlas"], {}, [], None]
    assert ask("atlas.kv = 1").outcome == "ok"
    assert ask("'use strict'; atlas.kv = 1").error["name"] == "TypeError"


def test_the_socket_is_not_reached_through_what_a_program_may_change(v8_child: V8Child) -> None:
    """Whoever emits, writes or prepares stacks on our behalf is not handed to the program."""
    code = """import EventEmitter from "node:events"; import stream from "node:stream";
      const seen = new Set(); const note = (self) => { if (self !== undefined && self !== null && self !== globalThis && typeof self === "object") seen.add(self.constructor?.name) };
      for (const proto of [EventEmitter.prototype, stream.Readable.prototype, stream.Writable.prototype, stream.Duplex.prototype])
        for (const key of Object.getOwnPropertyNames(proto)) { const own = Object.getOwnPropertyDescriptor(proto, key);
          if (typeof own.value === "function" && own.writable) proto[key] = function (...args) { note(this); return Reflect.apply(own.value, this, args) } }
      Error.prepareStackTrace = (error, sites) => { for (const site of sites) { note(site.getThis()); if (site.getFunction() !== undefined && !site.getFileName()?.startsWith("<input>")) seen.add("function") } return "" };
      export default async () => { new Error("x").stack; await atlas.kv.get("a"); await new Promise((r) => setTimeout(r, 2)); new Error("x").stack; return [...seen] }"""
    assert v8_child.bind(code).outcome == "ok"
    assert v8_child.invoke(host={"kv.get": lambda key: key}).value == []
    assert v8_child.invoke(host={"kv.get": lambda key: key}).value == []


TAMPERS = [
    "for (const k of Object.getOwnPropertyNames(Array.prototype)) try { Array.prototype[k] = () => { throw 1 } } catch {}",
    "for (const k of Object.getOwnPropertyNames(String.prototype)) try { String.prototype[k] = () => { throw 1 } } catch {}",
    "for (const k of Object.getOwnPropertyNames(Object)) if (k !== 'prototype') try { Object[k] = () => { throw 1 } } catch {}",
    "for (const k of Object.getOwnPropertyNames(Reflect)) Reflect[k] = () => { throw 1 }",
    "for (const k of ['call', 'apply', 'bind']) Function.prototype[k] = () => { throw 1 }",
    "JSON.stringify = () => 'forged'; JSON.parse = () => 'forged'",
    "Promise.prototype.then = function () { throw 1 }; Promise.resolve = Promise.reject = () => { throw 1 }",
    "globalThis.Promise = globalThis.Error = globalThis.JSON = globalThis.String = globalThis.Uint8Array = undefined",
    "Array.prototype[Symbol.iterator] = function* () { throw 1 }; String.prototype[Symbol.iterator] = () => { throw 1 }",
    "for (const k of ['0', '1', 'op', 'calls', 'text', 'id', 'get', 'value']) Object.defineProperty(Object.prototype, k, {set() { throw 1 }, configurable: true})",
    "Object.defineProperty(Object.prototype, 'then', {get() { return undefined }, configurable: true})",
    "Object.freeze(Object.prototype); Object.freeze(Array.prototype)",
    "Object.prototype.toJSON = undefined; String.prototype.toJSON = () => 'forged'; Number.prototype.toJSON = () => 'forged'",
    "performance.now = Date.now = () => { throw 1 }",
    "for (const k of Object.getOwnPropertyNames(globalThis)) if (!['atlas', 'console', 'globalThis'].includes(k)) try { delete globalThis[k] } catch {}",
    "Error.prototype.name = Error.prototype.message = 'forged'; Error.prepareStackTrace = () => { throw 1 }",
    "RegExp.prototype.exec = RegExp.prototype.test = () => { throw 1 }; Map.prototype.get = Set.prototype.has = () => { throw 1 }",
    "const T = Object.getPrototypeOf(Uint8Array.prototype); for (const k of ['length', 'byteLength', 'buffer', 'byteOffset']) Object.defineProperty(T, k, {get() { return 1 }, configurable: true})",
]  # fmt: skip


@pytest.mark.parametrize("tamper", TAMPERS)
def test_tampered_globals_never_make_a_false_answer(v8_child: V8Child, tamper: str) -> None:
    """An answer is right, or there is none: the engine's own library may fall with what it stands on, and its run with it."""
    code = f"""const wait = setTimeout; const P = Promise; {tamper};
      export default async (input) => {{ console.log("here"); await new P((resolve) => {{ wait(resolve, 1) }}); return {{got: await atlas.kv.get("key"), input}}; }}"""
    v8_child.socket.settimeout(2)
    with contextlib.suppress(EOFError, ConnectionError, TimeoutError):
        assert v8_child.bind(code).outcome in ("ok", "load_failed")
        for text in ("one", "two"):
            answer = v8_child.invoke(text, host={"kv.get": lambda key: key})
            if answer.outcome == "ok":
                assert answer.value == {"got": "key", "input": text}
                assert answer.logs == [("log", "here")]
            else:
                assert answer.outcome in ("exception", "load_failed", "never_settles")


def test_the_parts_of_the_program_are_the_same_for_both() -> None:
    """Deno names each file in an import of its own; Node reads those that program.mjs lists."""
    listed = set((PROGRAMS / "program.mjs").read_text().split('"')) & {
        path.name for path in Path(PROGRAMS).glob("*.js")
    }
    imported = set((PROGRAMS / "deno_main.js").read_text().split('"'))
    assert {f"./{name}" for name in listed} <= imported
    assert listed == {path.name for path in Path(PROGRAMS).glob("*.js")} - {"deno_main.js"}
