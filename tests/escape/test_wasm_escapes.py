"""No attack gets out of a Wasm sandbox; while one loads its code, data can become code, and nothing else is let go."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from engines.zygote import Zygote
from tests.escape import attacks
from tests.escape.attacker import SETUPS

ATTACKER = Path(__file__).with_name("attacker.py")
LETS_GO = {"tests.escape.wasm_sealed": set[str](), "tests.escape.wasm_loading": {"make_data_executable"}}


@cache
def outcomes(setup: str, program: str) -> dict[str, str]:
    process = subprocess.run(
        [sys.executable, ATTACKER, f"{setup}:{program}", *attacks.ATTACKS],
        env={"PYTHONPATH": os.pathsep.join((str(ATTACKER.parents[2]), *filter(None, sys.path)))},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr.decode()
    told: Any = json.loads(process.stdout)
    assert told["escaped"] == []
    assert told["left_behind"] == {"victim": "untouched"}
    found: dict[str, str] = told["outcomes"]
    return found


@pytest.mark.parametrize("program", LETS_GO)
@pytest.mark.parametrize("setup", SETUPS)
def test_the_wall_holds(setup: str, program: str) -> None:
    found = outcomes(setup, program)
    assert {name for name, outcome in found.items() if not outcome.startswith("held")} == LETS_GO[program]


@pytest.mark.parametrize("module", ["engines.wasm.child", "engines.wasm.compiler_child"])
async def test_the_programs_are_under_that_profile(module: str) -> None:
    zygote = await Zygote.launch(module)
    try:
        assert zygote.layers["seccomp"] == "on"
        assert zygote.layers["mdwe"] == "off: it loads compiled code"
    finally:
        await zygote.close()
