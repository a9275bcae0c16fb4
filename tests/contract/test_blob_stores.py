"""Contents on disk and in JetStream: the same promises."""

import asyncio
import hashlib
import os
import time
import uuid
from pathlib import Path

import pytest

from server.storage.blobs import Blobs
from server.storage.disk import DiskBlobs
from server.storage.jetstream import CHUNK_BYTES
from server.storage.records import Slice

PROJECT, ANOTHER = str(uuid.uuid4()), str(uuid.uuid4())


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 6 * 1024 * 1024]


@pytest.mark.parametrize("size", SIZES)
async def test_what_is_written_is_read(blobs: Blobs, size: int) -> None:
    data = os.urandom(size)
    await blobs.write(PROJECT, sha(data), data)
    assert await blobs.read(PROJECT, sha(data), size) == data
    assert await blobs.read(ANOTHER, sha(data), size) is None


async def test_slices(blobs: Blobs) -> None:
    size = 3 * CHUNK_BYTES + 5
    data = os.urandom(size)
    await blobs.write(PROJECT, sha(data), data)
    for offset in (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 7, size - 1):
        for length in {0, 1, 2, min(CHUNK_BYTES, size - offset), size - offset} - {2 if offset == size - 1 else -1}:
            assert await blobs.read(PROJECT, sha(data), size, Slice(offset, length)) == data[offset : offset + length]


async def test_what_is_not_there_is_none(blobs: Blobs) -> None:
    assert await blobs.read(PROJECT, sha(b"x"), 1) is None
    assert await blobs.read(PROJECT, sha(b"x"), 1, Slice(0, 1)) is None
    await blobs.remove(PROJECT, [sha(b"x")])


async def test_what_is_not_what_its_name_says_is_none_until_it_is_written_again(blobs: Blobs) -> None:
    await blobs.write(PROJECT, sha(b"right"), b"wrong")
    assert await blobs.read(PROJECT, sha(b"right"), 5) is None
    await blobs.write(PROJECT, sha(b"right"), b"right")
    assert await blobs.read(PROJECT, sha(b"right"), 5) == b"right"
    assert await blobs.read(PROJECT, sha(b"right"), 6) is None


async def test_writers_of_one_content_do_not_harm_each_other(blobs: Blobs) -> None:
    data = os.urandom(3 * CHUNK_BYTES)
    await asyncio.gather(*(blobs.write(PROJECT, sha(data), data) for _ in range(8)))
    assert await blobs.read(PROJECT, sha(data), len(data)) == data


async def test_what_is_removed_is_gone_and_its_neighbours_are_not(blobs: Blobs) -> None:
    for project_id in (PROJECT, ANOTHER):
        for data in (b"a", b"b"):
            await blobs.write(project_id, sha(data), data)
    await blobs.remove(PROJECT, [sha(b"a"), sha(b"missing")])
    assert await blobs.read(PROJECT, sha(b"a"), 1) is None
    assert await blobs.read(PROJECT, sha(b"b"), 1) == b"b"
    assert await blobs.read(ANOTHER, sha(b"a"), 1) == b"a"
    await blobs.remove(PROJECT, [sha(b"b")])
    await blobs.write(PROJECT, sha(b"a"), b"a")
    assert await blobs.read(PROJECT, sha(b"a"), 1) == b"a"


async def test_half_written_files_go_after_an_hour(tmp_path: Path) -> None:
    disk = DiskBlobs(tmp_path)
    await disk.write(PROJECT, sha(b"a"), b"a")
    unfinished = tmp_path / "unfinished"
    for name, age_s in (("old", 3700), ("new", 3500)):
        (unfinished / name).write_bytes(b"half")
        os.utime(unfinished / name, (time.time() - age_s,) * 2)
    await disk.remove(PROJECT, [sha(b"a")])
    assert [path.name for path in unfinished.iterdir()] == ["new"]
    assert not (tmp_path / PROJECT).exists()
