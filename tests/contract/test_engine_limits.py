"""Every limit ends a run with its own outcome, and the next one works at once."""

import asyncio
import json
from dataclasses import replace

import pytest

from engines.contract import Outcome
from tests.fix_engines import LIMITS, MIB, Deployed, Site

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMALL = replace(LIMITS, wall_ms=1_000, cpu_ms=1_000, memory_bytes=32 * MIB, fuel=2_000_000_000)
SHORT = replace(SMALL, wall_ms=500, cpu_ms=500)
FUEL = replace(SMALL, wall_ms=10_000, cpu_ms=10_000, fuel=200_000_000)
"""For what burns all of it: fuel, or time."""


async def works(deployed: Deployed, site: Site) -> None:
    """The function itself, and another one of the same project."""
    assert (await deployed("fine", limits=SMALL)).value == b'"fine"'
    assert (await site.run("export default () => 1", limits=SMALL)).value == b"1"


def body(source: str) -> str:
    return f"export default async (input) => {{ if (input === 'fine') return input; {source} }}"


ENDLESS = {
    "loop": "for (;;);",
    "microtasks": "for (;;) await null;",
    "regex": "return /^(a+)+$/.test('a'.repeat(40) + 'b')",
    "sort": "for (;;) [3, 2, 1].sort(() => Math.random() - 0.5)",
    "caught": "for (;;) { try { for (;;); } catch {} }",
}


@pytest.mark.parametrize("source", ENDLESS.values(), ids=list(ENDLESS))
async def test_what_does_not_end_is_ended(site: Site, source: str) -> None:
    deployed = await site.deploy(body(source))
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    result = await deployed(limits=FUEL if site.is_wasm else SHORT)
    assert loop.time() - began_s < 4
    expected = {Outcome.FUEL_LIMIT} if site.is_wasm else {Outcome.WALL_LIMIT, Outcome.CPU_LIMIT}
    assert result.outcome in expected, result
    assert result.limit is not None
    assert result.limit.used >= result.limit.allowed * 0.9
    await works(deployed, site)


HOGS = {
    "arrays": "const all = []; for (;;) all.push(new Array(1000).fill(all.length))",
    "strings": "const all = []; for (let i = 0; ; i++) all.push(String(i).padStart(10000, 'x') + i)",
    "buffers": "const all = []; for (;;) all.push(new Uint8Array(1 << 20).fill(7))",
    "one buffer": "return new Uint8Array(1 << 30).fill(1).length",
    "map": "const all = new Map(); for (let i = 0; ; i++) all.set(i, {i})",
    "doubling": "let text = 'xy'; for (;;) text += text.slice(0, -1) + Math.random()",
}


@pytest.mark.parametrize("source", HOGS.values(), ids=list(HOGS))
async def test_memory_is_bounded(site: Site, source: str) -> None:
    deployed = await site.deploy(body(source))
    result = await deployed(limits=replace(SMALL, wall_ms=10_000, cpu_ms=10_000, fuel=10_000_000_000))
    refused = result.outcome is Outcome.EXCEPTION and result.error is not None and result.error.name == "RangeError"
    assert result.outcome is Outcome.MEMORY_LIMIT or refused, result
    await works(deployed, site)


async def test_recursion_ends(site: Site) -> None:
    deployed = await site.deploy(body("const again = () => again() + 1; return again()"))
    result = await deployed(limits=SMALL)
    ended = result.outcome is Outcome.STACK_LIMIT
    thrown = result.outcome is Outcome.EXCEPTION and result.error is not None and result.error.name == "RangeError"
    assert ended or thrown, result
    await works(deployed, site)


async def test_recursion_can_be_caught(site: Site) -> None:
    source = body("const again = () => again() + 1; try { again() } catch (error) { return error.name }")
    assert (await site.run(source, limits=SMALL)).value == b'"RangeError"'


async def test_a_result_that_is_too_large_is_refused(site: Site) -> None:
    small = replace(SMALL, result_bytes=1000)
    deployed = await site.deploy(body("return 'x'.repeat(input)"))
    assert (await deployed(998, limits=small)).outcome is Outcome.OK
    for length in (999, 5_000_000):
        result = await deployed(length, limits=small)
        assert result.outcome is Outcome.RESULT_LIMIT, result
        assert result.limit is not None
        assert (result.limit.limit, result.limit.allowed, result.limit.unit) == ("result_size", 1000, "bytes")
    await works(deployed, site)


async def test_a_response_that_is_too_large_is_refused(site: Site) -> None:
    small = replace(SMALL, result_bytes=1000)
    deployed = await site.deploy(body("return new Response('x'.repeat(input))"))
    assert (await deployed(1000, limits=small)).outcome is Outcome.OK
    assert (await deployed(1001, limits=small)).outcome is Outcome.RESULT_LIMIT


async def test_a_module_that_never_loads_is_ended(site: Site) -> None:
    checked = await site.check("for (;;); export default () => 1", SHORT)
    assert checked.outcome is not Outcome.OK
    assert checked.outcome is not Outcome.CRASHED, checked


async def test_a_cancelled_run_is_over_when_the_cancel_returns(site: Site) -> None:
    deployed = await site.deploy(body("for (;;);"))
    run = asyncio.create_task(deployed(limits=replace(LIMITS, wall_ms=60_000, cpu_ms=60_000, fuel=10**15)))
    await asyncio.sleep(0.3)  # so that it runs; what is tested holds however far it came
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await works(deployed, site)


async def test_runs_beside_each_other_do_not_meet(site: Site) -> None:
    deployed = await site.deploy("let last; export default async (n) => { last = n; await null; return [n, last] }")
    results = await asyncio.gather(*(deployed(number) for number in range(20)))
    assert [json.loads(result.value) for result in results] == [[n, n] for n in range(20)]
