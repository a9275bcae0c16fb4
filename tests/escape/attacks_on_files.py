"""Attacks on the file system: reading, writing, and getting at another root."""

# ruff: noqa: PTH101, PTH102, PTH104, PTH108, PTH116, PTH208, PTH211

import os
import struct

from engines import linux
from tests.escape.armoury import TARGET, attack, supervisor, syscall


@attack
def read_a_file() -> object:
    return os.open("/etc/passwd", os.O_RDONLY)


@attack
def read_own_memory_file() -> object:
    return os.open("/proc/self/mem", os.O_RDWR)


@attack
def read_parents_memory_file() -> object:
    return os.open(f"/proc/{supervisor()}/mem", os.O_RDONLY)


@attack
def list_the_root() -> object:
    return os.listdir("/")


@attack
def climb_out_of_the_root() -> object:
    return os.open("../../../../..", os.O_RDONLY | os.O_DIRECTORY)


@attack
def stat_a_file() -> object:
    return os.stat("/etc/passwd")


@attack
def create_a_file() -> object:
    return os.open(str(TARGET["directory"]) + "/escaped", os.O_WRONLY | os.O_CREAT, 0o600)


@attack
def make_a_directory() -> None:
    os.mkdir(str(TARGET["directory"]) + "/made")


@attack
def delete_a_file() -> None:
    os.unlink(str(TARGET["victim"]))


@attack
def rename_a_file() -> None:
    os.rename(str(TARGET["victim"]), str(TARGET["victim"]) + ".moved")


@attack
def change_a_mode() -> None:
    os.chmod(str(TARGET["victim"]), 0o777)


@attack
def plant_a_link() -> None:
    os.symlink("/etc/passwd", str(TARGET["directory"]) + "/link")


@attack
def empty_a_file() -> None:
    os.truncate(str(TARGET["victim"]), 0)


@attack
def open_by_handle() -> object:
    return syscall("open_by_handle_at", -100, struct.pack("=IiQ", 8, 1, 2), 0)


@attack
def file_in_memory() -> object:
    return os.memfd_create("x")


@attack
def mount_a_file_system() -> None:
    linux.mount(b"tmpfs", b"/", b"tmpfs", 0)


@attack
def unmount_the_root() -> object:
    return syscall("umount2", b"/", 2)


@attack
def change_the_root() -> None:
    os.chroot("/")


@attack
def pivot_the_root() -> object:
    return syscall("pivot_root", b".", b".")
