"""Attacks that need code of their own, or memory shared with others."""

import ctypes
import mmap
import os

from engines import linux
from tests.escape.armoury import attack, checked, syscall

RW = mmap.PROT_READ | mmap.PROT_WRITE


@attack
def writable_code() -> object:
    return mmap.mmap(-1, 4096, prot=RW | mmap.PROT_EXEC)


@attack
def executable_pages() -> object:
    return mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)


@attack
def make_data_executable() -> object:
    page = mmap.mmap(-1, 4096, prot=RW)
    address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    checked(linux.libc.mprotect(address, ctypes.c_size_t(4096), mmap.PROT_READ | mmap.PROT_EXEC))
    return page


@attack
def make_data_executable_by_key() -> object:
    page = mmap.mmap(-1, 4096, prot=RW)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return syscall("pkey_mprotect", address, 4096, mmap.PROT_READ | mmap.PROT_EXEC, -1)


@attack
def make_code_writable() -> None:
    code = ctypes.cast(linux.libc.getpid, ctypes.c_void_p).value or 0
    checked(linux.libc.mprotect(ctypes.c_void_p(code & ~4095), ctypes.c_size_t(4096), RW | mmap.PROT_EXEC))


@attack
def shared_memory_segment() -> object:
    return syscall("shmget", 0, 4096, 0o600)


@attack
def message_queue() -> object:
    return syscall("mq_open", b"escaped", os.O_RDWR | os.O_CREAT, 0o600, None)


@attack
def secret_memory() -> object:
    return syscall("memfd_secret", 0)
