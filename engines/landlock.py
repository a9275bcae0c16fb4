"""Landlock with next to no rules: no file but a few, no TCP port, no abstract socket, no signal beyond our heirs.

Inherited by every process forked afterwards and never undone. What can be denied grows with the kernel's ABI:
1 files, 2 moving between directories, 3 truncate, 4 TCP, 5 device ioctl, 6 abstract unix sockets and signals.
"""

import os
import struct

from engines import linux

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_EXECUTE, _READ_FILE = 0b001, 0b100

_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}  # ABI: how many of the low bits exist
_TCP_BIND_AND_CONNECT = 0b11
_SCOPE_ABSTRACT_SOCKET_AND_SIGNAL = 0b11


def abi() -> int:
    """The kernel's landlock version, at least 1. Raises OSError: ENOSYS without landlock, EOPNOTSUPP if disabled."""
    return linux.syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)


def ruleset(version: int) -> bytes:
    """struct landlock_ruleset_attr that handles, and so denies, all that `version` knows."""
    files = (1 << max(bits for since, bits in _FILE_RIGHTS.items() if since <= version)) - 1
    if version < 4:
        return struct.pack("=Q", files)
    if version < 6:
        return struct.pack("=QQ", files, _TCP_BIND_AND_CONNECT)
    return struct.pack("=QQQ", files, _TCP_BIND_AND_CONNECT, _SCOPE_ABSTRACT_SOCKET_AND_SIGNAL)


def deny_all(*, but_read: tuple[str, ...] = (), but_execute: tuple[str, ...] = ()) -> int:
    """Deny everything to this process and its heirs but those files; returns the ABI. Needs no_new_privs. OSError."""
    version = abi()
    attributes = ruleset(version)
    descriptor = linux.syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for path in but_read:
            _allow(descriptor, path, _READ_FILE)
        for path in but_execute:
            _allow(descriptor, path, _READ_FILE | _EXECUTE)
        linux.syscall(_RESTRICT_SELF, descriptor, 0)
    finally:
        os.close(descriptor)
    return version


def _allow(rules: int, path: str, rights: int) -> None:
    file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        linux.syscall(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", rights, file), 0)
    finally:
        os.close(file)
