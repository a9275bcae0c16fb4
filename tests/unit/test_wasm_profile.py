"""The filters of a Wasm sandbox, before its module is loaded and after."""

import pytest

from engines import seccomp
from engines.wasm.profile import LOADING, SEALED
from tests.unit.test_seccomp import DEADLY, MACHINES, number, verdict


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("call", ["mmap", "mprotect"])
@pytest.mark.parametrize("protection", range(8))
def test_sealed_memory_is_never_executable(machine: str, call: str, protection: int) -> None:
    expected = seccomp.KILL_PROCESS if protection & 4 else seccomp.ALLOW
    assert verdict(machine, number(call, machine), 0, 4096, protection, profile=SEALED) == expected


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("protection", range(8))
def test_no_page_is_writable_and_executable_at_a_time(machine: str, protection: int) -> None:
    mapped = verdict(machine, number("mmap", machine), 0, 4096, protection, profile=LOADING)
    assert mapped == (seccomp.KILL_PROCESS if protection & 4 else seccomp.ALLOW)
    changed = verdict(machine, number("mprotect", machine), 0, 4096, protection, profile=LOADING)
    assert changed == (seccomp.ALLOW if protection in (0, 1, 3, 5) else seccomp.KILL_PROCESS)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("option", [1, 4, 22, 38, 65])
def test_a_stricter_filter_is_all_that_prctl_sets(machine: str, option: int) -> None:
    loading = verdict(machine, number("prctl", machine), option, 2, profile=LOADING)
    assert loading == (seccomp.ALLOW if option == 22 else seccomp.KILL_PROCESS)
    assert verdict(machine, number("prctl", machine), option, 2, profile=SEALED) == seccomp.KILL_PROCESS


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("profile", [LOADING, SEALED], ids=["loading", "sealed"])
def test_what_an_attacker_wants_is_deadly(machine: str, profile: seccomp.Profile) -> None:
    numbers = {name: pair[MACHINES.index(machine)] for name, pair in DEADLY.items() if name != "prctl"}
    found = {n: verdict(machine, call, 99, profile=profile) for n, call in numbers.items() if call is not None}
    assert set(found.values()) == {seccomp.KILL_PROCESS}, found
