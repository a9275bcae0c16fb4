# ruff: noqa: E501 (programs in strings)
"""What lives from one invocation to the next, what does not, and what hostile programs cannot reach."""

import json

import pytest

from engines.frames import Type
from tests.fix_quickjs_child import Child

COUNTER = "let n = 0; export default () => ++n"


def test_warm_keeps_the_module(child: Child) -> None:
    child.bind(COUNTER)
    assert [child.invoke().value for _ in range(3)] == [1, 2, 3]


def test_fresh_loads_the_module_anew(child: Child) -> None:
    child.bind(COUNTER + "; globalThis.m = (globalThis.m ?? 0) + 1; console.log('loading')", isolation="fresh")
    answers = [child.invoke() for _ in range(3)]
    assert [answer.value for answer in answers] == [1, 1, 1]
    assert [answer.logs for answer in answers] == [[], [], []]


@pytest.mark.parametrize("end", ["for (;;);", "const a = []; for (;;) a.push(new Uint8Array(1e6))"])
def test_a_limit_replaces_the_realm(child: Child, end: str) -> None:
    child.bind("let n = 0; export default (bad) => { n++; if (bad) { " + end + " } return n }", memory_mib=16)
    assert child.invoke(False).value == 1
    assert child.invoke(True, cpu_ms=50).outcome in ("cpu_limit", "memory_limit")
    assert child.invoke(False).value == 1


def test_an_exception_keeps_the_realm(child: Child) -> None:
    child.bind("let n = 0; export default (bad) => { n++; if (bad) throw 1; return n }")
    assert child.invoke(True).outcome == "exception"
    assert child.invoke(False).value == 2


def test_cancel_ends_a_wait_and_replaces_the_realm(child: Child) -> None:
    child.bind("let n = 0; export default async (w) => { n++; if (w) await atlas.kv.get('a'); return n }")
    inv = child.start(True)
    assert child.receive()[0] is Type.HOSTCALL
    child.send(Type.CANCEL, inv)
    assert child.finish({}).outcome == "cancelled"
    assert child.invoke(False).value == 1


def test_cancel_ends_a_sleep(child: Child) -> None:
    child.bind("export default (ms) => new Promise(r => setTimeout(() => r(ms), ms))")
    inv = child.start(1_000_000)
    child.send(Type.CANCEL, inv)
    assert child.finish({}).outcome == "cancelled"
    assert child.invoke(1).value == 1


def test_stale_frames_are_ignored(child: Child) -> None:
    child.bind("export default async (key) => [key, await atlas.kv.get(key)]")
    first = child.start("a")
    _, _, _, payload = child.receive()
    [[call, _, _]] = json.loads(payload)
    child.send(Type.HOSTRES, first, call, b'\x01"for a"')
    assert child.finish({}).value == ["a", "for a"]
    child.send(Type.HOSTRES, first, call, b'\x01"late"')
    child.send(Type.CANCEL, first)
    second = child.start("b")
    _, _, _, payload = child.receive()
    [[call, _, _]] = json.loads(payload)
    child.send(Type.HOSTRES, first, call, b'\x01"for a"')
    child.send(Type.CANCEL, first)
    child.send(Type.HOSTRES, second, call + 1000, b'\x01"unknown call"')
    child.send(Type.HOSTRES, second, call, b'\x01"for b"')
    assert child.finish({}).value == ["b", "for b"]


def test_what_is_left_behind_does_not_run_later(child: Child) -> None:
    child.bind(
        """let ran = [];
        export default async (step) => {
          if (step === 1) {
            setTimeout(() => ran.push("timeout"), 1); setInterval(() => ran.push("interval"), 1);
            atlas.kv.get("x").then(() => ran.push("call"), () => ran.push("rejected"));
            crypto.subtle.digest("SHA-1", new Uint8Array(1)).then(() => ran.push("digest"));
            queueMicrotask(() => ran.push("microtask"));
            return "left";
          }
          await new Promise(r => setTimeout(r, 20));
          console.log("second");
          return ran; }"""
    )
    assert child.invoke(1, host={"kv.get": lambda key: key}).value == "left"
    answer = child.invoke(2)
    assert answer.value == ["microtask"]
    assert answer.logs == [("log", "second")]


@pytest.mark.parametrize(
    "tamper",
    [
        "for (const k of Object.getOwnPropertyNames(Array.prototype)) try { Array.prototype[k] = () => { throw 1 } } catch {}",
        "for (const k of Object.getOwnPropertyNames(String.prototype)) try { String.prototype[k] = () => { throw 1 } } catch {}",
        "for (const k of Object.getOwnPropertyNames(Object)) if (k !== 'prototype') try { Object[k] = () => { throw 1 } } catch {}",
        "for (const k of Object.getOwnPropertyNames(Reflect)) Reflect[k] = () => { throw 1 }",
        "for (const k of ['call', 'apply', 'bind']) Function.prototype[k] = () => { throw 1 }",
        "JSON.stringify = () => 'forged'; JSON.parse = () => 'forged'",
        "Promise.prototype.then = function () { throw 1 }; Promise.resolve = Promise.reject = () => { throw 1 }",
        "globalThis.Promise = globalThis.Error = globalThis.JSON = globalThis.String = globalThis.Uint8Array = undefined",
        "Array.prototype[Symbol.iterator] = function* () { throw 1 }; String.prototype[Symbol.iterator] = () => { throw 1 }",
        "for (const k of ['0', '1', 'op', 'calls', 'text', 'id', 'get', 'value']) "
        "Object.defineProperty(Object.prototype, k, {set() { throw 1 }, configurable: true})",
        "Object.defineProperty(Object.prototype, 'then', {get() { return undefined }, configurable: true})",
        "Object.freeze(Object.prototype); Object.freeze(Array.prototype)",
        "Object.prototype.toJSON = undefined; String.prototype.toJSON = () => 'forged'; Number.prototype.toJSON = () => 'forged'",
        "performance.now = Date.now = () => { throw 1 }",
        "for (const k of Object.getOwnPropertyNames(globalThis)) if (!['atlas', 'console', 'globalThis'].includes(k)) "
        "try { delete globalThis[k] } catch {}",
        "Object.setPrototypeOf(Object.prototype, null); Object.setPrototypeOf(Array.prototype, null)",
        "Error.prototype.name = Error.prototype.message = 'forged'; Error.prepareStackTrace = () => { throw 1 }",
        "RegExp.prototype.exec = RegExp.prototype.test = () => { throw 1 }; Map.prototype.get = Set.prototype.has = () => { throw 1 }",
    ],
)
def test_tampered_globals_do_not_break_the_bridge(child: Child, tamper: str) -> None:
    code = f"""const wait = setTimeout; const P = Promise;
    {tamper};
    export default async (input) => {{
      console.log("here");
      await new P((resolve) => {{ wait(resolve, 1) }});
      if (input === "throw") throw "thrown";
      return {{got: await atlas.kv.get("key"), input}};
    }}"""
    assert child.bind(code).outcome == "ok"
    for text in ("one", "two"):
        answer = child.invoke(text, host={"kv.get": lambda key: key})
        assert answer.value == {"got": "key", "input": text}
        assert answer.logs == [("log", "here")]
    thrown = child.invoke("throw")
    assert thrown.outcome == "exception"
    assert thrown.error["message"].startswith("Thrown value: ")


def test_what_breaks_the_engine_itself_ends_as_an_exception(child: Child) -> None:
    code = "Object.defineProperty(Array.prototype, 0, {set() { throw new Error('mine') }}); export default () => [1]"
    child.bind(code)
    assert child.invoke().error["message"] == "mine"
    assert child.invoke().error["message"] == "mine"


def test_the_bridge_cannot_be_reached(child: Child) -> None:
    child.bind(
        """export default () => {
          const names = Object.getOwnPropertyNames(globalThis).filter(n => /bridge|core|settle|outbox|__/i.test(n));
          const caller = (() => { try { return (function f() { return f.caller })() } catch { return null } })();
          return [names, caller ?? null, typeof require, typeof process, typeof std, typeof os]; }"""
    )
    assert child.invoke().value == [[], None, "undefined", "undefined", "undefined", "undefined"]


def test_atlas_cannot_be_changed(child: Child) -> None:
    child.bind(
        """export default () => {
          const results = [];
          for (const change of [() => { atlas.kv = 1 }, () => { atlas.kv.get = 1 }, () => { globalThis.atlas = 1 },
                                () => { delete globalThis.atlas }, () => { Object.defineProperty(globalThis, "atlas", {value: 1}) }])
            try { change(); results.push("changed") } catch (e) { results.push(e.name) }
          return results; }"""
    )
    assert child.invoke().value == ["TypeError"] * 5
