"""The system call filter: the one layer without which nothing runs.

A `Profile` says by name what a worker may call. `assemble` turns it into a BPF program for one architecture, pure;
`install` hands that to the kernel for this process, for good.

    architecture is not ours, x32 call   kill the process
    name in `allow`                      run it
    name in `allow_if`                   run it if its argument is as stated, else kill the process
    name in `deny`                       EPERM: harmless, and libc or Python try it without being asked
    anything else                        kill the process (SIGSYS: nothing of ours does this, so it is an attack)
"""

import ctypes
import os
import struct

from engines import linux, syscall_table

KILL_PROCESS = 0x80000000
ERRNO = 0x00050000
ALLOW = 0x7FFF0000
EPERM = 1

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000

# struct seccomp_data { int nr; u32 arch; u64 instruction_pointer; u64 args[6]; }
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


class _SockFprog(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


class Argument:
    """A condition on the low 32 bits of an argument: `equal` to a value, or `without` any of some bits.

    The low half is enough for what is tested: `pid_t` is read as 32 bits by the kernel, protection bits are low.
    """

    __slots__ = ("code", "operand", "position")

    def __init__(self, position: int, *, equal: int | None = None, without: int = 0) -> None:
        self.position = position
        self.code, self.operand = (_IF_ANY_BIT, without) if equal is None else (_IF_EQUAL, equal)

    def program(self) -> list[Instruction]:
        load = (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * self.position)
        verdicts = (KILL_PROCESS, ALLOW) if self.code == _IF_ANY_BIT else (ALLOW, KILL_PROCESS)
        return [load, (self.code, 0, 1, self.operand), *((_RETURN, 0, 0, verdict) for verdict in verdicts)]


class Profile:
    """What a kind of worker may call, by name. One that `makes_code` may turn what it wrote into code."""

    __slots__ = ("allow", "allow_if", "deny", "makes_code")

    def __init__(self, *, allow: str, allow_if: dict[str, Argument], deny: str, makes_code: bool = False) -> None:
        self.allow = allow.split()
        self.allow_if = allow_if
        self.deny = deny.split()
        self.makes_code = makes_code


_PROT_EXEC = 4
_NOT_EXECUTABLE = Argument(2, without=_PROT_EXEC)

SCRIPT = Profile(
    # Most frequent first: the filter is a list.
    allow="""
        clock_gettime read write recvfrom sendto poll ppoll futex brk munmap mremap madvise
        writev sendmsg getrandom getrusage gettimeofday clock_nanosleep nanosleep clock_getres sched_yield
        rt_sigreturn rt_sigprocmask restart_syscall getpid gettid close getsockname getsockopt
        getrlimit setrlimit exit exit_group
    """,
    allow_if={"mmap": _NOT_EXECUTABLE, "mprotect": _NOT_EXECUTABLE, "prlimit64": Argument(0, equal=0)},
    deny="""
        open openat stat lstat fstat newfstatat statx access faccessat faccessat2 readlink readlinkat getdents64 getcwd
        lseek readv ioctl fcntl setsockopt shutdown getpeername recvmsg select pselect6
        uname sysinfo time getcpu sched_getaffinity getppid getuid geteuid getgid getegid getresuid getresgid getgroups
        getpgrp getpgid getsid rt_sigaction sigaltstack tgkill
    """,
)
"""For an interpreter that holds one connected socket: memory, clocks and that socket, nothing else.

`tgkill` is denied and not deadly because `abort()` calls it: a worker that aborts is a crash, not an attack.
"""


def assemble(profile: Profile, machine: str) -> list[Instruction]:
    """The BPF program of a profile for "x86_64" or "aarch64"; KeyError for any other."""

    def returns(verdict: int) -> Instruction:
        return (_RETURN, 0, 0, verdict)

    program = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_IF_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        returns(KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    if machine == "x86_64":
        program += [(_IF_AT_LEAST, 0, 1, X32_BIT), returns(KILL_PROCESS)]
    bodies = {name: [returns(ALLOW)] for name in profile.allow}
    bodies |= {name: argument.program() for name, argument in profile.allow_if.items()}
    bodies |= {name: [returns(ERRNO | EPERM)] for name in profile.deny}
    for name, body in bodies.items():
        number = syscall_table.number(name, machine)
        if number is not None:
            program += [(_IF_EQUAL, 0, len(body), number), *body]
    return [*program, returns(KILL_PROCESS)]


def compile_here(profile: Profile) -> bytes:
    """The program for this machine as an array of struct sock_filter. Raises KeyError on an unknown one."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in assemble(profile, os.uname().machine))


def install(program: bytes) -> None:
    """Filter this process from now on. Needs no_new_privs. Raises OSError where the kernel has no filters."""

    header = _SockFprog(len(program) // 8, program)
    linux.prctl(linux.PR_SET_SECCOMP, linux.SECCOMP_MODE_FILTER, ctypes.addressof(header))
