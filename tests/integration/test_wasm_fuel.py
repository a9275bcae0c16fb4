"""Fuel is a function of module, input and limits: of nothing else, on every run and in every process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fix_wasm import CACHE_DIR, Guest

_HASH_CALCULATOR = """
export default async function (input, ctx) {
  let hash = 0;
  const text = JSON.stringify(input);
  for (let i = 0; i < text.length; i++) hash = (hash * 31 + text.charCodeAt(i)) | 0;
  const all = new Map(Array.from({ length: 200 }, (_, i) => ["key" + i, { i }]));
  await new Promise((resolve) => setTimeout(resolve, 5));
  console.log("hashed", all.size);
  return { hash, sorted: [...all.keys()].sort().at(-1), regexp: /(\\d+)/.exec(text)?.[1] };
}"""
_INPUT = b'{"text":"the quick brown fox 42","numbers":[1,2.5,-3]}'

_ELSEWHERE = """
import sys
from pathlib import Path
from engines.wasm.image import peek
from tests.fix_wasm import Guest
source, body, cache_dir = sys.argv[1:]
print(Guest(peek(Path(cache_dir))).run(source, body.encode()).fuel)
"""


def test_fuel_is_the_same_over_a_thousand_runs_and_in_another_process(guest: Guest) -> None:
    module = guest.module(_HASH_CALCULATOR)
    fuel = {
        guest.run(
            module,
            _INPUT,
            now_ns=1_600_000_000_000_000_000 + number * 86_400_000_000_000,
            seed=int.from_bytes(os.urandom(8), "little"),
            entropy=os.urandom(32),
        ).fuel
        for number in range(1000)
    }
    assert len(fuel) == 1
    elsewhere = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, _HASH_CALCULATOR, _INPUT.decode(), str(CACHE_DIR)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert fuel == {int(elsewhere.stdout)}


@pytest.mark.parametrize("length", [0, 1, 7, 100, 4095, 4096, 65536, 200_000])
def test_a_context_that_is_not_read_costs_nothing(guest: Guest, length: int) -> None:
    module = guest.module(_HASH_CALCULATOR)
    context = b'{"headers":{"x":"' + b"y" * length + b'"},"invocation_id":"' + os.urandom(8).hex().encode() + b'"}'
    assert guest.run(module, _INPUT, context=context).fuel == guest.run(module, _INPUT).fuel


def test_a_context_that_is_read_does(guest: Guest) -> None:
    module = guest.module("export default (input, ctx) => ctx.a")
    assert guest.run(module, context=b'{"a":' + b"1" * 1000 + b"}").fuel > guest.run(module, context=b'{"a":1}').fuel


def test_what_more_input_and_more_work_cost(guest: Guest) -> None:
    module = guest.module("export default (n) => { let s = 0; for (let i = 0; i < n; i++) s += i; return s }")
    few, many = guest.run(module, b"1000").fuel, guest.run(module, b"2000").fuel
    assert 100 < (many - few) / 1000 < 2000


def test_an_empty_function_costs_little(guest: Guest) -> None:
    """A thousandth of what the free tier has."""
    assert guest.run("export default () => {}").fuel < 250_000
