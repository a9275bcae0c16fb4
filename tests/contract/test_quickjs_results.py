"""What a function returns, throws and logs, and how it comes out of the child."""

import json
import math
from typing import Any

import pytest

from tests.fix_quickjs_child import Child, Run

ECHO = "export default (input) => input"
EVAL = "export default (source) => (0, eval)(source)"


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        -1,
        1.5,
        1e308,
        5e-324,
        2**53,
        "",
        "text",
        "é 😀 \u0000 \u2028",
        [],
        {},
        [[1], {"a": [None]}],
    ],
)
def test_every_json_value_comes_back(run: Run, value: Any) -> None:
    assert run(ECHO, value).value == value


def test_a_megabyte_comes_back(run: Run) -> None:
    value = {"text": "é" * 200_000, "numbers": list(range(100_000))}
    assert run(ECHO, value).value == value


def test_key_order_and_proto_keys_survive(run: Run) -> None:
    answer = run(ECHO, b'{"z":1,"__proto__":{"x":2},"a":3}')
    assert answer.body == b'{"z":1,"__proto__":{"x":2},"a":3}'


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("undefined", "null"),
        ("(() => 1)", "null"),
        ("Symbol('x')", "null"),
        ("NaN", "null"),
        ("-1/0", "null"),
        ("-0", "0"),
        ("({a: undefined, b: () => 1, c: 1})", '{"c":1}'),
        ("[undefined, Symbol('x')]", "[null,null]"),
        ("new Date(0)", '"1970-01-01T00:00:00.000Z"'),
        ("new Map([[1, 2]])", "{}"),
        ("({toJSON() { return 'mine' }})", '"mine"'),
        (r"'\ud800'", r'"\ud800"'),
        (r"'a\0b'", r'"a\u0000b"'),
        ("Promise.resolve(5)", "5"),
        ("({then(done) { done('thenable') }})", '"thenable"'),
        ("'x'.repeat(3000) + 'y'.repeat(3000)", '"' + "x" * 3000 + "y" * 3000 + '"'),
    ],
)
def test_results_are_json_as_json_stringify_makes_it(run: Run, source: str, text: str) -> None:
    assert run(EVAL, source).body.decode() == text


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("10n", "TypeError", "The result cannot be JSON: it contains a BigInt"),
        ("{ const a = {}; a.a = a; a }", "TypeError", "The result cannot be JSON: it contains itself"),
        ("({toJSON() { throw new RangeError('mine') }})", "RangeError", "mine"),
        ("throw new TypeError('broken')", "TypeError", "broken"),
        ("Promise.reject(new Error('late'))", "Error", "late"),
        ("throw 1", "Error", "Thrown value: 1"),
        ("throw null", "Error", "Thrown value: null"),
        ("throw undefined", "Error", "Thrown value: undefined"),
        ("throw 'text'", "Error", "Thrown value: 'text'"),
        ("throw {a: 1}", "Error", "Thrown value: { a: 1 }"),
        ("throw {name: 'Custom', message: 'duck'}", "Custom", "duck"),
        ("throw {toString() { throw 1 }}", "Error", "Thrown value: { toString: [Function: toString] }"),
        (
            "throw new Proxy({}, {get() { throw 2 }, ownKeys() { throw 3 }})",
            "Error",
            "Thrown value: [object that cannot be shown]",
        ),
        (r"throw new Error('a\0b\ud800c')", "Error", "a\0b\ufffdc"),
        ("throw Object.defineProperty(new Error('x'), 'stack', {get() { throw 1 }})", "Error", "x"),
        ("throw new Error('x'.repeat(100000))", "Error", "x" * 8192 + "…"),
        ("throw new DOMException('gone', 'AbortError')", "AbortError", "gone"),
        ("(function f() { f() })()", "RangeError", "Maximum call stack size exceeded"),
        ("import('./other.js')", "ReferenceError", "could not load module 'other.js'"),
        ("Response.error()", "TypeError", "Response.error() cannot be the answer of a function"),
    ],
)
def test_whatever_is_thrown_is_told(run: Run, source: str, name: str, message: str) -> None:
    answer = run(EVAL, source)
    assert (answer.outcome, answer.error["name"], answer.error["message"]) == ("exception", name, message)
    assert run(EVAL, "1 + 1").value == 2


def test_an_error_carries_its_code_and_a_stack_of_the_program(run: Run) -> None:
    code = "export default () => deep()\nfunction deep() {\n  throw Object.assign(new Error('x'), {code: 'E_X'}) }"
    error = run(code).error
    assert error["code"] == "E_X"
    assert "at deep (<input>:4:" in error["stack"]


@pytest.mark.parametrize(
    ("kind", "body", "source", "value"),
    [
        ("text", 'é\0"😀'.encode(), "export default (t) => [typeof t, t]", ["string", 'é\0"😀']),
        ("text", b"\xff", "export default (t) => t", "\ufffd"),
        ("bytes", bytes(range(256)), "export default (b) => [b instanceof Uint8Array, ...b]", [True, *range(256)]),
        ("bytes", b"", "export default (b) => b.length", 0),
    ],
)
def test_input_may_be_text_or_bytes(run: Run, kind: str, body: bytes, source: str, value: Any) -> None:
    assert run(source, body, kind=kind).value == value


@pytest.mark.parametrize("body", [b"{", b"1,2", b"1] , [2", b"", b"\xff", b'"\0"', b"[" * 200_000])
def test_input_that_is_not_json_is_an_exception(run: Run, body: bytes) -> None:
    assert run(ECHO, body).error["message"] == "The input is not one JSON value"
    assert run(ECHO, 1).value == 1


def test_ctx_is_there_and_deeply_frozen(run: Run) -> None:
    code = "export default (i, ctx) => { try { ctx.request.headers.a = 2; } catch (e) { return [ctx, e.name]; } }"
    ctx = {"request": {"headers": {"a": "1"}}, "list": [{"x": 1}]}
    assert run(code, ctx=ctx).value == [ctx, "TypeError"]


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ("Array.from({length: 257}, (_, i) => ['x', i])", "The Response has 257 headers; 256 are the most"),
        ("{x: 'y'.repeat(66000)}", "The headers of the Response have 66001 characters; 65536 are the most"),
        ("{x: 'a\\x01b'}", 'The Response has an invalid header: "x"'),
        ("{['x'.repeat(257)]: 'y'}", "The Response has an invalid header: "),
    ],
    ids=["many", "long", "control", "name"],
)
def test_a_response_with_headers_that_nobody_carries_is_an_exception(run: Run, headers: str, message: str) -> None:
    error = run(EVAL, f"new Response(null, {{headers: {headers}}})").error
    assert error["name"] == "TypeError"
    assert error["message"].startswith(message)


def test_a_response_is_answered_with_status_headers_and_body(run: Run) -> None:
    text = run(EVAL, "new Response('héllo', {status: 201, headers: {'X-A': 'b'}})")
    assert (text.meta["kind"], text.meta["status"], text.body) == ("response", 201, "héllo".encode())
    assert text.meta["headers"] == [["x-a", "b"], ["content-type", "text/plain;charset=UTF-8"]]
    for source, body in [
        ("new Response(new Uint8Array([0, 255, 1]))", b"\x00\xff\x01"),
        (r"new Response('a\0b')", b"a\x00b"),
        (r"new Response('\ud800')", "\ufffd".encode()),
        ("Response.json({a: 1})", b'{"a":1}'),
        ("Response.redirect('http://a/b')", b""),
        ("Promise.resolve(new Response(null, {status: 204}))", b""),
    ]:
        assert run(EVAL, source).body == body


def test_a_response_that_was_read_cannot_be_answered(run: Run) -> None:
    answer = run(EVAL, "{ const r = new Response('x'); r.text().then(() => r) }")
    assert answer.error["message"] == "The body was already read"


def test_metrics_are_measured(run: Run) -> None:
    meta = run("export default () => { let n = 0; for (let i = 0; i < 200000; i++) n += i; return n }").meta
    assert meta["cpu_us"] > 500
    assert meta["wall_us"] > 500
    assert 50_000 < meta["memory_bytes"] < 5_000_000


def test_logs_keep_level_text_and_order(run: Run) -> None:
    code = r"""export default () => {
      console.log("a", 1, {b: [1, {c: 2}]});
      console.info("%s is %d%%", "x", 5, true);
      console.warn(new Map([[1, new Set("a")]]));
      console.error([1, , 2], null, undefined, -0, 10n, Symbol("s"));
      console.debug("lone \ud800 nul \0");
      console.assert(false, "no");
      const z = {get g() { throw 1 }}; z.z = z;
      console.log(z);
      console.log();
      console.log(new Proxy({}, {ownKeys() { throw 1 }}));
    }"""
    assert run(code).logs == [
        ("log", "a 1 { b: [ 1, { c: 2 } ] }"),
        ("info", "x is 5% true"),
        ("warn", "Map(1) { 1 => Set(1) { 'a' } }"),
        ("error", "[ 1, <1 empty item>, 2 ] null undefined -0 10n Symbol(s)"),
        ("debug", "lone \ufffd nul \0"),
        ("error", "Assertion failed: no"),
        ("log", "{ g: [Getter], z: [Circular] }"),
        ("log", ""),
        ("log", "[object that cannot be shown]"),
    ]


def test_log_times_do_not_go_backwards(run: Run) -> None:
    code = "export default async () => { console.log(1); await new Promise(r => setTimeout(r, 3)); console.log(2); }"
    (_, _, first), (_, _, second) = run(code).meta["logs"]
    assert 0 <= first <= second - 2000


def test_logs_survive_a_throw_and_belong_to_one_invocation(run: Run) -> None:
    code = "export default (n) => { console.log('run', n); if (n === 1) throw new Error('x') }"
    assert run(code, 1).logs == [("log", "run 1")]
    assert run(code, 2).logs == [("log", "run 2")]


def test_a_log_flood_is_cut_and_said_to_be(run: Run) -> None:
    answer = run("export default () => { for (let i = 0; i < 20000; i++) console.log('é'.repeat(100)); return 1 }")
    kept = sum(len(text.encode()) for _, text in answer.logs)
    assert answer.value == 1
    assert answer.meta["truncated"] is True
    assert 50_000 < kept <= 65_536


def test_one_huge_line_is_cut(child: Child) -> None:
    assert child.bind("export default () => console.log('😀'.repeat(2000000))", log_bytes=100).outcome == "ok"
    answer = child.invoke()
    assert answer.logs == [("log", "😀" * 21)]
    assert answer.meta["truncated"] is True


def test_floats_keep_their_value(run: Run) -> None:
    for number in (0.1, 1 / 3, math.pi, 1.7976931348623157e308, -2.5e-300):
        assert json.loads(run(ECHO, number).body) == number
