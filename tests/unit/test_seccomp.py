"""The filter's verdicts, by running its BPF program as the kernel would, for both architectures on any machine."""

import struct

import pytest

from engines import seccomp, syscall_table
from engines.v8.profile import PROFILE as V8

MACHINES = ("x86_64", "aarch64")
PROFILES = {"script": seccomp.SCRIPT, "v8": V8}
OWN_PID = 4711
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
    program = seccomp.assemble(profile, machine, OWN_PID)
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
            case 0x54:
                accumulator &= operand
            case _:
                raise AssertionError(f"no such instruction: {code:#x}")


def number(name: str, machine: str) -> int:
    found = syscall_table.number(name, machine)
    assert found is not None
    return found


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
@pytest.mark.parametrize("machine", MACHINES)
def test_every_number_gets_its_verdict_and_any_other_is_deadly(machine: str, profile: seccomp.Profile) -> None:
    expected = {number(name, machine): seccomp.ALLOW for name in profile.allow if exists(name, machine)}
    expected |= {number(name, machine): seccomp.ERRNO | 1 for name in profile.deny if exists(name, machine)}
    expected |= {number(name, machine): seccomp.ERRNO | 38 for name in profile.absent if exists(name, machine)}
    conditional = {number(name, machine) for name in profile.allow_if if exists(name, machine)}
    for candidate in range(600):
        if candidate not in conditional:
            told = verdict(machine, candidate, profile=profile)
            assert told == expected.get(candidate, seccomp.KILL_PROCESS), candidate


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


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
@pytest.mark.parametrize("machine", MACHINES)
def test_the_program_fits_the_kernel(machine: str, profile: seccomp.Profile) -> None:
    program = seccomp.assemble(profile, machine)
    assert len(program) <= 4096
    for position, (_, if_true, if_false, _) in enumerate(program):
        assert 0 <= if_true <= 255
        assert 0 <= if_false <= 255
        assert position + max(if_true, if_false) < len(program)
    assert program[-1] == (0x06, 0, 0, seccomp.KILL_PROCESS)


def test_no_program_for_an_unknown_machine() -> None:
    with pytest.raises(KeyError):
        seccomp.assemble(seccomp.SCRIPT, "riscv64")


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_numbers_are_distinct(profile: seccomp.Profile) -> None:
    names = [*profile.allow, *profile.allow_if, *profile.deny, *profile.absent]
    assert len(names) == len(set(names))
    for machine in MACHINES:
        numbers = [found for name in names if (found := syscall_table.number(name, machine)) is not None]
        assert len(numbers) == len(set(numbers))


REFUSED, THREAD = seccomp.ERRNO | 1, 0x3D0F00
V8_CONDITIONS = [
    pytest.param("clone", (THREAD,), seccomp.ALLOW, id="a thread"),
    pytest.param("clone", (0x11,), REFUSED, id="fork by clone"),
    pytest.param("clone", (0x4111,), REFUSED, id="vfork by clone"),
    pytest.param("clone", (THREAD | 0x10000000,), REFUSED, id="a thread in a new user namespace"),
    pytest.param("openat", (0, 0, 0o2000000), seccomp.ALLOW, id="read a file"),
    pytest.param("openat", (0, 0, 1), REFUSED, id="write a file"),
    pytest.param("openat", (0, 0, 2), REFUSED, id="update a file"),
    pytest.param("openat", (0, 0, 0o100), REFUSED, id="create a file"),
    pytest.param("openat", (0, 0, 0o1000), REFUSED, id="empty a file"),
    pytest.param("openat", (0, 0, 0o20200000), REFUSED, id="a file without a name"),
    pytest.param("tgkill", (OWN_PID, 1, 6), seccomp.ALLOW, id="abort"),
    pytest.param("tgkill", (1, 1, 9), REFUSED, id="kill another"),
    pytest.param("socketpair", (1,), seccomp.ALLOW, id="a pair of unix sockets"),
    pytest.param("socketpair", (16,), REFUSED, id="a pair of others"),
    pytest.param("prlimit64", (0, 7), seccomp.ALLOW, id="own limits"),
    pytest.param("prlimit64", (OWN_PID, 7), REFUSED, id="limits by number"),
    pytest.param("fcntl", (0, 4), seccomp.ALLOW, id="not blocking"),
    pytest.param("fcntl", (0, 8), REFUSED, id="own signals of a descriptor"),
    pytest.param("ioctl", (0, 0x5421), seccomp.ALLOW, id="not blocking by ioctl"),
    pytest.param("ioctl", (0, 0x5412), REFUSED, id="type into a terminal"),
    pytest.param("prctl", (15,), seccomp.ALLOW, id="name a thread"),
    pytest.param("prctl", (1,), REFUSED, id="outlive the parent"),
    pytest.param("prctl", (22,), REFUSED, id="another filter"),
]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("call", "arguments", "expected"), V8_CONDITIONS)
def test_what_v8_may_depends_on_arguments(machine: str, call: str, arguments: tuple[int, ...], expected: int) -> None:
    assert verdict(machine, number(call, machine), *arguments, profile=V8) == expected


V8_REFUSED = {"socket", "connect", "bind", "fork", "vfork", "kill", "tkill", "memfd_create", "io_uring_setup", "dup"}
V8_REFUSED |= {"execveat", "pidfd_open", "pkey_mprotect", "setpgid"}
V8_CALLS = {"execve", "clone", "pipe2", "prctl", "socketpair"}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", sorted(DEADLY.keys() - V8_CALLS))
def test_v8_gets_nothing_of_what_an_attacker_wants(machine: str, name: str) -> None:
    forbidden = DEADLY[name][MACHINES.index(machine)]
    if forbidden is None:
        assert machine == "aarch64"
    elif name == "clone3":
        assert verdict(machine, forbidden, profile=V8) == seccomp.ERRNO | 38
    else:
        assert verdict(machine, forbidden, profile=V8) == (REFUSED if name in V8_REFUSED else seccomp.KILL_PROCESS)
