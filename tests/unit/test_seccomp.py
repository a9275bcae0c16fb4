"""The filter's verdicts, by running its BPF program as the kernel would, for both architectures on any machine."""

import struct

import pytest

from engines import seccomp, syscall_table

MACHINES = ("x86_64", "aarch64")
I386, ARM = 0x40000003, 0x40000028

# The forbidden calls that matter most, by number so that no table of ours is trusted: x86_64, aarch64
DEADLY = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "clone": (56, 220), "fork": (57, None),
    "vfork": (58, None), "execve": (59, 221), "kill": (62, 129), "ptrace": (101, 117), "setuid": (105, 146),
    "setpgid": (109, 154), "personality": (135, 92), "pivot_root": (155, 41), "prctl": (157, 167), "chroot": (161, 51),
    "mount": (165, 40), "tkill": (200, 130), "io_setup": (206, 0), "keyctl": (250, 219), "unshare": (272, 97),
    "splice": (275, 76), "perf_event_open": (298, 241), "process_vm_readv": (310, 270), "setns": (308, 268),
    "seccomp": (317, 277), "memfd_create": (319, 279), "bpf": (321, 280), "execveat": (322, 281),
    "userfaultfd": (323, 282), "pkey_mprotect": (329, 288), "pidfd_send_signal": (424, 424),
    "io_uring_setup": (425, 425), "pidfd_open": (434, 434), "clone3": (435, 435), "pidfd_getfd": (438, 438),
    "socketpair": (53, 199), "dup": (32, 23), "pipe2": (293, 59), "shmget": (29, 194), "mq_open": (240, 180),
}  # fmt: skip


def verdict(
    machine: str, number: int, *arguments: int, arch: int | None = None, profile: seccomp.Profile = seccomp.SCRIPT
) -> int:
    """What the kernel does with a call: a classic BPF machine over struct seccomp_data."""
    words = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("<iIQ6Q", number, seccomp.AUDIT_ARCH[machine] if arch is None else arch, 0, *words)
    program = seccomp.assemble(profile, machine)
    accumulator = position = 0
    while True:
        code, if_true, if_false, operand = program[position]
        position += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x06:
                return operand
            case 0x15:
                position += if_true if accumulator == operand else if_false
            case 0x35:
                position += if_true if accumulator >= operand else if_false
            case 0x45:
                position += if_true if accumulator & operand else if_false
            case _:
                raise AssertionError(f"no such instruction: {code:#x}")


def number(name: str, machine: str) -> int:
    found = syscall_table.number(name, machine)
    assert found is not None
    return found


@pytest.mark.parametrize("machine", MACHINES)
def test_every_number_gets_its_verdict_and_any_other_is_deadly(machine: str) -> None:
    profile = seccomp.SCRIPT
    expected = {number(name, machine): seccomp.ALLOW for name in profile.allow if exists(name, machine)}
    expected |= {number(name, machine): seccomp.ERRNO | 1 for name in profile.deny if exists(name, machine)}
    conditional = {number(name, machine) for name in profile.allow_if}
    for candidate in range(600):
        if candidate not in conditional:
            assert verdict(machine, candidate) == expected.get(candidate, seccomp.KILL_PROCESS), candidate


def exists(name: str, machine: str) -> bool:
    return syscall_table.number(name, machine) is not None


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", DEADLY)
def test_what_an_attacker_wants_is_deadly(machine: str, name: str) -> None:
    forbidden = DEADLY[name][MACHINES.index(machine)]
    if forbidden is None:
        assert machine == "aarch64"
    else:
        assert verdict(machine, forbidden) == seccomp.KILL_PROCESS


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("call", ["mmap", "mprotect"])
@pytest.mark.parametrize("protection", range(8))
def test_memory_is_never_executable(machine: str, call: str, protection: int) -> None:
    expected = seccomp.KILL_PROCESS if protection & 4 else seccomp.ALLOW
    assert verdict(machine, number(call, machine), 0, 4096, protection) == expected
    assert verdict(machine, number(call, machine), 0, 4096, protection | 1 << 24) == expected


@pytest.mark.parametrize("machine", MACHINES)
def test_limits_of_oneself_only(machine: str) -> None:
    prlimit64 = number("prlimit64", machine)
    assert verdict(machine, prlimit64, 0, 9) == seccomp.ALLOW
    assert verdict(machine, prlimit64, 1, 9) == seccomp.KILL_PROCESS
    assert verdict(machine, prlimit64, 0xFFFFFFFF, 9) == seccomp.KILL_PROCESS
    assert verdict(machine, prlimit64, 1 << 32, 9) == seccomp.ALLOW  # the kernel too reads 32 bits: it is 0


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("arch", [0, I386, ARM, *seccomp.AUDIT_ARCH.values()])
def test_another_architectures_calls_are_deadly(machine: str, arch: int) -> None:
    own = seccomp.AUDIT_ARCH[machine]
    assert verdict(machine, number("read", machine), arch=arch) == (seccomp.ALLOW if arch == own else 0x80000000)


@pytest.mark.parametrize("call", [0, 1, 39, 520, 0x3FFFFFFF])
def test_x32_calls_are_deadly(call: int) -> None:
    assert verdict("x86_64", 0x40000000 | call) == seccomp.KILL_PROCESS


@pytest.mark.parametrize("machine", MACHINES)
def test_a_negative_number_is_deadly(machine: str) -> None:
    assert verdict(machine, -1) == seccomp.KILL_PROCESS


@pytest.mark.parametrize("machine", MACHINES)
def test_the_program_fits_the_kernel(machine: str) -> None:
    program = seccomp.assemble(seccomp.SCRIPT, machine)
    assert len(program) <= 4096
    for position, (_, if_true, if_false, _) in enumerate(program):
        assert 0 <= if_true <= 255
        assert 0 <= if_false <= 255
        assert position + max(if_true, if_false) < len(program)
    assert program[-1] == (0x06, 0, 0, seccomp.KILL_PROCESS)


def test_no_program_for_an_unknown_machine() -> None:
    with pytest.raises(KeyError):
        seccomp.assemble(seccomp.SCRIPT, "riscv64")


def test_numbers_are_distinct() -> None:
    names = [*seccomp.SCRIPT.allow, *seccomp.SCRIPT.allow_if, *seccomp.SCRIPT.deny]
    assert len(names) == len(set(names))
    for machine in MACHINES:
        numbers = [found for name in names if (found := syscall_table.number(name, machine)) is not None]
        assert len(numbers) == len(set(numbers))
