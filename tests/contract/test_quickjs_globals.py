# ruff: noqa: E501 (programs in strings)
"""The web's globals beside URL and fetch: text, base64, crypto, clones, events, headers, bodies, timers."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.fix_quickjs_child import Child

Evaluate = Callable[..., Any]


@pytest.fixture(scope="module")
def evaluate() -> Iterator[Evaluate]:
    child = Child()
    code = """const AsyncFunction = (async () => {}).constructor;
      const thrown = async (f) => { try { await f(); return null } catch (e) { return [e.name, e.message] } };
      export default ({code, input}) => new AsyncFunction("input", "thrown", code)(input, thrown)"""
    try:
        assert child.bind(code, memory_mib=128).outcome == "ok"
        yield lambda code, value=None: child.invoke({"code": code, "input": value}).value
    finally:
        child.close()


@pytest.mark.parametrize("text", ["", "plain", "é", "€", "😀", "a\0b", "\ufeffx", "x" * 100_000, "é😀" * 40_000])
def test_text_survives_encoding_and_decoding(evaluate: Evaluate, text: str) -> None:
    code = """const bytes = new TextEncoder().encode(input);
      return [bytes.length, new TextDecoder("utf-8", {ignoreBOM: true}).decode(bytes) === input]"""
    assert evaluate(code, text) == [len(text.encode()), True]


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b"a\xffb",
        b"\xc3",
        b"\xc3\x28",
        b"\xe2\x82",
        b"\xe2\x28\xa1",
        b"\xed\xa0\x80",
        b"\xf0\x9f\x98",
        b"\xf0\x9f\x41",
        b"\xf5\x80\x80\x80",
        b"\xc0\x80",
        b"\x80\xbf",
        b"ok" * 40_000 + b"\xe2\x82" + b"end",
    ],
)
def test_malformed_utf8_is_replaced_as_the_standard_says(evaluate: Evaluate, data: bytes) -> None:
    code = """const bytes = Uint8Array.fromHex(input);
      return [new TextDecoder().decode(bytes), (await thrown(() => new TextDecoder("utf8", {fatal: true}).decode(bytes)))?.[0]]"""
    assert evaluate(code, data.hex()) == [data.decode("utf-8", "replace"), "TypeError"]


def test_streams_of_text_may_be_cut_anywhere(evaluate: Evaluate) -> None:
    code = """const bytes = new TextEncoder().encode("\\ufeffaé€😀z"); const results = new Set();
      for (let size = 1; size <= bytes.length; size++) {
        const decoder = new TextDecoder(); let text = "";
        for (let i = 0; i < bytes.length; i += size) text += decoder.decode(bytes.subarray(i, i + size), {stream: true});
        results.add(text + decoder.decode()) }
      return [...results]"""
    assert evaluate(code) == ["aé€😀z"]


def test_other_encodings(evaluate: Evaluate) -> None:
    code = """return [new TextDecoder("latin1").decode(new Uint8Array([0xe9, 0x80, 0x41])), new TextDecoder("UTF-16LE").decode(new Uint8Array([0x3d, 0xd8, 0x00, 0xde, 0x41, 0])),
      new TextDecoder("utf-16be").decode(new Uint8Array([0, 0x41])), new TextDecoder("utf-16le").decode(new Uint8Array([0x3d, 0xd8, 1])),
      new TextDecoder(" ASCII ").encoding, (await thrown(() => new TextDecoder("klingon")))[0], new TextEncoder().encoding]"""
    assert evaluate(code) == ["é€A", "😀A", "A", "\ufffd", "windows-1252", "RangeError", "utf-8"]


def test_encode_into_stops_at_whole_characters(evaluate: Evaluate) -> None:
    code = "const t = new Uint8Array(5); const r = new TextEncoder().encodeInto('aé😀', t); return [r.read, r.written, [...t]]"
    assert evaluate(code) == [2, 3, [97, 195, 169, 0, 0]]


def test_base64(evaluate: Evaluate) -> None:
    code = "return [btoa('\\xff\\0a'), atob(' /wBh '), (await thrown(() => btoa('€')))?.[0], (await thrown(() => atob('*')))?.[0]]"
    assert evaluate(code) == ["/wBh", "\xff\0a", "InvalidCharacterError", "InvalidCharacterError"]


@pytest.mark.parametrize("name", ["SHA-1", "SHA-256", "SHA-384", "SHA-512"])
def test_digests(evaluate: Evaluate, name: str) -> None:
    code = "return new Uint8Array(await crypto.subtle.digest({name: input[0].toLowerCase()}, Uint8Array.fromHex(input[1]))).toHex()"
    for data in (b"", b"abc", bytes(range(256)) * 500):
        assert evaluate(code, [name, data.hex()]) == hashlib.new(name.replace("-", ""), data).hexdigest()


def test_digests_refuse_what_they_cannot(evaluate: Evaluate) -> None:
    code = "return [(await thrown(() => crypto.subtle.digest('MD5', new Uint8Array(1))))[0], (await thrown(() => crypto.subtle.digest('SHA-1', 'x')))[0]]"
    assert evaluate(code) == ["NotSupportedError", "TypeError"]


def test_random_values_are_random(evaluate: Evaluate) -> None:
    code = """const ids = Array.from({length: 500}, () => crypto.randomUUID()); const bytes = crypto.getRandomValues(new Uint8Array(65536));
      const counts = new Array(256).fill(0); for (const b of bytes) counts[b]++;
      return [ids, Math.min(...counts), Math.max(...counts), crypto.getRandomValues(new BigInt64Array(1)).length,
        (await thrown(() => crypto.getRandomValues(new Uint8Array(65537))))[0], (await thrown(() => crypto.getRandomValues(new Float64Array(1))))[0]]"""
    first, low, high, length, *errors = evaluate(code)
    second = evaluate(code)[0]
    assert len({*first, *second}) == 1000
    assert all(len(item) == 36 and item[14] == "4" and item[19] in "89ab" for item in first)
    assert 150 < low <= 256 <= high < 370
    assert (length, errors) == (1, ["QuotaExceededError", "TypeMismatchError"])


def test_no_two_realms_share_randomness(evaluate: Evaluate) -> None:
    """Two children never give the same values, and one child does not repeat itself after a new realm."""
    other = Child()
    try:
        other.bind(
            "export default (spin) => { while (spin); return [crypto.randomUUID(), Math.random()] }", isolation="fresh"
        )
        values = [other.invoke(False).value for _ in range(3)]
        assert other.invoke(True, cpu_ms=30).outcome == "cpu_limit"
        values.append(other.invoke(False).value)
        values.append([evaluate("return crypto.randomUUID()"), evaluate("return Math.random()")])
        assert len({str(value) for pair in values for value in pair}) == 10
    finally:
        other.close()


def test_structured_clone_of_every_kind(evaluate: Evaluate) -> None:
    code = """const shared = {x: 1};
      const a = {n: [1, , 3], d: new Date(5), r: /x/gi, m: new Map([[shared, new Set([shared])]]), u: new Uint16Array([1, 65535]), v: new DataView(new ArrayBuffer(3)),
        e: new RangeError("bad", {cause: shared}), w: Object("s"), big: 10n, nan: NaN, und: undefined, [Symbol("s")]: 1, get g() { return "got" }};
      a.self = a; const b = structuredClone(a); const [[key, set]] = b.m;
      return [b !== a && b.self === b, 1 in b.n, b.n.length, b.d.getTime(), String(b.r), set.has(key) && key !== shared && b.e.cause === key, [...b.u],
        b.v.byteLength, b.e instanceof RangeError && b.e.message, typeof b.w, b.big === 10n, b.nan !== b.nan, "und" in b, Object.getOwnPropertySymbols(b).length, b.g]"""
    assert evaluate(code) == [
        True,
        False,
        3,
        5,
        "/x/gi",
        True,
        [1, 65535],
        3,
        "bad",
        "object",
        True,
        True,
        True,
        0,
        "got",
    ]


def test_structured_clone_refuses_and_transfers(evaluate: Evaluate) -> None:
    code = """const seen = [];
      for (const bad of [() => 1, Symbol("x"), Promise.resolve(), new WeakMap(), {deep: [() => 1]}]) seen.push((await thrown(() => structuredClone(bad)))[0]);
      const buffer = new ArrayBuffer(8); const moved = structuredClone({buffer}, {transfer: [buffer]});
      return [seen, buffer.byteLength, moved.buffer.byteLength, Object.getPrototypeOf(structuredClone(new (class A { x = 1 })())) === Object.prototype]"""
    assert evaluate(code) == [["DataCloneError"] * 5, 0, 8, True]


def test_timers_fire_in_order_of_their_time(evaluate: Evaluate) -> None:
    code = """const seen = []; const done = new Promise((resolve) => setTimeout(resolve, 30));
      setTimeout((...a) => seen.push(a), 10, "b", 1); setTimeout(() => seen.push("a"), 1); setTimeout(() => seen.push("zero")); setTimeout(() => seen.push("late"), 15);
      const cancelled = setTimeout(() => seen.push("never"), 2); clearTimeout(cancelled); clearTimeout(undefined); clearTimeout({});
      let n = 0; const every = setInterval(() => { seen.push("tick"); if (++n === 2) clearInterval(every) }, 17 / 3 + 12);
      queueMicrotask(() => seen.push("micro")); await done; return [seen.filter((s) => s !== "tick"), n, (await thrown(() => setTimeout("code")))[0]]"""
    assert evaluate(code) == [["micro", "zero", "a", ["b", 1], "late"], 1, "TypeError"]


def test_thousands_of_timers_of_one_moment_fire_in_order(evaluate: Evaluate) -> None:
    code = """const order = []; const start = performance.now();
      for (let i = 0; i < 3000; i++) setTimeout(() => order.push(i), 200);
      while (order.length < 3000) await new Promise((resolve) => setTimeout(resolve, 10));
      return [order.every((v, i) => v === i), performance.now() - start >= 200]"""
    assert evaluate(code) == [True, True]


def test_what_callbacks_throw_is_logged(evaluate: Evaluate) -> None:
    child = Child()
    try:
        child.bind(
            """export default async () => { setTimeout(() => { throw new Error("in a timer") }, 1); queueMicrotask(() => { throw "in a microtask" });
            new EventTarget().dispatchEvent(new Event("x")); await new Promise((r) => setTimeout(r, 5)); return "fine" }"""
        )
        answer = child.invoke()
        assert answer.value == "fine"
        assert [text.split("\n")[0] for _, text in answer.logs] == [
            "Uncaught 'in a microtask'",
            "Uncaught Error: in a timer",
        ]
    finally:
        child.close()


def test_events(evaluate: Evaluate) -> None:
    code = """const seen = []; const target = new EventTarget(); const twice = () => seen.push("twice");
      target.addEventListener("a", twice); target.addEventListener("a", twice); target.addEventListener("a", () => seen.push("once"), {once: true});
      target.addEventListener("a", {handleEvent(e) { seen.push(e.type, e.target === target, e.detail); e.preventDefault() }});
      const c = new AbortController(); target.addEventListener("a", () => seen.push("signal"), {signal: c.signal});
      const first = target.dispatchEvent(new CustomEvent("a", {detail: 5, cancelable: true})); c.abort(); target.removeEventListener("a", twice);
      const second = target.dispatchEvent(new Event("a")); return [seen, first, second]"""
    assert evaluate(code) == [["twice", "once", "a", True, 5, "signal", "a", True, None], False, True]


def test_abort(evaluate: Evaluate) -> None:
    code = """const c = new AbortController(); const seen = []; c.signal.onabort = () => seen.push("on"); const any = AbortSignal.any([c.signal, AbortSignal.timeout(1000)]);
      c.abort("why"); c.abort("again"); seen.push(c.signal.aborted, c.signal.reason, any.reason, (await thrown(() => AbortSignal.abort().throwIfAborted()))[0]);
      const timed = AbortSignal.timeout(2); await new Promise((r) => timed.addEventListener("abort", r)); seen.push(timed.reason.name, (await thrown(() => new AbortSignal()))[0]); return seen"""
    assert evaluate(code) == ["on", True, "why", "why", "AbortError", "TimeoutError", "TypeError"]


def test_headers(evaluate: Evaluate) -> None:
    code = """const h = new Headers({"X-B": " 2 ", a: "1"}); h.append("a", "3"); h.append("Set-Cookie", "x=1"); h.append("set-cookie", "y=2"); const copy = new Headers(h); h.set("x-b", "9"); h.delete("A");
      return [[...h], [...copy.keys()], copy.get("a"), h.get("none"), h.has("X-B"), h.getSetCookie(), (await thrown(() => h.set("a\\n", "b")))[0], (await thrown(() => h.set("a", "é€")))[0], [...new Headers([["q", "w"]])]]"""
    assert evaluate(code) == [
        [["set-cookie", "x=1"], ["set-cookie", "y=2"], ["x-b", "9"]],
        ["a", "set-cookie", "set-cookie", "x-b"],
        "1, 3",
        None,
        True,
        ["x=1", "y=2"],
        "TypeError",
        "TypeError",
        [["q", "w"]],
    ]


def test_responses_and_requests(evaluate: Evaluate) -> None:
    code = """const r = new Response(new Uint8Array([0xef, 0xbb, 0xbf, 0x7b, 0x7d]), {status: 418, statusText: "Teapot"}); const copy = r.clone();
      const seen = [r.status, r.statusText, r.ok, r.type, r.bodyUsed, await r.json(), r.bodyUsed, (await thrown(() => r.text()))[0], [...await copy.bytes()].length, (await thrown(() => r.clone()))[0]];
      for (const make of [() => new Response("x", {status: 204}), () => new Response("x", {status: 700}), () => new Response("", {statusText: "\\n"}), () => Response.redirect("/x"), () => Response.redirect("http://a", 200), () => Response.json(undefined)]) seen.push((await thrown(make))[0]);
      const q = new Request("http://a/", {method: "patch", body: new URLSearchParams("a=b"), headers: {x: "1"}}); const q2 = new Request(q, {headers: {y: "2"}});
      return [...seen, q.method, q.headers.get("content-type"), await q.text(), q2.method, [...q2.headers], await q2.text(), Response.error().status, await new Response().text()]"""
    assert evaluate(code) == [
        *(418, "Teapot", False, "default", False, {}, True, "TypeError", 5, "TypeError"),
        *("TypeError", "RangeError", "TypeError", "TypeError", "RangeError", "TypeError"),
        *("patch", "application/x-www-form-urlencoded;charset=UTF-8", "a=b", "patch", [["y", "2"]], "a=b", 0, ""),
    ]


def test_globals_are_hidden_replaceable_and_named(evaluate: Evaluate) -> None:
    names = "URL URLSearchParams TextEncoder TextDecoder Headers Request Response Event EventTarget AbortController AbortSignal"
    code = """const before = Object.keys(globalThis); return [before, input.map((name) => globalThis[name].name),
      Object.prototype.toString.call(new URL("a:")), typeof performance.now(), performance.now() >= 0, Math.abs(performance.timeOrigin + performance.now() - Date.now()) < 1000, self === globalThis]"""
    enumerable, got, tag, *rest = evaluate(code, names.split())
    assert set(enumerable) <= {"atlas"}
    assert got == names.split()
    assert (tag, rest) == ("[object URL]", ["number", True, True, True])
    assert (
        evaluate("globalThis.fetch = () => 'mine'; const got = fetch(); delete globalThis.fetch; return got") == "mine"
    )


def test_nobody_is_led_to_believe_that_this_is_node_or_a_browser(evaluate: Evaluate) -> None:
    """Libraries look for these and do without: a half of one would mislead them."""
    absent = "process Buffer require module global setImmediate window document navigator XMLHttpRequest Blob FormData ReadableStream MessageChannel WebAssembly Intl"
    assert evaluate("return input.filter((name) => name in globalThis)", absent.split()) == []
    labels = ["utf8", "UTF-8", "unicode-1-1-utf-8", "utf-16", "utf-16be", "ascii", "latin1", "windows-1252"]
    assert evaluate("return input.map((label) => new TextDecoder(label).encoding)", labels) == [
        *("utf-8", "utf-8", "utf-8", "utf-16le", "utf-16be", "windows-1252", "windows-1252", "windows-1252")
    ]
    assert evaluate(
        "return new Promise((done) => { const n = []; queueMicrotask(() => n.push(2)); n.push(1); setTimeout(() => done(n), 0) })"
    ) == [1, 2]


def test_console_table_groups_counts_and_times() -> None:
    child = Child()
    try:
        child.bind(
            """export default () => { console.table([{a: 1, b: "x"}, {a: 22}]); console.group("G"); console.log("in\\nside"); console.groupEnd(); console.log("out");
            console.count(); console.count(); console.time("t"); console.timeEnd("t"); console.timeEnd("none"); console.dir([1]); console.trace("here"); }"""
        )
        logs = child.invoke().logs
        assert logs[:6] == [
            ("log", "(index) | a  | b\n--------|----|--\n0       | 1  | x\n1       | 22 |"),
            ("log", "G"),
            ("log", "  in\n  side"),
            ("log", "out"),
            ("log", "default: 1"),
            ("log", "default: 2"),
        ]
        assert logs[6][1].startswith("t: ")
        assert logs[7:9] == [("warn", "Timer 'none' does not exist"), ("log", "[ 1 ]")]
        assert logs[9][0] == "debug"
        assert logs[9][1].startswith("Trace: here\n    at default (<input>:3:")
    finally:
        child.close()
