# ruff: noqa: E501 (programs in strings)
"""What one invocation, function or project leaves behind for another: what `warm` promises and nothing else."""

import json
from dataclasses import replace

import pytest

from engines.contract import Outcome
from tests.fix_engines import LIMITS, Site

pytestmark = pytest.mark.asyncio(loop_scope="module")

COUNTER = "let calls = 0; export default () => ++calls"
SHORT = replace(LIMITS, wall_ms=1_000, cpu_ms=1_000)
OTHER_PROJECT = "00000000-0000-4000-8000-000000000002"


async def test_module_state_stays_where_it_is_warm(site: Site) -> None:
    deployed = await site.deploy(COUNTER)
    counts = [json.loads((await deployed()).value) for _ in range(3)]
    assert counts == ([1, 1, 1] if site.is_wasm else [1, 2, 3])


async def test_fresh_means_a_new_world_every_time(site: Site) -> None:
    source = """let calls = 0; export default () => {
      const seen = [++calls, globalThis.left ?? null, Array.prototype.left ?? null];
      globalThis.left = 1; Array.prototype.left = 1; return seen }"""
    deployed = await site.deploy(source, fresh=True)
    for _ in range(3):
        assert (await deployed()).value == b"[1,null,null]"


async def test_functions_do_not_share_globals(site: Site) -> None:
    leave = await site.deploy("export default () => { globalThis.left = 1; Object.prototype.left = 2; return 1 }")
    look = await site.deploy("export default () => [typeof globalThis.left, ({}).left ?? null]")
    for _ in range(2):
        assert (await leave()).outcome is Outcome.OK
        assert (await look()).value == b'["undefined",null]'


async def test_projects_do_not_share_even_the_same_code(site: Site) -> None:
    ours, theirs = await site.deploy(COUNTER), await site.deploy(COUNTER, project=OTHER_PROJECT)
    await ours()
    await ours()
    assert (await theirs()).value == b"1"


HOSTILE = [
    "Object.prototype.toJSON = () => 'forged'",
    "JSON.stringify = () => '\"forged\"'",
    "JSON.parse = () => 'forged'",
    "Promise.prototype.then = () => { throw new Error('forged') }",
    "Array.prototype[Symbol.iterator] = function* () { yield 'forged' }",
    "Object.defineProperty(Object.prototype, 'status', {set() { throw new Error('forged') }, get() { return 'forged' }})",
    "String.prototype.slice = () => 'forged'",
    "Function.prototype.call = Function.prototype.apply = () => 'forged'",
    "globalThis.Error = function () { throw 'forged' }",
    "Array.prototype.push = Array.prototype.map = Array.prototype.join = () => { throw new Error('forged') }",
    "Uint8Array.prototype.set = Uint8Array.prototype.subarray = () => { throw new Error('forged') }",
]


@pytest.mark.parametrize("source", HOSTILE)
async def test_a_program_can_only_fool_itself(site: Site, source: str) -> None:
    """Whatever it does to its own globals, its runs end in an orderly way and nobody else's differ."""
    hostile = await site.deploy(f"{source}; export default async (input) => {{ await null; return input }}")
    honest = await site.deploy("export default (input) => input")
    for number in range(2):
        result = await hostile({"n": number}, limits=SHORT)
        assert result.outcome in (
            Outcome.OK,
            Outcome.EXCEPTION,
            Outcome.LOAD_FAILED,
            Outcome.NEVER_SETTLES,
            Outcome.CRASHED,
            Outcome.WALL_LIMIT,
            Outcome.CPU_LIMIT,
            Outcome.FUEL_LIMIT,
        )
        assert json.loads((await honest({"n": number})).value) == {"n": number}
