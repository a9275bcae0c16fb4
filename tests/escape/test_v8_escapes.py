"""No attack by a Node or Deno process gets out of its jail, in any set-up of privileges.

The processes run without the permission checks of their engines: what holds here is the operating system's jail alone.
Files need one layer beside the filter, which lets them be read because the loader comes after it: without a root of our
own and without landlock, the self-test says so and the engine is not started.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from engines.deno.engine import program as deno
from engines.node.engine import program as node
from tests.escape.attacker import SETUPS

ATTACKER = Path(__file__).with_name("v8_attacker.py")
ENGINES = ["node", "deno"]
GUARDED = [setup for setup in SETUPS if "no_landlock" not in setup]
BARE = [setup for setup in SETUPS if setup in ("container-no_landlock", "unprivileged-container-no_landlock")]


@cache
def run(setup: str, engine: str) -> Any:
    process = subprocess.run(
        [sys.executable, ATTACKER, setup, engine],
        env={"PYTHONPATH": os.pathsep.join((str(ATTACKER.parents[2]), *filter(None, sys.path)))},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr.decode()
    return json.loads(process.stdout)


@pytest.mark.parametrize("setup", GUARDED)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_wall_holds(engine: str, setup: str) -> None:
    outcomes = run(setup, engine)["outcomes"]
    assert len(outcomes) > 40
    assert {name: told for name, told in outcomes.items() if not told.startswith("held")} == {}


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_left_behind(engine: str, setup: str) -> None:
    assert run(setup, engine)["left_behind"] == []


@pytest.mark.parametrize("setup", GUARDED)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_self_test_passes(engine: str, setup: str) -> None:
    report = run(setup, engine)
    assert report["escaped"] == []
    assert report["layers"]["seccomp"] == report["layers"]["no_new_privs"] == "on"
    assert report["layers"]["landlock"].startswith("abi") or report["layers"]["root"] == "files_only"


@pytest.mark.parametrize("setup", BARE)
@pytest.mark.parametrize("engine", ENGINES)
def test_without_root_and_landlock_only_reading_is_open_and_the_self_test_finds_it(engine: str, setup: str) -> None:
    report = run(setup, engine)
    assert report["layers"]["landlock"] == "off: ENOSYS"
    assert report["layers"]["root"] == "off: no mountns"
    reading = {"read_passwords", "read_own_environment", "read_own_maps", "climb", "list_root", "list_processes"}
    reading |= {"deno_read", "become_another_program"}  # that one stays under the filter and can do no more
    assert {name for name, told in report["outcomes"].items() if not told.startswith("held")} <= reading
    assert "open_file: escaped" in report["escaped"]
    assert "open_password_file: escaped" in report["escaped"]


# What any user may do in the open, on any kernel.
CONTROLS = {
    "read_passwords",
    "read_own_environment",
    "read_own_maps",
    "list_root",
    "list_processes",
    "append_to_engine",
    "change_engine",
    "rename_engine",
    "change_mode",
    "change_times",
    "write_to_null",
    "change_directory",
    "listen_tcp",
    "udp",
    "spawn",
    "spawn_shell",
    "signal_parent",
    "signal_own_group",
    "lower_priority",
}


@pytest.mark.parametrize("engine", ENGINES)
def test_without_the_wall_the_attacks_succeed(engine: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("")
    script = tmp_path / "attacks.mjs"
    kept = "\n".join(f'  "{name}",' for name in sorted(CONTROLS))
    source = ATTACKER.with_name("v8_attacks.mjs").read_text()
    only = f"const kept = new Set([\n{kept}\n]); for (const name in attacks) if (!kept.has(name)) delete attacks[name];"
    script.write_text(source.replace("const REFUSALS", f"{only}\nconst REFUSALS"))
    command: list[str | Path]
    if engine == "node":
        command = [node(), "--no-warnings", script, victim, "stdio"]
    else:
        command = [
            deno(),
            "run",
            "--quiet",
            "--allow-all",
            "--unstable-net",
            "--no-config",
            "--no-lock",
            script,
            victim,
        ]
    process = subprocess.run(
        command, input=b"all", env={"DENO_DIR": str(tmp_path)}, capture_output=True, timeout=60, check=True
    )
    outcomes = json.loads(process.stdout)["outcomes"]
    assert {name: told for name, told in outcomes.items() if told != "escaped"} == {}
    assert outcomes.keys() == CONTROLS
