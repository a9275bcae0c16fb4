"""The numbers of one process, in a file that any other can read: a counter is a double of it.

    file     magic · pid │ record │ record │ … │ zeros
    record   u32 length of the name · u32 count of doubles │ name (JSON, padded to 8 bytes) │ doubles

To count is to add to a double in mapped memory: 35 ns, seen by readers at once, and kept when the process is killed.
Its owner holds a lock on the file as long as it lives. A process that starts takes the first file of its role that
nobody holds and goes on in it, so that counters never fall and files never pile up.
"""

import fcntl
import itertools
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from server.log import logger

log = logger("metrics")

SIZE_BYTES: Final = 256 * 1024
SUFFIX: Final = ".numbers"
_MAGIC: Final = b"atlas-n1"
_PREFIX: Final = struct.Struct("=8sQ")
_RECORD: Final = struct.Struct("=II")
_DOUBLE_BYTES: Final = 8

Name = tuple[str, ...]
"""A family's name, then the values of its labels."""


class Malformed(Exception):
    """A file that is not ours, or of another version."""


@dataclass(frozen=True, slots=True)
class Record:
    name: Name
    first: int  # index of its first double in the file
    doubles: tuple[float, ...]


class Numbers:
    """Without a directory in memory alone; then `read_all` has nothing of them. For one thread."""

    def __init__(self, directory: Path | None = None, role: str = "process") -> None:
        """Makes the directory if it is missing; OSError when it cannot be written."""
        self._file = None if directory is None else _claim(directory, role)
        self._map = mmap.mmap(-1 if self._file is None else self._file, SIZE_BYTES)
        self._doubles = memoryview(self._map).cast("d")
        self._rows: dict[Name, tuple[int, int]] = {}
        try:
            records = list(parse(bytes(self._map)))
        except Malformed:
            records = []
            self._map[:] = bytes(SIZE_BYTES)
        for record in records:
            self._rows[record.name] = record.first, len(record.doubles)
        self._used = max((first + count for first, count in self._rows.values()), default=2) * _DOUBLE_BYTES
        _PREFIX.pack_into(self._map, 0, _MAGIC, os.getpid())

    def row(self, name: Name, count: int) -> "tuple[memoryview[float], int]":
        """The doubles of that name, `count` of them: the memory they are in and the index of the first.

        Of a full file, or when an earlier process wrote another count, they are memory that nobody else sees.
        """
        first, found = self._rows.get(name) or self._append(name, count)
        if found != count:
            return memoryview(bytearray(count * _DOUBLE_BYTES)).cast("d"), 0
        return self._doubles, first

    def _append(self, name: Name, count: int) -> tuple[int, int]:
        text = orjson.dumps(name)
        text += b" " * (-len(text) % _DOUBLE_BYTES)
        start = self._used
        first = start + _RECORD.size + len(text)
        end = first + count * _DOUBLE_BYTES
        if end > SIZE_BYTES:
            log.error("metrics.full", "There are more metrics than fit: some are not shown", family=name[0])
            self._rows[name] = 0, 0
            return 0, 0
        self._map[start + _RECORD.size : first] = text
        _RECORD.pack_into(self._map, start, len(text), count)  # last: now readers see it
        self._used = end
        self._rows[name] = first // _DOUBLE_BYTES, count
        return self._rows[name]

    def reset(self, family: str) -> None:
        """Set all of a family to zero: what an earlier process left of it is not true any more."""
        for name, (first, count) in self._rows.items():
            if name[0] == family:
                self._doubles[first : first + count] = memoryview(bytes(count * _DOUBLE_BYTES)).cast("d")

    def records(self) -> list[Record]:
        return list(parse(bytes(self._map)))

    def close(self) -> None:
        """Let another process have the file. What `row` gave must not be used any more."""
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)  # the mapping holds the file open, too
            os.close(self._file)
            self._file = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a process has counted. `pid` is None when it lives no more."""

    role: str
    pid: int | None
    records: list[Record]


def read_all(directory: Path) -> Iterator[Snapshot]:
    """Of every process that counts or has counted in that directory."""
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(file, SIZE_BYTES, 0)
            records = list(parse(data))
            alive = not _lock(file, fcntl.LOCK_SH)
        except Malformed:
            continue  # it has been made and not yet begun
        finally:
            os.close(file)
        pid = int(_PREFIX.unpack_from(data)[1])
        yield Snapshot(path.name.rpartition("-")[0], pid if alive else None, records)


def parse(data: bytes) -> Iterator[Record]:
    """The records of a file's bytes. Malformed unless they are what `Numbers` writes."""
    if len(data) < _PREFIX.size or _PREFIX.unpack_from(data)[0] != _MAGIC:
        raise Malformed
    at = _PREFIX.size
    while at + _RECORD.size <= len(data):
        text_bytes, count = _RECORD.unpack_from(data, at)
        if not text_bytes:
            return
        first = at + _RECORD.size + text_bytes
        end = first + count * _DOUBLE_BYTES
        if end > len(data) or first % _DOUBLE_BYTES:
            raise Malformed
        yield Record(_name(data[at + _RECORD.size : first]), first // _DOUBLE_BYTES, _doubles(data[first:end]))
        at = end


def _name(text: bytes) -> Name:
    try:
        name = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise Malformed from None
    if not (isinstance(name, list) and name and all(isinstance(part, str) for part in name)):
        raise Malformed
    return tuple(name)


def _doubles(data: bytes) -> tuple[float, ...]:
    return struct.unpack(f"={len(data) // _DOUBLE_BYTES}d", data)


def _claim(directory: Path, role: str) -> int:
    """The first file of the role that no living process holds, open and locked."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number in itertools.count():
        path = directory / f"{role}-{number}{SUFFIX}"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if _lock(file, fcntl.LOCK_EX):
            os.ftruncate(file, SIZE_BYTES)
            return file
        os.close(file)
    raise AssertionError("it counts for ever")


def _lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
