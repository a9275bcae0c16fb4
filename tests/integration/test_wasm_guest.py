"""The guest as a host sees it: what a program may do in an instance, and how each run ends."""

import hashlib
import json
from typing import Any

import pytest
import wasmtime

from engines.wasm.abi import CONTEXT_AREA_BYTES, INPUT_AREA_BYTES, Status
from tests.fix_wasm import MIB, NOW_NS, Ended, Guest


def value(ended: Ended) -> Any:
    assert ended.status is Status.RETURNED, ended
    return json.loads(ended.text)


def error(ended: Ended, status: Status = Status.THREW) -> Any:
    assert ended.status is status, ended
    return json.loads(ended.text)


def body_of(expression: str) -> str:
    return f"export default async function (input, ctx) {{ return {expression} }}"


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("undefined", "null"),
        ("NaN", "null"),
        ("-0", "0"),
        ("[1.5, 'é𝄞', true, null, {a: undefined}]", '[1.5,"é𝄞",true,null,{}]'),
        ("new Date(0)", '"1970-01-01T00:00:00.000Z"'),
        ("new Map([[1, 2]])", "{}"),
        ("9007199254740993", "9007199254740992"),
        ("'\\ud800'", '"\\ud800"'),
    ],
)
def test_a_value_is_told_as_json_stringify_does(guest: Guest, expression: str, text: str) -> None:
    ended = guest.run(body_of(expression))
    assert (ended.status, ended.text.decode()) == (Status.RETURNED, text)


@pytest.mark.parametrize(
    ("expression", "name", "message"),
    [
        ("1n", "TypeError", "The result cannot be JSON: it contains a BigInt"),
        ("(() => { const o = {}; o.o = o; return o })()", "TypeError", "The result cannot be JSON: it contains itself"),
        ("(() => { throw 'text' })()", "Error", "Thrown value: 'text'"),
        ("(() => { throw null })()", "Error", "Thrown value: null"),
        ("atlas.db", "ReferenceError", "atlas is not defined"),
        ("import('other')", "ReferenceError", "could not load module 'other'"),
    ],
)
def test_an_error_is_told_as_by_the_quickjs_engine(guest: Guest, expression: str, name: str, message: str) -> None:
    thrown = error(guest.run(body_of(expression)))
    assert (thrown["name"], thrown["message"]) == (name, message)


def test_a_stack_names_lines_of_the_program_and_a_code_is_kept(guest: Guest) -> None:
    source = (
        "function inner() {\n  throw Object.assign(new RangeError('no'), {code: 'E7'})\n}\nexport default () => inner()"
    )
    thrown = error(guest.run(source))
    assert (thrown["name"], thrown["message"], thrown["code"]) == ("RangeError", "no", "E7")
    first, second = thrown["stack"].splitlines()[:2]
    assert first.startswith("    at inner (<input>:3:")
    assert second.startswith("    at default (<input>:5:")


def test_inputs_of_each_kind(guest: Guest) -> None:
    assert value(guest.run(body_of("input.a"), b'{"a":[1]}')) == [1]
    assert value(guest.run(body_of("input"), "é\n𝄞".encode(), kind="text")) == "é\n𝄞"
    assert value(guest.run(body_of("[input instanceof Uint8Array, ...input]"), b"\0\xff", kind="bytes")) == [
        True,
        0,
        255,
    ]


@pytest.mark.parametrize("length", [INPUT_AREA_BYTES - 1, INPUT_AREA_BYTES, 2 * MIB])
def test_inputs_in_the_area_and_beyond_it(guest: Guest, length: int) -> None:
    assert value(guest.run(body_of("input.length"), b"x" * length, kind="text")) == length
    assert value(guest.run(body_of("input.length"), b'"' + b"x" * (length - 2) + b'"')) == length - 2


@pytest.mark.parametrize("text", [b"", b"{", b"1 2", b'"\0"', b"nul"])
def test_an_input_that_is_not_json(guest: Guest, text: bytes) -> None:
    thrown = error(guest.run(body_of("input"), text), Status.BAD_INPUT)
    assert (thrown["name"], thrown["message"]) == ("TypeError", "The input is not one JSON value")


def test_the_context_is_a_plain_frozen_object(guest: Guest) -> None:
    seen = "[ctx.a, Object.isFrozen(ctx), Object.isFrozen(ctx.o), Object.keys(ctx), 'a' in ctx, JSON.stringify(ctx)]"
    context = b'{"a":1,"o":{"b":[2]},"__proto__":3}'
    expected = [1, True, True, ["a", "o", "__proto__"], True, '{"a":1,"o":{"b":[2]},"__proto__":3}']
    assert value(guest.run(body_of(seen), context=context)) == expected


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("ctx.a = 2", "'a' is read-only"),
        ("ctx.z = 2", "object is not extensible"),
        ("delete ctx.a", "could not delete property"),
    ],
)
def test_the_context_cannot_be_changed(guest: Guest, statement: str, message: str) -> None:
    """Neither as the first thing that touches it, nor later."""
    for before in ("", "ctx.a; "):
        thrown = error(guest.run(f"export default (input, ctx) => {{ {before}{statement} }}", context=b'{"a":1}'))
        assert (thrown["name"], thrown["message"]) == ("TypeError", message)


def test_a_context_larger_than_its_area(guest: Guest) -> None:
    context = json.dumps({"long": "x" * CONTEXT_AREA_BYTES}).encode()
    assert value(guest.run(body_of("ctx.long.length"), context=context)) == CONTEXT_AREA_BYTES


def test_a_response(guest: Guest) -> None:
    ended = guest.run(body_of("new Response('é', {status: 201, headers: {'X-A': 'b'}})"))
    assert ended.status is Status.RESPONDED
    assert json.loads(ended.text) == {
        "status": 201,
        "headers": [["x-a", "b"], ["content-type", "text/plain;charset=UTF-8"]],
    }
    assert ended.body == "té".encode()
    assert guest.run(body_of("new Response(new Uint8Array([0, 255]))")).body == b"bAP8="


def test_logs_have_levels_and_include_those_of_the_top_level(guest: Guest) -> None:
    ended = guest.run("console.log('top', {a: 1}); export default () => { console.error('in'); throw 1 }")
    assert json.loads(f'{{"logs":{ended.logs}}}') == {
        "logs": [["log", "top { a: 1 }", 0], ["error", "in", 0]],
        "truncated": False,
    }


def test_logs_end_at_their_limit(guest: Guest) -> None:
    ended = guest.run(
        "export default () => { for (let i = 0; i < 100; i++) console.log('x'.repeat(100)) }", log_bytes=1000
    )
    told = json.loads(f'{{"logs":{ended.logs}}}')
    assert told["truncated"] is True
    assert sum(len(text) for _, text, _ in told["logs"]) <= 1000


def test_timers_move_the_clock_instead_of_waiting(guest: Guest) -> None:
    source = """
    const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
    export default async () => {
      const order = [], begun = Date.now();
      await Promise.all([sleep(3600_000).then(() => order.push("hour")), sleep(10.5).then(() => order.push("short"))]);
      let ticks = 0;
      await new Promise((resolve) => {
        const timer = setInterval(() => { if (++ticks === 3) { clearInterval(timer); resolve() } }, 5);
      });
      return [order, begun, Date.now() - begun, performance.now(), ticks];
    }"""
    begun_ms = NOW_NS // 10**6
    assert value(guest.run(source)) == [["short", "hour"], begun_ms, 3600_015, 3600_015, 3]


def test_the_clock_stands_still_while_code_runs(guest: Guest) -> None:
    spin = (
        "(() => { const a = Date.now(); for (let i = 0; i < 1e5; i++); return Date.now() - a + performance.now() })()"
    )
    assert value(guest.run(body_of(spin))) == 0


def test_randomness_comes_from_the_request_alone(guest: Guest) -> None:
    module = guest.module(body_of("[Math.random(), Math.random(), crypto.randomUUID(), crypto.randomUUID()]"))
    first, again = guest.run(module), guest.run(module)
    assert first == again
    other = value(guest.run(module, seed=2, entropy=b"\1" * 32))
    assert not set(other) & set(value(first))
    assert len(set(other)) == 4
    assert all(0 <= number < 1 for number in other[:2])


def test_random_values_are_spread(guest: Guest) -> None:
    drawn = value(guest.run(body_of("[...crypto.getRandomValues(new Uint8Array(4096))]"), entropy=bytes(range(32))))
    assert len(drawn) == 4096
    assert len(set(drawn)) == 256
    assert 120 < sum(drawn) / len(drawn) < 135


@pytest.mark.parametrize("length", [0, 1, 55, 56, 63, 64, 111, 112, 127, 128, 1000])
def test_digests(guest: Guest, length: int) -> None:
    data = bytes(number % 251 for number in range(length))
    source = """export default async (input) => Promise.all(["SHA-1", "SHA-256", "SHA-384", "sha-512"].map(
      async (name) => new Uint8Array(await crypto.subtle.digest(name, input)).toHex()))"""
    expected = [hashlib.new(name, data).hexdigest() for name in ("sha1", "sha256", "sha384", "sha512")]
    assert value(guest.run(source, data, kind="bytes")) == expected


def test_the_globals_there_are(guest: Guest) -> None:
    names = """["atlas", "fetch", "URL", "URLSearchParams", "TextEncoder", "TextDecoder", "Headers", "Request",
      "Response", "structuredClone", "atob", "btoa", "AbortController", "Event", "EventTarget", "setTimeout",
      "queueMicrotask", "console", "crypto", "performance", "self", "process", "require"]"""
    kinds = value(guest.run(body_of(f"Object.fromEntries({names}.map((name) => [name, typeof globalThis[name]]))")))
    absent = {name for name, kind in kinds.items() if kind == "undefined"}
    assert absent == {"atlas", "fetch", "process", "require"}


def test_web_apis_work(guest: Guest) -> None:
    assert value(
        guest.run(
            body_of(
                "[new URL('/x?b=1', 'https://é.example').href, new URLSearchParams('a=1&a=2').getAll('a'),"
                " new TextDecoder().decode(new TextEncoder().encode('é')),"
                " structuredClone(new Map([[1, {a: 1}]])).get(1),"
                " (() => { const c = new AbortController(); c.abort(); return c.signal.reason.name })()]"
            )
        )
    ) == ["https://xn--9ca.example/x?b=1", ["1", "2"], "é", {"a": 1}, "AbortError"]


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("export default (", "SyntaxError", "invalid property name"),
        ("import x from 'other'; export default () => x", "ReferenceError", "could not load module 'other'"),
    ],
)
def test_what_does_not_compile(guest: Guest, source: str, name: str, message: str) -> None:
    status, text = guest.compile(source)
    told = json.loads(text)
    assert status is Status.NOT_COMPILED
    assert told["name"] == name
    assert message in told["message"] or name == "SyntaxError"


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("throw new RangeError('top'); export default () => 1", "RangeError", "top"),
        ("export default 5", "TypeError", "a default export that is not a function"),
        ("export const a = 5", "TypeError", "no default export"),
        ("await Promise.reject(new Error('late')); export default () => 1", "Error", "late"),
    ],
)
@pytest.mark.parametrize("call", ["atlas_invoke", "atlas_evaluate"])
def test_what_does_not_load(guest: Guest, source: str, name: str, message: str, call: str) -> None:
    told = error(guest.run(source, call=call), Status.LOAD_FAILED)
    assert told["name"] == name
    assert message in told["message"]


def test_evaluate_does_not_call(guest: Guest) -> None:
    ended = guest.run("export default () => { throw 1 }", call="atlas_evaluate")
    assert (ended.status, ended.text) == (Status.RETURNED, b"")


@pytest.mark.parametrize(
    "source",
    [
        "export default () => new Promise(() => {})",
        "await new Promise(() => {}); export default () => 1",
        "export default () => ({ then() {} })",
    ],
)
def test_a_promise_that_never_settles(guest: Guest, source: str) -> None:
    assert guest.run(source).status is Status.NEVER_SETTLES


@pytest.mark.parametrize(
    "source",
    [
        "export default () => { const all = []; for (;;) all.push({}) }",
        "export default () => { let s = 'xx'; for (;;) s += s.slice(1) + s }",
        "const all = []; for (;;) all.push(new Uint8Array(1 << 20)); export default () => 1",
        "export default async () => { const all = []; for (;;) { await 0; all.push('x'.repeat(1e5) + all.length) } }",
    ],
)
def test_memory_runs_out(guest: Guest, source: str) -> None:
    ended = guest.run(source, fuel=10**10)
    assert error(ended, Status.OUT_OF_MEMORY)["message"] == "out of memory"
    assert ended.memory_bytes <= 16 * MIB


def test_a_program_that_hides_the_lack_of_memory_goes_on(guest: Guest) -> None:
    source = (
        "export default () => { try { const all = []; for (;;) all.push(new Uint8Array(1 << 20)) } catch {} return 1 }"
    )
    assert value(guest.run(source)) == 1


def test_an_input_larger_than_memory(guest: Guest) -> None:
    with pytest.raises(MemoryError):
        guest.run(body_of("1"), b"x" * (20 * MIB), kind="text")


@pytest.mark.parametrize("expression", ["'x'.repeat(2000)", "new Response('x'.repeat(2000))"])
def test_a_result_that_is_too_long(guest: Guest, expression: str) -> None:
    ended = guest.run(body_of(expression), result_bytes=1000)
    assert ended.status is Status.TOO_LONG
    assert int(ended.text) >= 2000


def test_recursion_in_the_engine_itself_may_be_a_trap(guest: Guest) -> None:
    """A frame of its parsers takes many times as much of the host's stack as of its own, which it measures."""
    with pytest.raises(wasmtime.Trap) as raised:
        guest.run(body_of("1"), b"[" * 100_000)
    assert raised.value.trap_code is wasmtime.TrapCode.STACK_OVERFLOW


def test_recursion_is_a_range_error(guest: Guest) -> None:
    thrown = error(guest.run("function f() { return f() + 1 }\nexport default () => f()"))
    assert (thrown["name"], thrown["message"]) == ("RangeError", "Maximum call stack size exceeded")
    assert "at f (<input>:2:" in thrown["stack"]


@pytest.mark.parametrize("loop", ["for (;;);", "(async () => { for (;;) await 0 })()", "setInterval(() => {}, 1e9)"])
def test_fuel_runs_out(guest: Guest, loop: str) -> None:
    with pytest.raises(wasmtime.Trap, match="all fuel consumed"):
        guest.run(f"export default () => {{ {loop}; return new Promise(() => {{}}) }}", fuel=10**7)


def test_bytecode_of_another_engine_is_not_loaded(guest: Guest) -> None:
    module = bytearray(guest.module(body_of("1")))
    module[-1] ^= 0xFF
    assert error(guest.run(bytes(module)), Status.NOT_COMPILED)["name"]


def test_nothing_of_one_run_is_seen_by_the_next(guest: Guest) -> None:
    module = guest.module("globalThis.n ??= 0; let m = 0; export default () => [++globalThis.n, ++m]")
    assert [value(guest.run(module)) for _ in range(3)] == [[1, 1]] * 3


@pytest.mark.parametrize(
    "hostile",
    [
        "Object.prototype.then = function (r) { r(7) };",
        "Array.prototype[Symbol.iterator] = null; Object.defineProperty(Object.prototype, '0', {set() { throw 1 }});",
        "JSON.stringify = JSON.parse = null; String = Array = Object.freeze = Reflect.ownKeys = null;",
        "globalThis.Promise = null; Error.prepareStackTrace = () => { throw 2 };",
        "Function.prototype.call = Function.prototype.apply = null;",
    ],
)
def test_a_program_that_spoils_the_language_spoils_only_its_own(guest: Guest, hostile: str) -> None:
    ended = guest.run(f"{hostile} export default (input, ctx) => ctx.a + input", b"1", context=b'{"a":2}')
    assert (ended.status, ended.text) == (Status.RETURNED, b"3")
