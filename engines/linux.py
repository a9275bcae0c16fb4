"""The kernel calls of the jail that Python has no name for, as functions that raise OSError.

Imported by the zygote, so it stays light: `ctypes` and `os`, nothing else.
"""

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE, MS_RELATIME = 0x1000, 0x4000, 0x40000, 0x200000
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
PR_SET_MDWE = 65
PR_MDWE_REFUSE_EXEC_GAIN = 1
SECCOMP_MODE_FILTER = 2

CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SYS_CHROOT, CAP_SYS_ADMIN, CAP_SETFCAP = 5, 6, 7, 18, 21, 31

_CAPABILITY_VERSION_3 = 0x20080522
_Capabilities = ctypes.c_uint32 * 6  # two of (effective, permitted, inheritable): the low and the high 32 bits
_CapabilityHeader = ctypes.c_uint32 * 2  # version, pid


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _word(argument: int | bytes | None) -> ctypes.c_long | ctypes.c_char_p:
    return ctypes.c_long(argument) if isinstance(argument, int) else ctypes.c_char_p(argument)


def syscall(number: int, *arguments: int | bytes | None) -> int:
    """A system call by number. Integers are passed as longs, bytes as pointers, None as NULL."""
    return _checked(libc.syscall(ctypes.c_long(number), *map(_word, arguments)))


def prctl(option: int, value: int, address: int = 0) -> None:
    _checked(libc.prctl(ctypes.c_int(option), *map(ctypes.c_long, (value, address, 0, 0))))


def unshare(flags: int) -> None:
    _checked(libc.unshare(ctypes.c_int(flags)))


def mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int, options: bytes | None = None) -> None:
    _checked(libc.mount(source, target, kind, ctypes.c_ulong(flags), options))


def unmount(target: bytes, flags: int) -> None:
    _checked(libc.umount2(target, ctypes.c_int(flags)))


def pivot_root(new_root: bytes, put_old: bytes) -> None:
    _checked(libc.pivot_root(new_root, put_old))


def capabilities() -> int:
    """The effective capabilities of this process, one bit each."""
    data = _Capabilities()
    _checked(libc.capget(_CapabilityHeader(_CAPABILITY_VERSION_3, 0), data))
    return data[0] | data[3] << 32


def has_capability(number: int) -> bool:
    return bool(capabilities() >> number & 1)


def keep_capabilities(*numbers: int) -> None:
    """Give up every capability but those of `numbers` that this process has."""
    kept = capabilities() & sum(1 << number for number in numbers)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    _checked(libc.capset(_CapabilityHeader(_CAPABILITY_VERSION_3, 0), _Capabilities(low, low, 0, high, high, 0)))
