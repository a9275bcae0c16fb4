"""The system call filter: the one layer without which nothing runs.

A `Profile` says by name what a worker may call. `assemble` turns it into a BPF program for one architecture, pure;
`install` hands that to the kernel for this process, for good.

    architecture is not ours, x32 call   kill the process
    name in `allow`                      run it
    name in `allow_if`                   run it if its argument is as stated, else kill the process, or refuse it
    name in `deny`                       EPERM: harmless, and libc or the engine try it without being asked
    name in `absent`                     ENOSYS: so that libc falls back on a call whose arguments a filter can see
    anything else                        kill the process (SIGSYS: nothing of ours does this, so it is an attack)
"""

import ctypes
import os
import struct

from engines import linux, syscall_table

KILL_PROCESS = 0x80000000
ERRNO = 0x00050000
ALLOW = 0x7FFF0000
EPERM, ENOSYS = 1, 38

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000

# struct seccomp_data { int nr; u32 arch; u64 instruction_pointer; u64 args[6]; }
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_LOAD, _AND, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06


class _SockFprog(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand

OWN_PID = -1
"""In a condition: the process that is about to be filtered."""


class Argument:
    """A condition on an argument: `among` some values, or `without` any of some bits.

    Its low 32 bits are enough for what is tested: the kernel reads `pid_t`, commands and flags as 32 bits, and
    protection bits are low. A call that does not meet the condition gets the verdict `otherwise`.
    """

    __slots__ = ("_among", "_of", "_otherwise", "_position")

    def __init__(
        self,
        position: int,
        *,
        among: tuple[int, ...] = (),
        without: int = 0,
        otherwise: int = KILL_PROCESS,
    ) -> None:
        self._position = position
        self._of = without or 0xFFFFFFFF
        self._among = among or (0,)
        self._otherwise = otherwise

    @property
    def names_itself(self) -> bool:
        return OWN_PID in self._among

    def program(self, own_pid: int) -> list[Instruction]:
        tests: list[Instruction] = []
        for value in self._among:
            tests += [(_IF_EQUAL, 0, 1, own_pid if value == OWN_PID else value), (_RETURN, 0, 0, ALLOW)]
        load = (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * self._position)
        return [load, (_AND, 0, 0, self._of), *tests, (_RETURN, 0, 0, self._otherwise)]


class Profile:
    """What a kind of worker may call, by name.

    `makes_code`: a page of its memory may become executable. `is_personal`: every process needs a program of its own.
    """

    __slots__ = ("absent", "allow", "allow_if", "deny", "is_personal", "makes_code")

    def __init__(
        self, *, allow: str, allow_if: dict[str, Argument], deny: str, absent: str = "", makes_code: bool = False
    ) -> None:
        self.allow = allow.split()
        self.allow_if = allow_if
        self.deny = deny.split()
        self.absent = absent.split()
        self.makes_code = makes_code
        self.is_personal = any(argument.names_itself for argument in allow_if.values())


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
    allow_if={"mmap": _NOT_EXECUTABLE, "mprotect": _NOT_EXECUTABLE, "prlimit64": Argument(0, among=(0,))},
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


def assemble(profile: Profile, machine: str, own_pid: int = 0) -> list[Instruction]:
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
    bodies |= {name: argument.program(own_pid) for name, argument in profile.allow_if.items()}
    bodies |= {name: [returns(ERRNO | EPERM)] for name in profile.deny}
    bodies |= {name: [returns(ERRNO | ENOSYS)] for name in profile.absent}
    for name, body in bodies.items():
        number = syscall_table.number(name, machine)
        if number is not None:
            program += [(_IF_EQUAL, 0, len(body), number), *body]
    return [*program, returns(KILL_PROCESS)]


def compile_here(profile: Profile) -> bytes:
    """The program for this machine and this process as an array of struct sock_filter. KeyError on another machine."""
    program = assemble(profile, os.uname().machine, os.getpid())
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def install(program: bytes) -> None:
    """Filter this process from now on. Needs no_new_privs. Raises OSError where the kernel has no filters."""

    header = _SockFprog(len(program) // 8, program)
    linux.prctl(linux.PR_SET_SECCOMP, linux.SECCOMP_MODE_FILTER, ctypes.addressof(header))
