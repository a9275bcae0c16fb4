"""The QuickJS engine with real children: what callers of the contract may rely on."""

import asyncio
import json
from dataclasses import replace

import pytest

from engines.contract import HostError, Invocation, LimitHit, Outcome, ScriptError
from engines.quickjs import child
from engines.quickjs.engine import QuickJS
from engines.run import LOAD_CPU_MS
from tests.fix_sandbox import LIMITS, Scripted, Silence, children_of, program, run, until


async def test_a_function_returns_a_value(engine: QuickJS) -> None:
    result = await run(engine, "return {sum: input.a + input.b}", {"a": 2, "b": 3})
    assert (result.outcome, json.loads(result.value)) == (Outcome.OK, {"sum": 5})
    assert result.metrics.boot_ms > 0
    assert 0 < result.metrics.wall_ms < 1000
    assert result.metrics.memory_bytes > 10_000


async def test_the_second_call_is_warm_and_finds_the_module_state_of_the_first(engine: QuickJS) -> None:
    counter = program("let n = 0; export default () => ++n")
    assert [json.loads((await run(engine, counter)).value) for _ in range(3)] == [1, 2, 3]
    result = await run(engine, counter)
    assert result.metrics.boot_ms == 0


async def test_fresh_isolation_starts_from_nothing_each_time(engine: QuickJS) -> None:
    counter = program("let n = 0; export default () => ++n", fresh=True)
    assert [json.loads((await run(engine, counter)).value) for _ in range(3)] == [1, 1, 1]


async def test_a_child_that_ran_out_of_memory_is_not_used_again(engine: QuickJS) -> None:
    leak = program("const a = []; for (;;) a.push(Promise.resolve().then(() => a))")
    tight = replace(LIMITS, memory_bytes=16 * 1024 * 1024)
    for _ in range(3):
        result = await run(engine, leak, limits=tight)
        assert (result.outcome, result.metrics.boot_ms > 0) == (Outcome.MEMORY_LIMIT, True)


async def test_context_input_kinds_and_responses(engine: QuickJS) -> None:
    echo = program(
        "export default (input, ctx) => new Response(input, {status: 201, headers: {'X-Id': ctx.invocation_id}})"
    )
    invocation = Invocation(id="i", input=b"\x00\xff", input_kind="bytes", context=b'{"invocation_id":"abc"}')
    result = await engine.invoke(echo, invocation, LIMITS, Silence())
    assert result.outcome is Outcome.OK, result
    assert result.response is not None
    assert (result.response.status, result.response.body) == (201, b"\x00\xff")
    assert ("x-id", "abc") in result.response.headers


async def test_logs_reach_the_result(engine: QuickJS) -> None:
    result = await run(engine, "console.log('one', {two: 2}); console.error('\\ud800')")
    assert [line.level for line in result.logs] == ["log", "error"]
    assert "one" in result.logs[0].text
    result.logs[1].text.encode()


async def test_host_calls_run_concurrently_and_answer_in_any_order(engine: QuickJS) -> None:
    both = asyncio.Barrier(2)

    async def answer(op: str, args: list[str]) -> str:
        await both.wait()
        return f"{op} {args[0]}"

    result = await run(
        engine,
        "return Promise.all([atlas.kv.get('a'), atlas.kv.get('b')])",
        host=Scripted(lambda op, args: answer(op, args)),
    )
    assert json.loads(result.value) == ["kv.get a", "kv.get b"]
    assert result.metrics.host_calls == 2


async def test_a_host_error_reaches_the_function_with_its_code(engine: QuickJS) -> None:
    def refuse(op: str, args: object) -> None:
        raise HostError("not_found", "No such key")

    code = "try { await atlas.kv.get('a') } catch (e) { return [e instanceof Error, e.code, e.message] }"
    result = await run(engine, code, host=Scripted(refuse))
    assert json.loads(result.value) == [True, "not_found", "No such key"]


async def test_a_fault_of_ours_reaches_the_function_without_details(
    engine: QuickJS, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(op: str, args: object) -> None:
        raise RuntimeError("password=hunter2")

    code = "try { await atlas.kv.get('a') } catch (e) { return [e.code, e.message] }"
    result = await run(engine, code, host=Scripted(fail))
    assert json.loads(result.value) == ["internal", "The host call failed on our side"]
    assert "hunter2" in caplog.text


async def test_a_refused_fetch_that_is_not_caught_is_the_fetch_limit(engine: QuickJS) -> None:
    def refuse(op: str, args: object) -> None:
        raise HostError("fetch_limit", "5 fetch calls are allowed")

    result = await run(engine, "await atlas.fetch('http://example.com/')", host=Scripted(refuse))
    assert result.outcome is Outcome.FETCH_LIMIT
    assert result.limit == LimitHit(limit="fetch_calls", used=6, allowed=5, unit="calls")
    assert result.error is not None
    assert result.error.code == "fetch_limit"


async def test_a_function_cannot_fake_the_fetch_limit(engine: QuickJS) -> None:
    result = await run(engine, "throw Object.assign(new Error('x'), {code: 'fetch_limit'})")
    assert result.outcome is Outcome.EXCEPTION


async def test_calls_still_out_at_the_end_are_cancelled_and_awaited(engine: QuickJS) -> None:
    host = Silence()
    result = await run(engine, "atlas.kv.get('a'); atlas.kv.get('b'); await atlas.kv.get.call; return 1", host=host)
    assert result.outcome is Outcome.OK
    assert host.calls == host.cancelled
    assert json.loads((await run(engine, "return 2", host=Silence())).value) in (1, 2)


async def test_a_broken_top_level_is_a_load_failure_each_time(engine: QuickJS) -> None:
    broken = program("throw new TypeError('no'); export default () => 1")
    for _ in range(2):
        result = await run(engine, broken)
        assert result.outcome is Outcome.LOAD_FAILED
        assert result.error is not None
        assert (result.error.name, result.error.message) == ("TypeError", "no")


async def test_an_endless_top_level_ends_at_the_load_limit(engine: QuickJS) -> None:
    assert LOAD_CPU_MS == child.LOAD_CPU_MS
    result = await engine.check(
        program("while (true); export default () => 1"), replace(LIMITS, wall_ms=200, cpu_ms=200)
    )
    assert result.outcome in (Outcome.WALL_LIMIT, Outcome.CPU_LIMIT)
    assert result.limit is not None
    assert result.limit.used >= 200


async def test_check_loads_without_calling_and_leaves_no_child(engine: QuickJS) -> None:
    await until(lambda: list(children_of(engine).values()) == ["blank"])
    spare = set(children_of(engine))
    assert (await engine.check(program("export default () => { throw 1 }"), LIMITS)).outcome is Outcome.OK
    assert not spare & set(children_of(engine))
    failed = await engine.check(program("export const x = 1; // export default"), LIMITS)
    assert failed.outcome is Outcome.LOAD_FAILED
    assert isinstance(failed.error, ScriptError)
    await until(lambda: list(children_of(engine).values()) == ["blank"])


async def test_fifty_at_once_of_ten_functions_of_three_projects(engine: QuickJS) -> None:
    async def one(i: int) -> bool:
        what = program(f"return [{i % 10}, input]", project=f"p{i % 3}", function=f"f{i % 10}")
        result = await run(engine, what, i)
        return result.outcome is Outcome.OK and json.loads(result.value) == [i % 10, i]

    assert all(await asyncio.gather(*map(one, range(50))))


async def test_a_new_version_runs_while_the_old_one_still_does(engine: QuickJS) -> None:
    gate = asyncio.Event()

    async def wait(op: str, args: object) -> None:
        await gate.wait()

    old = program("await atlas.kv.get('x'); return 'old'", version=1)
    new = program("return 'new'", version=2)
    running = asyncio.create_task(run(engine, old, host=Scripted(wait)))
    await until(lambda: "wait_host" in children_of(engine).values())
    assert json.loads((await run(engine, new)).value) == "new"
    engine.retire("p", "f")
    gate.set()
    assert json.loads((await running).value) == "old"
    await until(lambda: "idle" not in children_of(engine).values())


async def test_who_waits_too_long_is_told_so(engine: QuickJS) -> None:
    engine._pool.queue.queue_ms = 50
    engine._pool.max_children_per_project = 1
    host = Silence()
    holder = asyncio.create_task(run(engine, "await atlas.kv.get('x')", host=host))
    await host.asked.wait()
    result = await run(engine, "return 1")
    assert result.outcome is Outcome.OVERLOADED
    assert result.limit is not None
    assert (result.limit.limit, result.limit.allowed) == ("queue", 50)
    assert result.limit.used >= 50
    engine._pool.queue.queue_ms = 5_000
    assert json.loads((await run(engine, program("return 2", project="q"))).value) == 2
    holder.cancel()
    await asyncio.gather(holder, return_exceptions=True)
    assert host.cancelled == 1


async def test_the_report_names_layers_and_children(engine: QuickJS) -> None:
    await until(lambda: list(children_of(engine).values()) == ["blank"])
    report = engine.report()
    json.dumps(report)
    layers, children = report["layers"], report["children"]
    assert isinstance(layers, dict)
    assert layers["seccomp"] == "on"
    assert isinstance(children, dict)
    assert children["blank"] == 1
    assert repr(engine) == "<QuickJS <pool blank=1> restarts=0>"


async def test_closing_ends_running_invocations_as_crashed() -> None:
    engine = QuickJS(spares=0, max_children=4, max_children_per_project=4, queue_ms=1000)
    await engine.start()
    host = Silence()
    running = asyncio.create_task(run(engine, "await atlas.kv.get('x')", host=host))
    await host.asked.wait()
    await engine.close()
    assert (await running).outcome is Outcome.CRASHED
    assert children_of(engine) == {}
    with pytest.raises(RuntimeError, match="closed"):
        await run(engine, "return 1")


async def test_a_timer_that_outlasts_the_wall_clock_leaves_a_warm_child(engine: QuickJS) -> None:
    sleeper = program("await new Promise((done) => setTimeout(done, input)); return 'slept'")
    result = await run(engine, sleeper, 60_000, limits=replace(LIMITS, wall_ms=50))
    assert result.outcome is Outcome.WALL_LIMIT
    result = await run(engine, sleeper, 1)
    assert (result.value, result.metrics.boot_ms) == (b'"slept"', 0)
