"""The jail of an engine that is a program of its own: which files it needs, what it is started with, how it is bound.

Runs in the zygote before its jail closes, and is of no more use after that.
"""

from __future__ import annotations

import os
import resource
import struct
import subprocess

from engines.confinement import Confinement, Execution
from engines.v8.profile import PROFILE

MIB = 1024 * 1024
HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib would double the zygote's memory
MIN_HEAP_MIB = 16  # V8 does not start with much less

_LIMITS = {
    resource.RLIMIT_NOFILE: 64,  # about 21 are open when it is idle
    resource.RLIMIT_NPROC: 64,  # threads; 6 when it is idle
    resource.RLIMIT_STACK: 4 * MIB,  # of every thread, and each counts as data: 8 would be half of a small limit
}
_DEVICES = ("/dev/null", "/dev/urandom")

_SCRIPTS = (".js", ".mjs", ".cjs")
_PT_INTERP = 3


def confine(execution: Execution, *, scripts: tuple[str, ...]) -> Confinement:
    """The confinement of an execution that reads `scripts`. Raises OSError or ValueError if its program is unfit."""
    program = execution.rehearsal[0]
    loader = loader_of(program)
    files = (program, loader, *libraries_of(program, loader), *scripts, *_DEVICES)
    return Confinement(
        PROFILE,
        files=tuple(dict.fromkeys(files)),
        links={"/proc/self/exe": program},  # Deno panics where it cannot ask for its own path
        programs=(program, loader),
        limits=_LIMITS,
        execution=execution,
        permitted=("list_root", "writable_code"),  # the names of `files`; a compiler's daily work
    )


def scripts() -> tuple[str, ...]:
    """All that the children's program and the rehearsal are made of."""
    folders = (HERE, os.path.join(os.path.dirname(HERE), "quickjs", "prelude"))  # noqa: PTH118, PTH120
    return tuple(entry.path for folder in folders for entry in os.scandir(folder) if entry.name.endswith(_SCRIPTS))


def heap_mib(memory_bytes: int) -> int:
    """What to allow V8's heap under a memory limit; 0 is none."""
    return max(MIN_HEAP_MIB, memory_bytes // MIB) if memory_bytes else 512


def loader_of(program: str) -> str:
    """The program's dynamic loader, from its ELF header."""
    with open(program, "rb") as file:  # noqa: PTH123
        header = file.read(64)
        if header[:5] != b"\x7fELF\x02":
            raise ValueError(f"{program} is no 64-bit ELF file")
        (table,) = struct.unpack_from("<Q", header, 32)
        size, count = struct.unpack_from("<HH", header, 54)
        for index in range(count):
            file.seek(table + index * size)
            kind, _, offset, _, _, length = struct.unpack("<IIQQQQ", file.read(40))
            if kind == _PT_INTERP:
                file.seek(offset)
                return file.read(length).rstrip(b"\0").decode()
    raise ValueError(f"{program} is not dynamically linked")


def libraries_of(program: str, loader: str) -> list[str]:
    """The shared libraries that its loader finds for it."""
    told = subprocess.run(
        [loader, "--list", program], env={}, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if told.returncode:
        raise ValueError(f"{program} cannot be loaded: {told.stderr.decode(errors='replace')}")
    lines = told.stdout.decode().splitlines()
    return [line.split(" => ")[1].rsplit(" (", 1)[0] for line in lines if " => /" in line]
