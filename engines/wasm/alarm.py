"""Interrupts a module that runs too long, from inside its process, which has one thread.

While a module runs, Python does not: neither a thread nor a signal handler of Python's could stop it. So the kernel's
timers raise a signal whose handler is a few instructions that increment the engine's epoch, and the module traps at its
next loop or call. Wasmtime promises that this increment is safe in a signal handler: it is one atomic addition.

    x86-64   mov rdi, engine; mov rax, increment; jmp rax
    aarch64  ldr x0, engine; ldr x1, increment; br x1
"""

import ctypes
import mmap
import os
import signal
import struct
from signal import ITIMER_PROF, ITIMER_REAL, setitimer

from wasmtime import Engine
from wasmtime._ffi import dll

from engines import linux

_LDR_X0_16, _LDR_X1_20, _BR_X1, _NOP = 0x58000080, 0x580000A1, 0xD61F0020, 0xD503201F

_AGAIN_S = 0.05

_page: mmap.mmap | None = None  # for as long as the process lives


def prepare(engine: Engine) -> None:
    """Install the handler, for this process and those it forks. While it may still make code. Raises OSError."""
    global _page
    address = ctypes.cast(engine.ptr(), ctypes.c_void_p).value or 0
    increment = ctypes.cast(dll.wasmtime_engine_increment_epoch, ctypes.c_void_p).value or 0
    _page = mmap.mmap(-1, mmap.PAGESIZE)
    _page.write(_handler(address, increment))
    handler = ctypes.addressof(ctypes.c_char.from_buffer(_page))
    protection = mmap.PROT_READ | mmap.PROT_EXEC
    if linux.libc.mprotect(ctypes.c_void_p(handler), ctypes.c_size_t(mmap.PAGESIZE), protection) < 0:
        raise OSError(ctypes.get_errno(), "no page for a signal handler")
    linux.libc.signal.restype = ctypes.c_void_p
    for number in (signal.SIGALRM, signal.SIGPROF):
        linux.libc.signal(ctypes.c_int(number), ctypes.c_void_p(handler))


def _handler(engine: int, increment: int) -> bytes:
    match os.uname().machine:
        case "x86_64":
            return struct.pack("<2sQ2sQ2s", b"\x48\xbf", engine, b"\x48\xb8", increment, b"\xff\xe0")
        case "aarch64":
            return struct.pack("<4I2Q", _LDR_X0_16, _LDR_X1_20, _BR_X1, _NOP, engine, increment)
        case other:
            raise OSError(0, f"no signal handler for {other}")


def arm(wall_ms: float, cpu_ms: float) -> None:
    """Interrupt the module when either has passed, again and again until `disarm`. 2 µs."""
    setitimer(ITIMER_REAL, wall_ms / 1000, _AGAIN_S)
    setitimer(ITIMER_PROF, cpu_ms / 1000, _AGAIN_S)


def disarm() -> None:
    setitimer(ITIMER_REAL, 0)
    setitimer(ITIMER_PROF, 0)
