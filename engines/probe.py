"""Attempts to break out, made by a worker in the real jail before the jail is trusted: see engines/selftest.py.

The supervisor names one attempt on the worker's socket; the answer is "escaped", or "held" and what stopped it. Being
killed by the system call filter is an answer too.
"""

import ctypes
import mmap
import os
import socket

from engines import linux


def _open_file() -> None:
    os.close(os.open("/proc/self/mem", os.O_RDONLY))


def _list_root() -> None:
    os.listdir("/")  # noqa: PTH208


def _write_file() -> None:
    os.close(os.open("/escaped", os.O_WRONLY | os.O_CREAT, 0o600))


def _tcp_socket() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()


def _unix_socket() -> None:
    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).close()


def _signal_parent() -> None:
    os.kill(os.getppid(), 0)


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _execute() -> None:
    os.execv("/bin/true", ["true"])  # noqa: S606


def _writable_code() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def _become_dumpable() -> None:  # what nothing but the filter stops
    linux.prctl(linux.PR_SET_DUMPABLE, 1)


def _new_namespace() -> None:
    linux.unshare(linux.CLONE_NEWUSER)


def _trace_parent() -> None:
    if linux.libc.ptrace(16, os.getppid(), None, None) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


ATTEMPTS = {
    attempt.__name__.strip("_"): attempt
    for attempt in (
        _open_file,
        _list_root,
        _write_file,
        _tcp_socket,
        _unix_socket,
        _signal_parent,
        _fork,
        _execute,
        _writable_code,
        _become_dumpable,
        _new_namespace,
        _trace_parent,
    )
}


def preload() -> None:
    """Nothing to read: the imports above are all it needs."""


def serve(descriptor: int) -> None:
    """Make the attempt named by the first message and answer with how it ended."""
    name = os.read(descriptor, 64).decode()
    try:
        ATTEMPTS[name]()
    except OSError as why:
        os.write(descriptor, f"held: {why.strerror}".encode())
    else:
        os.write(descriptor, b"escaped")
