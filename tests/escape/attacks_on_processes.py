"""Attacks on other processes, and on the wish to be more than one."""

import ctypes
import os
import signal
import struct
import threading

from engines import linux
from tests.escape.armoury import SOCKET, attack, checked, supervisor, syscall


@attack
def fork() -> object:
    if (child := os.fork()) == 0:
        os._exit(0)
    return os.waitpid(child, 0)


@attack
def clone3() -> object:
    if (child := syscall("clone3", struct.pack("=8Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0), 64)) == 0:
        os._exit(0)
    return os.waitpid(child, 0)


@attack
def start_a_thread() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


@attack
def execute_a_program() -> object:
    return os.execv("/bin/sh", ["sh", "-c", "echo -n escaped >&3"])


@attack
def execute_by_descriptor() -> object:
    return syscall("execveat", 0, b"", None, None, 0x1000)


@attack
def shell_command() -> object:
    if linux.libc.system(b"true") != 0:
        raise OSError("system() failed")
    return True


@attack
def posix_spawn() -> object:
    return os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)


@attack
def signal_the_supervisor() -> None:
    os.kill(supervisor(), 0)


@attack
def signal_the_zygote() -> None:
    os.kill(1, 0)


@attack
def signal_everything() -> None:
    os.kill(-1, signal.SIGCONT)


@attack
def signal_a_thread() -> object:
    return syscall("tgkill", supervisor(), supervisor(), 0)


@attack
def queue_a_signal() -> object:
    return syscall(
        "rt_sigqueueinfo", supervisor(), signal.SIGCONT, struct.pack("=iii", signal.SIGCONT, 0, -1) + bytes(116)
    )


@attack
def pidfd_of_the_supervisor() -> object:
    return os.pidfd_open(supervisor())


@attack
def steal_a_descriptor() -> object:
    return syscall("pidfd_getfd", SOCKET, 0, 0)


@attack
def trace_the_supervisor() -> None:
    checked(linux.libc.ptrace(0x4206, supervisor(), None, None))


@attack
def ask_to_be_traced() -> None:
    checked(linux.libc.ptrace(0, 0, None, None))


@attack
def read_foreign_memory() -> object:
    vector = struct.pack("=QQ", ctypes.addressof(ctypes.create_string_buffer(8)), 8)
    return syscall("process_vm_readv", supervisor(), vector, 1, vector, 1, 0)


@attack
def write_foreign_memory() -> object:
    vector = struct.pack("=QQ", ctypes.addressof(ctypes.create_string_buffer(8)), 8)
    return syscall("process_vm_writev", supervisor(), vector, 1, vector, 1, 0)


@attack
def compare_processes() -> object:
    return syscall("kcmp", os.getpid(), os.getpid(), 0, 0, 0)


@attack
def leave_the_process_group() -> None:
    os.setpgid(0, 0)


@attack
def lead_a_session() -> None:
    os.setsid()


@attack
def choose_a_processor() -> None:
    os.sched_setaffinity(0, {0})


@attack
def be_nice() -> object:
    return os.nice(1)
