"""What the attacks have in common: their register, what they aim at, and calls that raise OSError."""

import ctypes
import os
from collections.abc import Callable

from engines import linux

SOCKET = 3
TARGET: dict[str, int | str] = {}
ATTACKS: dict[str, Callable[[], object]] = {}

# x86_64, aarch64; of calls that Python and libc have no function for
_NUMBERS = {
    "add_key": (248, 217), "bpf": (321, 280), "capset": (126, 91), "chroot": (161, 51), "clone3": (435, 435),
    "execveat": (322, 281), "finit_module": (313, 273), "io_uring_setup": (425, 425), "kcmp": (312, 272),
    "keyctl": (250, 219), "memfd_secret": (447, 447), "mq_open": (240, 180), "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241), "pidfd_getfd": (438, 438), "pivot_root": (155, 41), "pkey_mprotect": (329, 288),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "remap_file_pages": (216, 234),
    "rt_sigqueueinfo": (129, 138), "seccomp": (317, 277), "setns": (308, 268), "shmget": (29, 194),
    "tgkill": (234, 131), "umount2": (166, 39), "userfaultfd": (323, 282), "landlock_create_ruleset": (444, 444),
}  # fmt: skip
_COLUMN = ("x86_64", "aarch64").index(os.uname().machine)


def attack(function: Callable[[], object]) -> Callable[[], object]:
    ATTACKS[function.__name__] = function
    return function


def syscall(name: str, *arguments: int | bytes | None) -> int:
    return linux.syscall(_NUMBERS[name][_COLUMN], *arguments)


def supervisor() -> int:
    return int(TARGET["supervisor"])


def checked(result: int) -> None:
    """Raise what a libc function that answered -1 was refused for."""
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
