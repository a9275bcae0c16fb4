"""QuickJS does not check bytecode. Whoever forges some owns the engine's memory, and that is all there is to own."""

import random
from dataclasses import replace

import pytest

from engines.contract import Outcome
from engines.wasm import artifact
from tests.fix_sandbox import MIB
from tests.fix_wasm_engine import LIMITS, Bench

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    class Account { #pence = 1n; add(n) { this.#pence += BigInt(n); return this.#pence } }
    const pattern = /x+(?<y>z)/u, table = [1, 2.5, "abc", { a: [pattern, null] }];
    export default async (input) => { for (const one of table) await one; return String(new Account().add(input.n)) }
"""
HEAD_BYTES = 5  # a version, and a checksum of which this value means that there is none
UNCHECKED = b"\xff" * 4
BENIGN = {*Outcome} - {Outcome.CRASHED, Outcome.OVERLOADED, Outcome.CANCELLED}


async def test_forged_bytecode_hurts_nobody(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(20)
    honest = await bench.script(SOURCE)
    running = await bench.engine._startup.running()
    bytecode = artifact.bytecode_of(honest.code)
    limits = replace(LIMITS, fuel=20_000_000, memory_bytes=8 * MIB)
    outcomes = set()
    for _ in range(150):
        forged = bytearray(bytecode[:1] + UNCHECKED + bytecode[HEAD_BYTES:])
        for _ in range(chance.choice((1, 1, 2, 8, 40))):
            forged[chance.randrange(HEAD_BYTES, len(forged))] = chance.randrange(256)
        module = artifact.module_of(bytes(forged), running.image, source=b"")
        ended = await bench.run(module, {"n": 1}, limits=limits)
        outcomes.add((ended.outcome, ended.error.name if ended.error else ""))
        assert ended.outcome in BENIGN, ended
        assert ended.metrics.fuel_consumed is not None
        assert 0 < ended.metrics.fuel_consumed <= limits.fuel
        assert ended.metrics.memory_bytes <= limits.memory_bytes
    assert (Outcome.EXCEPTION, "Trap") in outcomes  # some reached where QuickJS itself breaks
    assert (await bench.run(honest, {"n": 1})).value == b'"2"'
    assert "attacks" not in caplog.text
    assert "died" not in caplog.text
