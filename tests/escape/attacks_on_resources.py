"""Attacks on limits and descriptors."""

import ctypes
import fcntl
import mmap
import os
import resource
import termios

from engines import linux
from tests.escape.armoury import SOCKET, attack, checked, supervisor


@attack
def raise_the_descriptor_limit() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


@attack
def raise_the_cpu_limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@attack
def limit_the_supervisor() -> object:
    return resource.prlimit(supervisor(), resource.RLIMIT_CORE, (0, 0))


@attack
def read_the_supervisors_limits() -> object:
    return resource.prlimit(supervisor(), resource.RLIMIT_CORE)


@attack
def hog_memory_past_the_limit() -> object:
    resource.setrlimit(resource.RLIMIT_AS, (256 << 20, 256 << 20))
    return len(bytearray(2 << 30))


@attack
def lift_the_memory_limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (256 << 20, 256 << 20))
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@attack
def pin_memory() -> object:
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    checked(linux.libc.mlock(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(page))), ctypes.c_size_t(4096)))
    return page


@attack
def duplicate_a_descriptor() -> object:
    return os.dup(SOCKET)


@attack
def duplicate_by_fcntl() -> object:
    return fcntl.fcntl(SOCKET, fcntl.F_DUPFD, 0)


@attack
def pipe() -> object:
    return os.pipe()


@attack
def event_descriptor() -> None:
    checked(linux.libc.eventfd(0, 0))


@attack
def watch_files() -> None:
    checked(linux.libc.inotify_init1(0))


@attack
def type_into_the_terminal() -> object:
    return fcntl.ioctl(0, termios.TIOCSTI, b"x")
