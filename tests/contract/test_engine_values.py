"""What goes in and what comes out, the same on every engine."""

import json
from typing import Any

import pytest

from engines.contract import Outcome
from tests.fix_engines import Evaluate, Site

pytestmark = pytest.mark.asyncio(loop_scope="module")

ECHO = "export default (input) => input"
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    1e308,
    -1.7976931348623157e308,
    5e-324,
    2**53,
    -(2**53) + 1,
    0.1,
    "",
    "text",
    "é 😀 \u0000 \u2028 \u2029 \x7f",
    '"quotes" and \\ backslashes \n\r\t',
    [],
    {},
    [[]],
    {"": None},
    [[1], {"a": [None, {"b": "c"}]}],
    {"é": 1, "😀": 2, "a b": 3},
    list(range(100)),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: ascii(value)[:30])
async def test_every_json_value_comes_back(site: Site, value: Any) -> None:
    result = await site.run(ECHO, value)
    assert result.outcome is Outcome.OK, result
    assert json.loads(result.value) == value


async def test_key_order_and_proto_keys_survive(site: Site) -> None:
    result = await site.run(ECHO, raw=b'{"z":1,"__proto__":{"x":2},"a":3}')
    assert result.value == b'{"z":1,"__proto__":{"x":2},"a":3}'


async def test_deep_nesting_survives(site: Site) -> None:
    text = b"[" * 100 + b"]" * 100
    assert (await site.run(ECHO, raw=text)).value == text


async def test_a_large_value_comes_back(site: Site) -> None:
    value = {"text": "é" * 100_000, "numbers": list(range(50_000))}
    assert json.loads((await site.run(ECHO, value)).value) == value


async def test_four_megabytes_of_input_arrive(site: Site) -> None:
    result = await site.run("export default (input) => input.length", "x" * (4 * 1024 * 1024))
    assert result.value == b"4194304", result


RESULTS = [
    ("undefined", "null"),
    ("(() => 1)", "null"),
    ("Symbol('x')", "null"),
    ("NaN", "null"),
    ("-1/0", "null"),
    ("-0", "0"),
    ("2 ** 53 + 2", "9007199254740994"),
    ("1e21", "1e+21"),
    ("0.1 + 0.2", "0.30000000000000004"),
    ("({a: undefined, b: () => 1, c: 1})", '{"c":1}'),
    ("[undefined, Symbol('x'), NaN]", "[null,null,null]"),
    ("new Date(0)", '"1970-01-01T00:00:00.000Z"'),
    ("new Date(NaN)", "null"),
    ("new Map([[1, 2]])", "{}"),
    ("({toJSON() { return 'mine' }})", '"mine"'),
    ("new Number(3)", "3"),
    ("new String('s')", '"s"'),
    ("new Uint8Array([1, 2])", '{"0":1,"1":2}'),
    (r"'\ud800'", r'"\ud800"'),
    (r"'a\0b'", r'"a\u0000b"'),
    ("'\\u2028'", '"\u2028"'),
    ("Promise.resolve(5)", "5"),
    ("({then(done) { done('thenable') }})", '"thenable"'),
    ("'x'.repeat(3000) + 'y'.repeat(3000)", '"' + "x" * 3000 + "y" * 3000 + '"'),
    ("new (class Point { x = 1; #y = 2; get z() { return 3 } })()", '{"x":1}'),
    ("Object.create({inherited: 1}, {own: {value: 2, enumerable: true}})", '{"own":2}'),
]


@pytest.mark.parametrize(("source", "text"), RESULTS, ids=lambda value: ascii(value)[:30])
async def test_results_are_json_as_json_stringify_makes_it(evaluate: Evaluate, source: str, text: str) -> None:
    result = await evaluate(source)
    assert (result.outcome, result.value.decode()) == (Outcome.OK, text), result


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("10n", "TypeError", "The result cannot be JSON: it contains a BigInt"),
        ("(() => { const a = {}; a.a = a; return a })()", "TypeError", "The result cannot be JSON: it contains itself"),
        ("({toJSON() { throw new RangeError('mine') }})", "RangeError", "mine"),
        ("({get a() { throw new SyntaxError('getter') }})", "SyntaxError", "getter"),
    ],
)
async def test_what_is_no_json_is_an_exception(evaluate: Evaluate, source: str, name: str, message: str) -> None:
    result = await evaluate(source)
    assert result.outcome is Outcome.EXCEPTION
    assert result.error is not None
    assert (result.error.name, result.error.message) == (name, message)


async def test_text_comes_as_a_string_and_bytes_as_an_array(site: Site) -> None:
    source = """export default (input) =>
      [typeof input, input instanceof Uint8Array, input.length, input.at(0), input.at(-1)]"""
    kinds = await site.deploy(source)
    assert json.loads((await kinds(raw="häß\0".encode(), kind="text")).value) == ["string", False, 4, "h", "\0"]
    assert json.loads((await kinds(raw=b"\0\xff\x80", kind="bytes")).value) == ["object", True, 3, 0, 128]
    assert json.loads((await kinds(raw=b"", kind="text")).value) == ["string", False, 0, None, None]


async def test_metrics_tell_what_was_used(site: Site) -> None:
    result = await site.run("export default () => Array.from({length: 1e5}, (_, i) => i * 2).length")
    metrics = result.metrics
    assert result.value == b"100000"
    assert 0 < metrics.wall_ms < 5_000
    assert 0 < metrics.memory_bytes <= 64 * 1024 * 1024
    assert (metrics.fuel_consumed is not None) == (site.is_wasm)
