"""Attacks that ask the kernel for more: identities, namespaces, large interfaces."""

import os
import struct

from engines import linux
from tests.escape.armoury import SOCKET, attack, checked, syscall


@attack
def become_root() -> None:
    os.setresuid(0, 0, 0)


@attack
def change_the_group() -> None:
    os.setgroups([0])


@attack
def take_capabilities() -> object:
    return syscall("capset", struct.pack("=II", 0x20080522, 0), struct.pack("=6I", *[0xFFFFFFFF] * 6))


@attack
def become_dumpable() -> None:
    linux.prctl(linux.PR_SET_DUMPABLE, 1)


@attack
def outlive_the_parent() -> None:
    linux.prctl(linux.PR_SET_PDEATHSIG, 0)


@attack
def new_user_namespace() -> None:
    linux.unshare(linux.CLONE_NEWUSER)


@attack
def new_network_namespace() -> None:
    linux.unshare(linux.CLONE_NEWNET)


@attack
def join_a_namespace() -> object:
    return syscall("setns", SOCKET, 0)


@attack
def load_bpf() -> object:
    return syscall("bpf", 0, struct.pack("=IIII", 1, 4, 4, 1) + bytes(56), 72)


@attack
def io_uring() -> object:
    return syscall("io_uring_setup", 1, bytes(120))


@attack
def user_page_faults() -> object:
    return syscall("userfaultfd", 1)


@attack
def performance_events() -> object:
    return syscall("perf_event_open", struct.pack("=IIQ", 1, 112, 0) + bytes(96), 0, -1, -1, 0)


@attack
def kernel_keyring() -> object:
    return syscall("keyctl", 0, -3, 1)


@attack
def add_a_key() -> object:
    return syscall("add_key", b"user", b"escaped", b"x", 1, -1)


@attack
def another_filter() -> object:
    return syscall("seccomp", 2, 0, struct.pack("=I", 0x80000000))


@attack
def landlock_rules() -> object:
    return syscall("landlock_create_ruleset", None, 0, 1)


@attack
def load_a_module() -> object:
    return syscall("finit_module", SOCKET, b"", 0)


@attack
def change_the_personality() -> None:
    checked(linux.libc.personality(0x0400000))


@attack
def x32_system_call() -> object:
    return linux.syscall(0x40000000 | 39)
