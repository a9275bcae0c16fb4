"""No attack gets out of the jail, in any set-up of privileges that this machine lets us take on.

Each set-up is a supervisor process of its own that gives privileges away and then runs every attack of attacks.py, one
jailed worker each. The control runs the same code without a jail, to show that the attacks are real.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.escape import attacks
from tests.escape.attacker import SETUPS

ATTACKER = Path(__file__).with_name("attacker.py")

# What any user may do in the open, on any kernel.
CONTROLS = [
    "read_a_file",
    "list_the_root",
    "climb_out_of_the_root",
    "stat_a_file",
    "create_a_file",
    "make_a_directory",
    "change_a_mode",
    "plant_a_link",
    "empty_a_file",
    "rename_a_file",
    "file_in_memory",
    "tcp_connect",
    "tcp_listen",
    "udp_send",
    "unix_socket",
    "abstract_unix_listen",
    "netlink_socket",
    "socket_pair",
    "receive_a_descriptor",
    "fork",
    "start_a_thread",
    "execute_a_program",
    "shell_command",
    "posix_spawn",
    "signal_the_supervisor",
    "signal_a_thread",
    "queue_a_signal",
    "pidfd_of_the_supervisor",
    "read_own_memory_file",
    "leave_the_process_group",
    "lead_a_session",
    "choose_a_processor",
    "be_nice",
    "become_dumpable",
    "outlive_the_parent",
    "writable_code",
    "executable_pages",
    "make_data_executable",
    "make_code_writable",
    "limit_the_supervisor",
    "read_the_supervisors_limits",
    "duplicate_a_descriptor",
    "duplicate_by_fcntl",
    "pipe",
    "event_descriptor",
    "watch_files",
]


@cache
def run(setup: str, *names: str) -> Any:
    process = subprocess.run(
        [sys.executable, ATTACKER, setup, *names],
        env={"PYTHONPATH": os.pathsep.join((str(ATTACKER.parents[2]), *filter(None, sys.path)))},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr.decode()
    return json.loads(process.stdout)


@pytest.mark.parametrize("attack", attacks.ATTACKS)
@pytest.mark.parametrize("setup", SETUPS)
def test_the_wall_holds(setup: str, attack: str) -> None:
    outcome = run(setup, *attacks.ATTACKS)["outcomes"][attack]
    assert outcome.startswith("held"), outcome


@pytest.mark.parametrize("attack", CONTROLS)
def test_without_the_wall_the_attack_succeeds(attack: str) -> None:
    outcome = run("control", *CONTROLS)["outcomes"][attack]
    assert outcome == "escaped"


@pytest.mark.parametrize("setup", SETUPS)
def test_nothing_is_left_behind(setup: str) -> None:
    assert run(setup, *attacks.ATTACKS)["left_behind"] == {"victim": "untouched"}


@pytest.mark.parametrize("setup", SETUPS)
def test_the_self_test_passes(setup: str) -> None:
    report = run(setup, *attacks.ATTACKS)
    assert report["escaped"] == []
    assert report["layers"]["seccomp"] == "on"
    assert report["layers"]["no_new_privs"] == "on"


@pytest.mark.parametrize("setup", [name for name in SETUPS if "container" in name])
def test_a_layer_that_is_refused_is_reported_off(setup: str) -> None:
    layers = run(setup, *attacks.ATTACKS)["layers"]
    assert layers["netns"] == layers["pidns"] == layers["mountns"] == "off: EPERM"
    assert layers["root"] != "empty_tmpfs"
    if "no_landlock" in setup:
        assert layers["landlock"] == "off: ENOSYS"


@pytest.mark.parametrize("setup", SETUPS)
def test_the_self_test_finds_a_missing_filter(setup: str) -> None:
    report = run(f"{setup}-no_seccomp-unsafe", *attacks.ATTACKS)
    assert report["layers"]["seccomp"] == "off: EINVAL"
    assert "become_dumpable: escaped" in report["escaped"]


@pytest.mark.parametrize("setup", SETUPS)
def test_other_layers_guard_files_and_network_without_the_filter(setup: str) -> None:
    reach = {
        name
        for name, attack in attacks.ATTACKS.items()
        if attack.__module__ in ("tests.escape.attacks_on_files", "tests.escape.attacks_on_network")
    }
    if "no_landlock" in setup:  # then files are behind the empty root alone, which needs privileges
        reach -= {name for name in reach if "unprivileged" in setup or os.getuid() != 0}
    report = run(f"{setup}-no_seccomp-unsafe", *attacks.ATTACKS)
    if report["layers"]["root"].startswith("off"):  # landlock has no right for these
        reach -= {"stat_a_file", "change_a_mode"}
    assert [name for name in sorted(reach) if not report["outcomes"][name].startswith("held")] == []


def test_no_zygote_without_the_filter() -> None:
    with pytest.raises(AssertionError, match="ZygoteError: no system call filter, seccomp is off: EINVAL"):
        run("no_seccomp")
