"""Contents on a disk, which all API processes and workers share: `<root>/<project_id>/<sha256>`.

A file appears under its name only when all of it is on the disk. Folders are opened without following links.
"""

import asyncio
import contextlib
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from server.storage.blobs import BlobsUnavailable
from server.storage.records import Slice

ATTEMPTS: Final = 3
"""At writing: the folder may be removed under us when it has become empty."""

TEMPORARY: Final = "unfinished"
"""The folder of files on their way, beside those of projects."""

TEMPORARY_S: Final = 3600.0
"""Age after which a half-written file is nobody's work in progress."""

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # NONBLOCK: a FIFO must not hang us
_WRITE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class DiskBlobs:
    """`server.storage.blobs.Blobs`. What a killed writer left goes an hour later, when something is removed."""

    def __init__(self, root: Path) -> None:
        """`root` is made when it is first needed; only our user can read it."""
        self._root = root

    async def start(self) -> None: ...

    async def write(self, project_id: str, sha256: str, data: bytes) -> None:
        try:
            await asyncio.to_thread(self._write, project_id, sha256, data)
        except OSError as why:
            raise BlobsUnavailable(f"cannot write into {self._root}: {why}") from why

    async def read(self, project_id: str, sha256: str, size_bytes: int, part: Slice | None = None) -> bytes | None:
        try:
            return await asyncio.to_thread(self._read, project_id, sha256, size_bytes, part)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as why:
            raise BlobsUnavailable(f"cannot read from {self._root}: {why}") from why

    async def remove(self, project_id: str, sha256s: Collection[str]) -> None:
        try:
            await asyncio.to_thread(self._remove, project_id, sha256s)
        except OSError as why:
            raise BlobsUnavailable(f"cannot remove from {self._root}: {why}") from why

    def _write(self, project_id: str, sha256: str, data: bytes) -> None:
        path = self._root / project_id
        for attempt in range(ATTEMPTS):
            for made in (self._root / TEMPORARY, path):
                with contextlib.suppress(FileExistsError):
                    made.mkdir(mode=0o700, parents=True)
                    with _opened(self._root) as root:
                        os.fsync(root)
            try:
                with _opened(self._root / TEMPORARY) as temporary, _opened(path) as folder:
                    _put(temporary, folder, sha256, data)
                    os.fsync(folder)
            except FileNotFoundError:
                if attempt + 1 == ATTEMPTS:
                    raise
            else:
                return

    def _read(self, project_id: str, sha256: str, size_bytes: int, part: Slice | None) -> bytes | None:
        with _opened(self._root / project_id) as folder, os.fdopen(os.open(sha256, _READ, dir_fd=folder), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size != size_bytes:
                return None
            if part is not None:
                data = os.pread(file.fileno(), part.length, part.offset)
                return data if len(data) == part.length else None
            data = file.read(size_bytes)
        return data if hashlib.sha256(data).hexdigest() == sha256 else None

    def _remove(self, project_id: str, sha256s: Collection[str]) -> None:
        path = self._root / project_id
        with contextlib.suppress(FileNotFoundError), _opened(path) as folder:
            for sha256 in sha256s:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(sha256, dir_fd=folder)
            os.fsync(folder)
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()
        with contextlib.suppress(FileNotFoundError), _opened(self._root / TEMPORARY) as temporary:
            _tidy(temporary, time.time() - TEMPORARY_S)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, _READ | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _tidy(temporary: int, before: float) -> None:
    """Remove what killed writers left before that time."""
    with os.scandir(temporary) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_mtime < before:
                    os.unlink(entry.name, dir_fd=temporary)


def _put(temporary: int, folder: int, name: str, data: bytes) -> None:
    half = secrets.token_hex(16)
    try:
        with os.fdopen(os.open(half, _WRITE, 0o600, dir_fd=temporary), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(half, name, src_dir_fd=temporary, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(half, dir_fd=temporary)
        raise
