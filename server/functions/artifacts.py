"""Deployed code on this machine's disk, by content: `<root>/<project_id>/<sha256>.js` or `.wasm`, its `.map` and its
`.source`, and the `.script` a Wasm module was made of.

A file appears under its name only when all of it is on the disk, and is checked against its name whenever it is read,
so that a torn, swapped or edited file counts as missing. Folders are opened without following links: what lies in
one may have been put there by others.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final, Literal

Kind = Literal["js", "wasm", "script", "map", "source"]

TEMPORARY_S: Final = 3600
"""Age after which a file that nobody knows is nobody's work in progress."""

MAX_FILE_BYTES: Final = 64 * 1024 * 1024
"""Of what is read into memory; larger than any artifact of ours."""

_TEMPORARY: Final = ".tmp-"
_FILE: Final = re.compile(r"([0-9a-f]{64})\.(?:js|wasm|script|map|source)")
_PROJECT: Final = re.compile(r"[0-9a-f-]{36}")
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # NONBLOCK: a FIFO must not hang us
_WRITE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class FileTooLarge(Exception):
    """`used` bytes where fewer are allowed."""

    def __init__(self, used: int) -> None:
        super().__init__(used)
        self.used = used


class Artifacts:
    def __init__(self, root: Path) -> None:
        """`root` is made when it is first needed; only our user can read what we put there."""
        self._root = root

    async def store(self, project_id: str, files: Mapping[Kind, bytes]) -> None:
        """Write the files durably, each under its own hash. OSError when the disk is full or not ours."""
        await asyncio.to_thread(self._store, project_id, files)

    async def read(self, project_id: str, sha256: str, kind: Kind) -> bytes | None:
        """The bytes with that hash, or None when they are not here whole."""
        return await asyncio.to_thread(self._read_checked, project_id, sha256, kind)

    async def read_source(self, project_id: str, filename: str, max_bytes: int) -> bytes | None:
        """A file that somebody else put into the project's folder; None when there is no regular file of that name.

        `filename` must not contain a slash. FileTooLarge above `max_bytes`.
        """
        return await asyncio.to_thread(self._read, project_id, filename, max_bytes)

    async def remove(self, project_id: str, sha256s: Collection[str]) -> None:
        """Delete every file with one of these hashes, as far as the disk allows; a sweep takes the rest."""
        await asyncio.to_thread(self._remove, project_id, sha256s)

    async def remove_project(self, project_id: str) -> None:
        """Delete the project's folder with all that is in it. Idempotent."""
        await asyncio.to_thread(self._remove_project, project_id)

    async def unattended(self, *, older_than_s: float = TEMPORARY_S) -> Mapping[str, Collection[str]]:
        """Hashes on this disk by project, of files older than that; removes what crashed writers left behind."""
        return await asyncio.to_thread(self._unattended, time.time() - older_than_s)

    def _store(self, project_id: str, files: Mapping[Kind, bytes]) -> None:
        path = self._root / project_id
        try:
            path.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            pass
        else:
            with _opened(self._root, os.O_DIRECTORY) as root:
                os.fsync(root)
        with _opened(path, os.O_DIRECTORY) as folder:
            for kind, data in files.items():
                _write(folder, f"{sha256_of(data)}.{kind}", data)
            os.fsync(folder)

    def _read_checked(self, project_id: str, sha256: str, kind: Kind) -> bytes | None:
        try:
            data = self._read(project_id, f"{sha256}.{kind}", MAX_FILE_BYTES)
        except FileTooLarge:
            return None
        return data if data is not None and sha256_of(data) == sha256 else None

    def _read(self, project_id: str, name: str, max_bytes: int) -> bytes | None:
        try:
            with (
                _opened(self._root / project_id, os.O_DIRECTORY) as folder,
                os.fdopen(os.open(name, _READ, dir_fd=folder), "rb") as file,
            ):
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    return None
                if status.st_size > max_bytes:
                    raise FileTooLarge(status.st_size)
                data = file.read(max_bytes + 1)
                if len(data) > max_bytes:  # it grew meanwhile
                    raise FileTooLarge(len(data))
                return data
        except OSError:
            return None

    def _remove(self, project_id: str, sha256s: Collection[str]) -> None:
        if not sha256s:
            return
        with contextlib.suppress(OSError), _opened(self._root / project_id, os.O_DIRECTORY) as folder:
            for entry in _entries(folder):
                if (match := _FILE.fullmatch(entry.name)) and match[1] in sha256s:
                    os.unlink(entry.name, dir_fd=folder)

    def _remove_project(self, project_id: str) -> None:
        path = self._root / project_id
        if path.is_symlink():
            path.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)

    def _unattended(self, before: float) -> Mapping[str, Collection[str]]:
        found: dict[str, set[str]] = {}
        for path in self._root.glob("*"):
            if not _PROJECT.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
                continue
            with contextlib.suppress(FileNotFoundError), _opened(path, os.O_DIRECTORY) as folder:
                for entry in _entries(folder):
                    if entry.stat(follow_symlinks=False).st_mtime > before:
                        continue
                    if match := _FILE.fullmatch(entry.name):
                        found.setdefault(path.name, set()).add(match[1])
                    elif entry.name.startswith(_TEMPORARY):
                        os.unlink(entry.name, dir_fd=folder)
        return found


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, _READ | flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _entries(folder: int) -> Iterator["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        yield from entries


def _write(folder: int, name: str, data: bytes) -> None:
    temporary = _TEMPORARY + secrets.token_hex(8)
    try:
        with os.fdopen(os.open(temporary, _WRITE, 0o600, dir_fd=folder), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        raise
