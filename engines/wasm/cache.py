"""Compiled modules: native code, in memory and on disk, written by us alone and by nobody else believed.

    CACHE_DIR/compiled/<project>/<sha256 of the module>.<how and for whom>.cwasm     MAC[32], form[8], native code

The name holds all that native code depends on: Wasmtime, its settings, the processor; and whose secret vouches for it.
An entry that is not ours to the last bit (another owner, a writable mode, a wrong MAC) is removed and reported, and the
module compiled again. A project keeps MAX_FILES and MAX_PROJECT_BYTES; the least recently used go.
"""

import asyncio
import contextlib
import hashlib
import hmac
import logging
import os
import platform
import re
import stat
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from engines.wasm.configuration import SETTINGS

log = logging.getLogger(__name__)

MAX_FILES: Final = 256
MAX_FILE_BYTES: Final = 16 * 1024 * 1024
MAX_PROJECT_BYTES: Final = 256 * 1024 * 1024
MEMORY_BYTES: Final = 128 * 1024 * 1024
_MAC_BYTES, _FORM_BYTES = 32, 8
HEAD_BYTES: Final = _MAC_BYTES + _FORM_BYTES
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Compiled:
    """`form` says what runs it: linked, command, javy, or image."""

    form: str
    code: bytes


class Cache:
    """Of one process and one event loop; any number may share the directory."""

    def __init__(self, directory: Path, secret: bytes) -> None:
        self._directory = directory
        self._key = hashlib.blake2b(b"compiled modules", key=secret[:64]).digest()
        settings = repr((sorted(SETTINGS.items()), platform.machine(), _cpu(), hashlib.sha256(self._key).digest()))
        self._compiler = f"wt{version('wasmtime')}.{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
        self._recent: OrderedDict[Path, Compiled] = OrderedDict()
        self._recent_bytes = 0

    def path(self, project_id: str, sha256: str) -> Path:
        folder = project_id if _PLAIN.fullmatch(project_id) else hashlib.sha256(project_id.encode()).hexdigest()
        return self._directory / "compiled" / folder / f"{sha256}.{self._compiler}.cwasm"

    async def get(self, path: Path) -> Compiled | None:
        """The entry; None when there is none, or none to be believed."""
        if (found := self._recent.get(path)) is not None:
            self._recent.move_to_end(path)
            return found
        found = await asyncio.to_thread(self._load, path)
        if found is not None:
            self._remember(path, found)
        return found

    async def put(self, path: Path, compiled: Compiled) -> None:
        """Keep it. Where it cannot be kept on disk, which is logged, it is kept in memory."""
        self._remember(path, compiled)
        try:
            await asyncio.to_thread(self._store, path, compiled)
        except (OSError, ValueError) as why:
            log.error("A compiled module is not kept: %s: %s", path, why, extra={"action": "cache_failed"})

    def _load(self, path: Path) -> Compiled | None:
        try:
            return self._read(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as why:
            log.error("A compiled module was tampered with: %s: %s", path, why, extra={"action": "cache_tampered"})
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def _store(self, path: Path, compiled: Compiled) -> None:
        for folder in (path.parent.parent, path.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _refuse_foreign(folder.lstat(), stat.S_ISDIR)
        body = compiled.form.encode().ljust(_FORM_BYTES) + compiled.code
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(self._mac(path, body) + body)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        self._prune(path.parent)

    def _read(self, path: Path) -> Compiled:
        _refuse_foreign(path.parent.lstat(), stat.S_ISDIR)
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            _refuse_foreign(os.fstat(file.fileno()), stat.S_ISREG)
            content = file.read(MAX_FILE_BYTES)
        mac, body = content[:_MAC_BYTES], content[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(path, body)):
            raise ValueError("its authentication code is wrong")
        os.utime(path)
        return Compiled(body[:_FORM_BYTES].decode().strip(), body[_FORM_BYTES:])

    def _mac(self, path: Path, body: bytes) -> bytes:
        name = f"{path.parent.name}/{path.name}\0".encode()
        return hmac.digest(self._key, name + body, "sha256")

    def _remember(self, path: Path, compiled: Compiled) -> None:
        if (old := self._recent.pop(path, None)) is not None:
            self._recent_bytes -= len(old.code)
        self._recent[path] = compiled
        self._recent_bytes += len(compiled.code)
        while self._recent_bytes > MEMORY_BYTES and len(self._recent) > 1:
            _, gone = self._recent.popitem(last=False)
            self._recent_bytes -= len(gone.code)

    def _prune(self, folder: Path) -> None:
        """The latest stay, as far as there is room; what a killed process was writing goes in its turn."""
        with contextlib.suppress(OSError):  # another process prunes as well
            entries = sorted(((entry.stat(), entry) for entry in folder.iterdir()), key=lambda one: -one[0].st_mtime)
            room_bytes = MAX_PROJECT_BYTES
            for number, (found, entry) in enumerate(entries):
                room_bytes -= found.st_size
                if number >= MAX_FILES or room_bytes < 0:
                    entry.unlink()


def _refuse_foreign(found: os.stat_result, is_kind: Callable[[int], bool]) -> None:
    if not is_kind(found.st_mode):
        raise ValueError("it is of another kind")
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError("it is not ours alone to write")


def _cpu() -> str:
    """Compiled code uses what this processor can: one with other abilities must not find it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return ""
