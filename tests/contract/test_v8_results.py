# ruff: noqa: E501 (programs in strings)
"""Node and Deno children: what a function takes, returns, throws and logs, and what it may import."""

import json
from typing import Any

import pytest

from engines.build import CompileError, build
from engines.frames import LENGTH, Type, encode
from engines.sourcemap import translate_stack
from engines.v8.builtins import BUILTINS
from tests.fix_v8_child import PROGRAMS, Ask, V8Child


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


@pytest.mark.parametrize("cut", [1, 13, 14, 15, 31])
def test_frames_may_be_cut_anywhere(v8_child: V8Child, cut: int) -> None:
    v8_child.bind("export default async (text) => [text, await atlas.kv.get(text)]")
    head, context = b'{"cpu_ms":1000,"kind":"text"}', b"{}"
    payload = LENGTH.pack(len(head)) + head + LENGTH.pack(len(context)) + context + "é😀".encode()
    v8_child.inv = 1
    frame = encode(Type.INVOKE, 1, 0, payload)
    for part in (frame[i : i + cut] for i in range(0, len(frame), cut)):
        v8_child.socket.sendall(part)
    [[call, _, _]] = json.loads(v8_child.receive()[3])
    both = encode(Type.HOSTRES, 1, call + 1, b"\x01null") + encode(Type.HOSTRES, 1, call, b'\x01"got"')
    v8_child.socket.sendall(both[:-cut])
    v8_child.socket.sendall(both[-cut:])
    assert v8_child.finish({}).value == ["é😀", "got"]


@pytest.mark.parametrize("body", [b"{", b"1,2", b"1] , [2", b"", b"\xff", b'"\0"', b"[" * 200_000])
def test_input_that_is_not_json_is_an_exception(v8_child: V8Child, body: bytes) -> None:
    v8_child.bind("export default (input) => input")
    assert v8_child.invoke(body).error["message"] == "The input is not one JSON value"
    assert v8_child.invoke(1).value == 1


def test_ctx_is_deeply_frozen(v8_child: V8Child) -> None:
    v8_child.bind("export default (i, ctx) => { try { ctx.a.b = 2; } catch (e) { return [ctx, e.name]; } }")
    assert v8_child.invoke(ctx={"a": {"b": 1}}).value == [{"a": {"b": 1}}, "TypeError"]


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
