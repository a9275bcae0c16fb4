# ruff: noqa: E501 (programs in strings)
"""`atlas.*`: what goes over the wire, what comes back, concurrency, and answers nobody waits for."""

import json
from typing import Any

import pytest

from engines.frames import Type
from tests.fix_quickjs_child import Child, Refused, Run

EVAL = "export default (source) => (0, eval)(`(async () => { ${source} })()`)"


def test_calls_of_one_turn_share_a_frame(run: Run) -> None:
    code = """export default async () => {
      const all = await Promise.all([atlas.kv.get("a"), atlas.db.query("select 1"), atlas.kv.get("b")]);
      return [...all, await atlas.kv.get("c")]; }"""
    answer = run(code, host={"kv.get": lambda key: key.upper(), "db.query": lambda sql, params: [{"sql": sql}]})
    assert answer.value == ["A", [{"sql": "select 1"}], "B", "C"]
    assert answer.turns == [["kv.get", "db.query", "kv.get"], ["kv.get"]]


def test_answers_may_come_in_any_order(child: Child) -> None:
    child.bind("export default () => Promise.all([atlas.kv.get('a'), atlas.kv.get('b')])")
    inv = child.start()
    _, _, _, payload = child.receive()
    first, second = (call for call, _, _ in json.loads(payload))
    child.send(Type.HOSTRES, inv, second, b"\x01" + b'"two"')
    child.send(Type.HOSTRES, inv, first, b"\x01" + b'"one"')
    assert child.finish({}).value == ["one", "two"]


@pytest.mark.parametrize(
    ("source", "op", "args"),
    [
        ("atlas.db.query('select $1', [1, 'a', null])", "db.query", ["select $1", [1, "a", None]]),
        ("atlas.db.query('select 1')", "db.query", ["select 1", []]),
        (
            "atlas.db.query('', [new Date(0), undefined, 10n, new Uint8Array([1, 255]), [1n, new Date(0)], {a: 1}])",
            "db.query",
            [
                "",
                [
                    "1970-01-01T00:00:00.000Z",
                    None,
                    "10",
                    {"$bytes": "Af8="},
                    ["1", "1970-01-01T00:00:00.000Z"],
                    {"a": 1},
                ],
            ],
        ),
        ("atlas.kv.get('k')", "kv.get", ["k"]),
        ("atlas.kv.delete('k')", "kv.delete", ["k"]),
        ("atlas.kv.set('k', {a: [1]})", "kv.set", ["k", {"a": [1]}, {"ttl_s": None}]),
        ("atlas.kv.set('k', undefined, {ttl: 1.5})", "kv.set", ["k", None, {"ttl_s": 1.5}]),
    ],
)
def test_arguments_on_the_wire(run: Run, source: str, op: str, args: list[Any]) -> None:
    seen: list[Any] = []
    answer = run(EVAL, f"return {source}", host={op: lambda *given: seen.append(list(given))})
    assert answer.outcome == "ok", answer.meta
    assert seen == [args]


@pytest.mark.parametrize("call", ["atlas.db.query('bad sql')", "atlas.kv.get('k')", "fetch('https://a.example/')"])
def test_a_failed_calls_stack_shows_the_line_of_the_call(run: Run, call: str) -> None:
    def refuse(*args: object) -> None:
        raise Refused("refused", "no")

    code = f"async function find() {{\n await null;\n return await {call};\n}}\nexport default async () => await find()"
    answer = run(code, host={"db.query": refuse, "kv.get": refuse, "fetch": refuse})
    assert answer.error["name"] == "AtlasError"
    assert "at find (<input>:4:" in answer.error["stack"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("atlas.db.query(5)", "The statement of atlas.db.query must be a string"),
        ("atlas.db.query('', 'x')", "The parameters of atlas.db.query must be an array"),
        ("atlas.db.query('', [new Date(NaN)])", "Date value is NaN"),
        ("atlas.db.query('', [{a: 1n}])", "BigInt are forbidden in JSON.stringify"),
        ("atlas.kv.get()", "The key must be a string"),
        ("atlas.kv.set('a', 1, {ttl: -1})", "ttl must be a positive number of seconds"),
        ("atlas.fetch('http://x/', {timeout: 0})", "timeout must be a positive number of milliseconds"),
        ("atlas.fetch('http://x/', {body: 'x'})", "A request with method GET cannot have a body"),
        ("atlas.fetch('http://x/', {headers: {'a b': 'c'}})", 'Invalid header name: "a b"'),
        (r"atlas.fetch('http://x/', {headers: {a: 'b\r\nc: d'}})", r'Invalid header value: "b\r\nc: d"'),
        ("atlas.fetch('http://x/', {redirect: 'x'})", "redirect must be follow, manual or error"),
        ("atlas.fetch('http://x/', {method: 'TRACE'})", "Invalid method: TRACE"),
        ("atlas.kv.set('a', 'x'.repeat(8e6))", "The arguments of kv.set are too large"),
        (r"atlas.kv.set('a', '\"'.repeat(3e6))", "The arguments of a host call are too large"),
    ],
)
def test_bad_arguments_reject_before_the_wire(run: Run, source: str, message: str) -> None:
    answer = run(EVAL, f"return {source}")
    assert answer.error["message"] == message
    assert answer.turns == []


def test_host_errors_are_errors_with_a_code(run: Run) -> None:
    def refuse(*_: Any) -> None:
        raise Refused("permission_denied", "no such table é")

    source = "try { await atlas.db.query('x') } catch (e) { return [e instanceof Error, e.name, e.message, e.code] }"
    assert run(EVAL, source, host={"db.query": refuse}).value == [
        True,
        "AtlasError",
        "no such table é",
        "permission_denied",
    ]
    error = run(EVAL, "return atlas.db.query('x')", host={"db.query": refuse}).error
    assert (error["name"], error["message"], error["code"]) == ("AtlasError", "no such table é", "permission_denied")


def test_fetch_sends_a_request_and_reads_a_response(run: Run) -> None:
    seen: list[Any] = []

    def fetch(url: str, options: dict[str, Any]) -> dict[str, Any]:
        seen.append([url, options])
        headers = [["Content-Type", "application/json"], ["set-cookie", "a=1"], ["set-cookie", "b=2"]]
        return {
            "status": 404,
            "status_text": "Not Found",
            "url": "http://x/end",
            "redirected": True,
            "headers": headers,
            "body_base64": "eyJhIjoiw6kifQ==",
        }

    source = """const r = await atlas.fetch(new URL("http://x/a?b"), {method: "post", headers: {"X-A": "1"}, body: "é", timeout: 50});
      const copy = r.clone(); const again = r.clone();
      return [r.status, r.statusText, r.ok, r.url, r.redirected, r.headers.get("content-type"), r.headers.getSetCookie(),
              await r.json(), await copy.text(), (await again.arrayBuffer()).byteLength, r.bodyUsed]"""
    value = run(EVAL, source, host={"fetch": fetch}).value
    assert value == [
        404,
        "Not Found",
        False,
        "http://x/end",
        True,
        "application/json",
        ["a=1", "b=2"],
        {"a": "é"},
        '{"a":"é"}',
        10,
        True,
    ]
    options = {
        "method": "POST",
        "headers": [["x-a", "1"], ["content-type", "text/plain;charset=UTF-8"]],
        "body_base64": "w6k=",
        "timeout_ms": 50,
        "redirect": "follow",
    }
    assert seen == [["http://x/a?b", options]]


@pytest.mark.parametrize(
    ("body", "base64", "content_type"),
    [
        ("new Uint8Array([0, 255])", "AP8=", None),
        ("new Uint8Array([1, 2, 3, 4]).buffer", "AQIDBA==", None),
        (
            "new URLSearchParams({a: 'b c', é: '&'})",
            "YT1iK2MmJUMzJUE5PSUyNg==",
            "application/x-www-form-urlencoded;charset=UTF-8",
        ),
        ("''", "", "text/plain;charset=UTF-8"),
        ("null", None, None),
    ],
)
def test_bodies_of_fetch(run: Run, body: str, base64: str | None, content_type: str | None) -> None:
    seen: list[Any] = []
    empty = {"status": 200, "status_text": "", "url": "", "redirected": False, "headers": [], "body_base64": None}

    def fetch(_: str, options: dict[str, Any]) -> dict[str, Any]:
        seen.append(options)
        return empty

    assert (
        run(
            EVAL, f"return (await fetch('http://x/', {{method: 'PUT', body: {body}}})).text()", host={"fetch": fetch}
        ).value
        == ""
    )
    assert seen[0]["body_base64"] == base64
    assert dict(seen[0]["headers"]).get("content-type") == content_type


def test_a_fetched_response_can_be_returned(run: Run) -> None:
    answer = {
        "status": 201,
        "status_text": "",
        "url": "",
        "redirected": False,
        "headers": [["a", "b"]],
        "body_base64": "AP8=",
    }
    result = run("export default () => fetch('http://x/')", host={"fetch": lambda *_: answer})
    assert (result.meta["status"], result.meta["headers"], result.body) == (201, [["a", "b"]], b"\x00\xff")


def test_abort_rejects_at_once_and_a_late_answer_is_dropped(child: Child) -> None:
    child.bind(
        """export default async (which) => {
          if (which === "second") return "fine";
          try { await fetch("http://x/", {signal: AbortSignal.timeout(5)}) } catch (e) { return e.name } }"""
    )
    inv = child.start("first")
    _, _, _, payload = child.receive()
    assert child.finish({}).value == "TimeoutError"
    [[call, _, _]] = json.loads(payload)
    child.send(Type.HOSTRES, inv, call, b"\x01{}")
    assert child.invoke("second").value == "fine"


def test_an_aborted_signal_sends_nothing(run: Run) -> None:
    answer = run(EVAL, "return fetch('http://x/', {signal: AbortSignal.abort(new Error('mine'))})")
    assert (answer.error["message"], answer.turns) == ("mine", [])


def test_at_most_64_calls_are_in_flight(child: Child) -> None:
    child.bind("export default () => Promise.all(Array.from({length: 200}, (_, i) => atlas.kv.get(String(i))))")
    inv = child.start()
    waiting: list[tuple[int, str]] = []
    seen: list[str] = []
    while True:
        kind, _, _, payload = child.receive()
        if kind is not Type.HOSTCALL:
            break
        for call, _, args in json.loads(payload):
            waiting.append((call, json.loads(args)[0]))
            seen.append(waiting[-1][1])
        assert len(waiting) <= 64
        if len(seen) < 64:
            continue
        call, key = waiting.pop(0)
        child.send(Type.HOSTRES, inv, call, b"\x01" + json.dumps(key).encode())
        if len(seen) == 200:
            for call, key in waiting:
                child.send(Type.HOSTRES, inv, call, b"\x01" + json.dumps(key).encode())
    assert kind is Type.RESULT
    assert seen == [str(number) for number in range(200)]
