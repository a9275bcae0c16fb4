# ruff: noqa: E501 (programs in strings)
"""Node and Deno children: `atlas.*`, fetch, and the Responses of the engine itself."""

import json
from typing import Any

import pytest

from engines.frames import Type
from tests.fix_quickjs_child import Refused
from tests.fix_v8_child import EVAL, Ask, V8Child


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
