# ruff: noqa: E501 (programs in strings)
"""Node and Deno children: timers, limits, what is left behind, and what a hostile program cannot reach."""

import contextlib
import json
import time
from pathlib import Path

import pytest

from engines.frames import Type
from tests.fix_v8_child import EVAL, PLAIN, PROGRAMS, Ask, Engine, V8Child


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


def test_warm_keeps_the_module_and_fresh_serves_one_call(v8_name: Engine, v8_child: V8Child) -> None:
    counter = "let n = 0; export default () => ++n"
    v8_child.bind(counter)
    assert [v8_child.invoke().value for _ in range(3)] == [1, 2, 3]
    fresh = V8Child(v8_name)
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
