"""The engine image: the guest compiled and initialised, built once a checkout and kept under the hash of its inputs.

    CACHE_DIR/lock                  held by whoever builds
    CACHE_DIR/image-<inputs>/       engine.wasm, command.wasm; renamed here when complete
    CACHE_DIR/building-*/           unfinished; of no meaning

What lies here becomes native code. So the directory must be ours, and nobody else may be able to write to it.
"""

import asyncio
import contextlib
import hashlib
import os
import signal
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from typing import Final

from engines.wasm import abi, artifact, toolchain

SET_UP: Final = ("_initialize", "atlas_boot")
EXPORTS: Final = {"engine": abi.EXPORTS, "command": ("memory", "_start", artifact.PROGRAM)}
_LONGEST_LINE = 500


class Distrusted(Exception):
    """The cache directory, or something in it, could have been written by somebody else."""


class ImageFault(Exception):
    """The image cannot be built; the message says why."""


@dataclass(frozen=True)
class Image:
    """`wasm` is the engine, without imports; `command` the same as a WASI command, for engines.wasm.artifact."""

    wasm: bytes = field(repr=False)
    command: bytes = field(repr=False)

    @cached_property
    def sha256(self) -> str:
        """Of `wasm`, in hex: what a function's module is linked to."""
        return hashlib.sha256(self.wasm).hexdigest()


async def ensure(cache_dir: Path, *, say: Callable[[str], None] | None = None) -> Image:
    """The image, built first when it is not there: about 40 s of one core at low priority, told line by line to `say`.

    Any number of processes may ask at once: one builds, the others wait for it. When cancelled, the build is killed
    and reaped first, and what it left is of no meaning. Raises ImageFault and Distrusted.
    """
    found = await asyncio.to_thread(peek, cache_dir)
    if found is None:
        await _build(cache_dir, say or (lambda _: None))
        found = await asyncio.to_thread(peek, cache_dir)
    if found is None:
        raise ImageFault("the build of the Wasm engine left no image")
    return found


def peek(cache_dir: Path) -> Image | None:
    """The image when it is there. Raises Distrusted, and ImageFault when what it is made of is not there."""
    here = directory(cache_dir)
    if not here.exists():
        return None
    private_directory(cache_dir)
    private_directory(here)
    try:
        return Image(*(_read_private(here / f"{name}.wasm") for name in EXPORTS))
    except FileNotFoundError:
        return None


def directory(cache_dir: Path) -> Path:
    """Where the image of this checkout's inputs is, or will be."""
    return cache_dir / f"image-{_inputs()[:32]}"


def private_directory(path: Path) -> None:
    """Make a directory that only we can enter, or make sure that it is one. Raises Distrusted."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_foreign(path, path.lstat(), stat.S_ISDIR)


def _read_private(path: Path) -> bytes:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        _refuse_foreign(path, os.fstat(file.fileno()), stat.S_ISREG)
        return file.read()


def _refuse_foreign(path: Path, found: os.stat_result, is_kind: Callable[[int], bool]) -> None:
    if not is_kind(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Distrusted(f"{path} is not ours alone to write")


@lru_cache(maxsize=1)
def _inputs() -> str:
    try:
        parts = [toolchain.fingerprint().encode()]
    except toolchain.ToolchainFault as fault:
        raise ImageFault(str(fault)) from fault
    parts += [Path(__file__).with_name(name).read_bytes() for name in ("snapshot.py", "binary.py")]
    parts.append(repr((SET_UP, EXPORTS)).encode())
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


async def _build(cache_dir: Path, say: Callable[[str], None]) -> None:
    """Run the build program to its end."""
    process = _start(cache_dir)
    loop = asyncio.get_running_loop()
    told: list[str] = []

    def follow() -> int:
        assert process.stdout is not None
        while line := process.stdout.readline(_LONGEST_LINE):
            text = line.decode("utf-8", "replace").strip()
            told[:] = [text]
            loop.call_soon_threadsafe(say, text)
        return process.wait()

    ended = asyncio.ensure_future(asyncio.to_thread(follow))
    try:
        status = await asyncio.shield(ended)
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.shield(ended)
        raise
    finally:
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
    if status:
        raise ImageFault(f"the Wasm engine cannot be built: {''.join(told) or f'exit status {status}'}")


def _start(cache_dir: Path) -> "Popen[bytes]":
    """Popen and not the loop's own subprocess, as in engines.build: it does not fork."""
    command = [sys.executable, "-I", "-m", "engines.wasm.build_image", str(cache_dir.absolute())]
    return Popen(command, stdin=PIPE, stdout=PIPE, stderr=STDOUT, start_new_session=True)
