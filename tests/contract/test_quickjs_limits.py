"""Every limit ends a run with its own outcome, and the next invocation of the same child works."""

import time

import pytest

from tests.fix_quickjs_child import MIB, Child, Run

EVAL = "export default (source) => (0, eval)(source)"


@pytest.mark.parametrize(
    "source",
    [
        "for (;;);",
        "for (;;) { try { for (;;); } catch {} finally { for (;;); } }",
        "(async () => { for (;;) await null; })()",
        "(function again() { queueMicrotask(again) })(); 1",
        "(function again() { Promise.resolve().then(again) })(); new Promise(() => {})",
        "/^(a+)+$/.test('a'.repeat(40) + 'b')",
        "({toJSON() { for (;;); }})",
        "({get x() { for (;;); }})",
        "({then() { for (;;); }})",
        "throw {get message() { for (;;); }}",
        "throw new Proxy({}, {getPrototypeOf() { for (;;); }, get() { for (;;); }})",
        "console.log(new Proxy({}, {ownKeys() { for (;;); }}))",
        "new Promise(() => { setInterval(() => { for (;;); }, 0) })",
        "new Promise(() => { (function again() { setTimeout(again, 0) })() })",
        "Error.prototype.toString = InternalError.toString = () => { for (;;); }; for (;;);",
        "Object.defineProperty(Error.prototype, 'stack', {get() { for (;;); }}); for (;;);",
        "Error.prepareStackTrace = () => { for (;;); }; for (;;);",
        "Array.from({length: 1e9}, () => 0)",
        "'x'.repeat(1e6).replace(/x/g, () => { for (;;); })",
        "[3, 2, 1].sort(() => { for (;;); })",
        "class A { static { for (;;); } }",
        "new Function('for (;;);')()",
        "crypto.subtle.digest('SHA-256', new Uint8Array(1)).then(() => { for (;;); })",
    ],
)
def test_endless_work_ends_at_the_cpu_limit(run: Run, source: str) -> None:
    started = time.monotonic()
    answer = run(EVAL, source, cpu_ms=60)
    assert answer.outcome == "cpu_limit"
    assert answer.error["name"] == "CpuLimit"
    assert 60 <= answer.meta["used"] < 1000
    assert time.monotonic() - started < 10
    assert run(EVAL, "1 + 1").value == 2


def test_many_slow_jobs_share_one_budget(run: Run) -> None:
    spin = "const spin = () => { const end = Date.now() + 20; while (Date.now() < end); }; "
    answer = run(EVAL, spin + "for (let i = 0; i < 250; i++) queueMicrotask(spin); 1", cpu_ms=100)
    assert answer.outcome == "cpu_limit"
    assert answer.meta["used"] < 400


def test_waiting_is_not_cpu_time(run: Run) -> None:
    answer = run(EVAL, "new Promise(r => setTimeout(() => r('slept'), 150))", cpu_ms=100)
    assert answer.value == "slept"
    assert answer.meta["wall_us"] >= 150_000
    assert answer.meta["cpu_us"] < 100_000


@pytest.mark.parametrize(
    "source",
    [
        "const a = []; for (;;) a.push(new Array(1000).fill(1.5))",
        "const a = []; for (;;) a.push('x'.repeat(1e6) + a.length)",
        "const a = []; for (;;) a.push(new ArrayBuffer(1 << 20))",
        "const m = new Map(); for (let i = 0; ; i++) m.set(i, {i})",
        "(async () => { const a = []; for (;;) { a.push(new Uint8Array(1e6)); await null; } })()",
        "let a = []; for (;;) a = [a, a, {a}]",
        "const a = []; (function f() { a.push(new Uint8Array(1e6)); queueMicrotask(f) })(); new Promise(() => {})",
        "throw new InternalError('out of memory')",
    ],
)
def test_allocation_ends_at_the_memory_limit(child: Child, source: str) -> None:
    assert child.bind(EVAL, memory_mib=16).outcome == "ok"
    answer = child.invoke("console.log('kept'); " + source)
    assert answer.outcome == "memory_limit"
    assert answer.meta["used"] == 16 * MIB
    assert ("log", "kept") in answer.logs
    assert child.invoke("1 + 1").value == 2


@pytest.mark.parametrize(
    "code",
    [
        "const spin = async () => { await null; return spin() }; export default () => spin()",
        "let p = Promise.resolve(); export default () => { for (;;) p = p.then(() => 1) }",
        "const a = []; const spin = () => Promise.resolve().then(() => (a.push([a]), spin())); export default spin",
        "const a = []; export default () => new Promise(() => { setInterval(() => { while (a.push({})); }, 0) })",
    ],
)
@pytest.mark.parametrize("memory_mib", [16, 23])
def test_a_heap_full_of_promises_is_a_memory_limit(child: Child, code: str, memory_mib: int) -> None:
    assert child.bind(code, memory_mib=memory_mib).outcome == "ok"
    assert child.invoke().outcome == "memory_limit"


@pytest.mark.parametrize("memory_mib", [14, 15, 16, 23])
def test_a_chain_that_lets_go_of_its_links_when_memory_is_out_ends_at_either_limit(
    child: Child, memory_mib: int
) -> None:
    """Where exactly the engine runs out decides whether the chain breaks or only what it has leaked."""
    code = "const spin = () => Promise.resolve().then(spin); export default () => spin()"
    assert child.bind(code, memory_mib=memory_mib).outcome == "ok"
    assert child.invoke(cpu_ms=1_000).outcome in ("memory_limit", "cpu_limit")


def test_a_heap_half_full_is_no_memory_limit(child: Child) -> None:
    assert child.bind(EVAL, memory_mib=16).outcome == "ok"
    half = "const a = []; for (let i = 0; i < 8; i++) a.push(new Uint8Array(1 << 20).fill(1)); "
    assert child.invoke(half + "new Promise(() => a)").outcome == "never_settles"
    assert child.invoke(half + "throw null").error["message"] == "Thrown value: null"


def test_null_thrown_after_a_full_heap_is_still_null(child: Child) -> None:
    assert child.bind(EVAL, memory_mib=16).outcome == "ok"
    for _ in range(2):
        assert child.invoke("let a = []; for (;;) a = [a, a, {a}]").outcome == "memory_limit"
        assert child.invoke("throw null").error["message"] == "Thrown value: null"


def test_running_out_of_memory_may_be_survived(child: Child) -> None:
    assert child.bind(EVAL, memory_mib=16).outcome == "ok"
    assert child.invoke("try { new Uint8Array(1 << 28) } catch (e) { e.name }").value in ("InternalError", "RangeError")
    assert (
        child.invoke(
            "for (let i = 0; i < 3; i++) { try { const a = []; for (;;) a.push(new Uint8Array(1e6)) } catch {} } 7"
        ).value
        == 7
    )


def test_catching_out_of_memory_for_ever_ends_too(child: Child) -> None:
    assert child.bind(EVAL, memory_mib=16).outcome == "ok"
    source = "const a = []; for (;;) { try { for (;;) a.push(new Uint8Array(1e5)) } catch {} }"
    assert child.invoke(source, cpu_ms=300).outcome in ("cpu_limit", "memory_limit")
    assert child.invoke("1 + 1").value == 2


def test_input_larger_than_the_memory_is_a_memory_limit(child: Child) -> None:
    assert child.bind("export default (input) => input.length", memory_mib=4).outcome == "ok"
    assert child.invoke("😀" * 1_000_000).outcome == "memory_limit"
    assert child.invoke("abc").value == 3


@pytest.mark.parametrize(
    "source",
    [
        "(function f() { f() })()",
        "const a = {}; let x = a; for (let i = 0; i < 1e5; i++) x = x.x = {}; JSON.stringify(a)",
        "JSON.parse('['.repeat(1e6))",
        "new RegExp('('.repeat(1e5) + ')'.repeat(1e5))",
        "(0, eval)('('.repeat(1e5))",
        "const p = new Proxy({}, {get(t, k, r) { return r[k] }}); p.x",
        "'x'.repeat(2 ** 30).repeat(2 ** 20)",
        "let s = 'x'; for (;;) s += s",
        "new Array(-1)",
    ],
)
def test_too_deep_and_too_long_are_plain_exceptions(run: Run, source: str) -> None:
    answer = run(EVAL, source)
    assert answer.outcome == "exception"
    assert answer.error["name"] in ("RangeError", "SyntaxError", "InternalError")
    assert run(EVAL, "1 + 1").value == 2


@pytest.mark.parametrize(
    "source",
    [
        "'x'.repeat(5000000)",
        "'é'.repeat(3000000)",
        "new Response('x'.repeat(5000000))",
        "new Response('é'.repeat(3000000))",
        "new Response(new Uint8Array(5000000))",
        "Array.from({length: 500000}, (_, i) => 'item ' + i)",
    ],
)
def test_a_large_result_is_a_result_limit(child: Child, source: str) -> None:
    assert child.bind(EVAL, result_bytes=4_000_000).outcome == "ok"
    answer = child.invoke(source)
    assert answer.outcome == "result_limit"
    assert 4_000_000 < answer.meta["used"] < 8_000_000
    assert child.invoke("1 + 1").value == 2


def test_a_huge_result_does_not_reach_the_parent(child: Child) -> None:
    assert child.bind(EVAL, memory_mib=512).outcome == "ok"
    answer = child.invoke("'x'.repeat(100 * 1024 * 1024)")
    assert answer.outcome == "result_limit"
    assert answer.meta["used"] == 100 * 1024 * 1024 + 2


def test_results_up_to_the_limit_pass(child: Child) -> None:
    assert child.bind(EVAL, result_bytes=5 * MIB).outcome == "ok"
    assert len(child.invoke("'x'.repeat(5 * 1024 * 1024 - 2)").body) == 5 * MIB
    assert child.invoke("'x'.repeat(5 * 1024 * 1024 - 1)").outcome == "result_limit"
    assert len(child.invoke("new Response(new Uint8Array(5 * 1024 * 1024))").body) == 5 * MIB
    assert child.invoke("new Response(new Uint8Array(5 * 1024 * 1024 + 1))").outcome == "result_limit"


@pytest.mark.parametrize(
    "source",
    [
        "new Promise(() => {})",
        "({then() {}})",
        "(async () => { await new Promise(() => {}) })()",
        "clearTimeout(setTimeout(() => {}, 1)); new Promise(() => {})",
        "new Promise(() => { setTimeout(() => {}, 1) })",
    ],
)
def test_a_promise_that_cannot_settle_is_told_at_once(run: Run, source: str) -> None:
    started = time.monotonic()
    assert run(EVAL, source).outcome == "never_settles"
    assert time.monotonic() - started < 5
    assert run(EVAL, "1 + 1").value == 2


@pytest.mark.parametrize(
    ("code", "outcome", "message"),
    [
        ("export const a = 1", "load_failed", "The module has no default export"),
        ("export default 5", "load_failed", "The module has a default export that is not a function"),
        ("throw new Error('top')", "load_failed", "top"),
        ("await 0; throw new Error('later'); export default () => 1", "load_failed", "later"),
        ("await new Promise(() => {}); export default () => 1", "load_failed", "A top-level await waits"),
        ("import fs from 'fs'; export default () => 1", "load_failed", "could not load module 'fs'"),
        ("export default (", "load_failed", ""),
        ("\0", "load_failed", "the module holds a NUL character"),
        (
            "await atlas.kv.get('a'); export default () => 1",
            "load_failed",
            "kv.get can be called only while an invocation runs",
        ),
        ("for (;;); export default () => 1", "cpu_limit", "CPU time limit of 2000 ms exceeded"),
        ("const a = []; for (;;) a.push(new Uint8Array(1e6)); export default () => 1", "memory_limit", "Memory limit"),
    ],
)
def test_a_program_that_does_not_load_is_answered_with_why(child: Child, code: str, outcome: str, message: str) -> None:
    answer = child.bind(code)
    assert answer.outcome == outcome
    assert answer.error["message"].startswith(message)
    again = child.invoke()
    assert again.outcome == outcome


def test_top_level_await_and_timers_work(child: Child) -> None:
    code = "const v = await new Promise(r => setTimeout(() => r(5), 5)); export default () => v"
    assert child.bind(code).outcome == "ok"
    assert child.invoke().value == 5
