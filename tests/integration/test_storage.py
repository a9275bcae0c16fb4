"""Stored objects on a real Postgres: rows, contents, usage and events agree, whoever comes in between."""

import asyncio
import contextlib
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from server.errors import (
    AlreadyExists,
    AtlasError,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from server.events import outbox
from server.events.envelope import Cause
from server.events.outbox import Outbox
from server.postgres.changes import Changes
from server.postgres.control import Pool, transaction
from server.storage import buckets, contents
from server.storage.disk import DiskBlobs
from server.storage.records import Slice
from server.storage.storage import MAX_OBJECT_BYTES, Storage
from tests.fix_functions import add_project
from tests.fix_storage import Store, make_store

HELLO = hashlib.sha256(b"hello").hexdigest()


async def usage(store: Store) -> list[tuple[int, int, int]]:
    return await store.rows("SELECT objects, object_bytes, blob_bytes FROM storage_usage")


def files(root: Path) -> set[str]:
    return {path.name for path in root.rglob("*") if path.is_file()}


async def test_an_object_comes_and_goes(store: Store, project_id: str) -> None:
    put = await store.put(project_id, "b/é.txt", content_type="text/plain", metadata=b'{"n": 1.10}')
    assert (put.bucket, put.path, put.size_bytes, put.checksum) == ("files", "b/é.txt", 5, HELLO)
    assert (put.content_type, put.metadata.text, put.etag) == ("text/plain", '{"n": 1.10}', f'"{HELLO}"')
    found = await store.storage.get(project_id, "files", "b/é.txt")
    assert (found.object, found.content, found.part) == (put, b"hello", None)
    assert await store.storage.info(project_id, "files", "b/é.txt") == put
    part = await store.storage.get(
        project_id, "files", "b/é.txt", lambda stored: Slice(1, 100).within(stored.size_bytes)
    )
    assert (part.content, part.part) == (b"ello", Slice(1, 4))
    assert await usage(store) == [(1, 5, 5)]
    await store.storage.delete(project_id, "files", "b/é.txt")
    assert await usage(store) == [(0, 0, 5)]
    for gone in (store.storage.get, store.storage.info, store.storage.delete):
        with pytest.raises(NotFound, match=r"There is no object b/é\.txt in the bucket files"):
            await gone(project_id, "files", "b/é.txt")


async def test_events_tell_what_happened_in_its_order(disk_store: Store, project_id: str) -> None:
    cause = Cause(run_id=project_id, depth=2)
    put = await disk_store.put(project_id, content_type="text/plain", metadata=b'{"n": 1.10}', cause=cause)
    await disk_store.storage.delete(project_id, "files", "a.txt")
    upload, delete = await disk_store.events()
    data = (
        f'{{"bucket":"files","path":"a.txt","size":5,"content_type":"text/plain","checksum":"{HELLO}",'
        '"metadata":{"n": 1.10}}'
    )
    assert (upload.type, delete.type, upload.data.text, delete.data.text) == (
        "storage.upload",
        "storage.delete",
        data,
        data,
    )
    assert (upload.project_id, upload.source, upload.subject) == (project_id, "storage", "files/a.txt")
    assert (upload.time, upload.cause, delete.cause) == (put.updated_at, cause, None)


async def test_overwriting_keeps_when_it_was_made(disk_store: Store, project_id: str) -> None:
    first = await disk_store.put(project_id, content_type="text/plain")
    second = await disk_store.put(project_id, content=b"other!")
    assert (second.created_at, second.content_type) == (first.created_at, "application/octet-stream")
    assert second.updated_at >= first.updated_at
    assert (await disk_store.storage.get(project_id, "files", "a.txt")).content == b"other!"
    with pytest.raises(AlreadyExists, match=r"There is an object a\.txt in the bucket files already"):
        await disk_store.put(project_id, content=b"third", overwrite=False)
    assert await usage(disk_store) == [(1, 6, 11)]
    assert [event.type for event in await disk_store.events()] == ["storage.upload"] * 2


async def test_of_many_that_create_one_object_one_does(disk_store: Store, project_id: str) -> None:
    answers = await asyncio.gather(
        *(disk_store.put(project_id, content=b"%d" % n, overwrite=False) for n in range(10)), return_exceptions=True
    )
    (made,) = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert all(isinstance(answer, AlreadyExists) for answer in answers if answer is not made)
    assert len(await disk_store.events()) == 1
    assert (await usage(disk_store))[0][:2] == (1, 1)


async def test_writers_and_deleters_of_one_object_leave_a_whole_one_and_a_true_count(
    disk_store: Store, project_id: str
) -> None:
    async def write(number: int) -> None:
        await disk_store.put(project_id, content=b"x" * (number % 5))

    async def delete() -> None:
        with contextlib.suppress(NotFound):
            await disk_store.storage.delete(project_id, "files", "a.txt")

    await asyncio.gather(*(write(n) if n % 3 else delete() for n in range(60)))
    last = await disk_store.put(project_id, content=b"last")
    assert (await disk_store.storage.get(project_id, "files", "a.txt")).object == last
    assert (await usage(disk_store))[0][:2] == (1, 4)
    loose = await disk_store.rows("SELECT sha256 FROM storage_blobs WHERE loose_since IS NULL")
    assert loose == [(last.checksum,)]
    number = 0
    for event in await disk_store.events():
        number += 1 if event.type == "storage.upload" else -1
    assert number >= 1


async def test_garbage_goes_when_nobody_can_need_it_and_shared_contents_stay(
    disk_store: Store, project_id: str, tmp_path: Path
) -> None:
    for path in ("a", "b"):
        await disk_store.put(project_id, path)
    await disk_store.put(project_id, "c", b"other")
    for path in ("a", "c"):
        await disk_store.storage.delete(project_id, "files", path)
    assert await disk_store.sweeper.sweep() == 0
    assert len(files(tmp_path / "storage")) == 2
    assert await disk_store.sweeper.sweep(older_than_s=0) == 1
    assert files(tmp_path / "storage") == {HELLO}
    assert (await disk_store.storage.get(project_id, "files", "b")).content == b"hello"
    await disk_store.storage.delete(project_id, "files", "b")
    assert await disk_store.sweeper.sweep(older_than_s=0) == 1
    assert [path.name for path in (tmp_path / "storage").iterdir()] == ["unfinished"]
    assert await usage(disk_store) == []
    assert (await disk_store.put(project_id)).checksum == HELLO
    assert (await disk_store.storage.get(project_id, "files", "a.txt")).content == b"hello"


async def test_sweepers_do_not_meet(store: Store, project_id: str) -> None:
    for number in range(30):
        await store.put(project_id, content=b"%d" % number)
    assert sum(await asyncio.gather(*(store.sweeper.sweep(older_than_s=0) for _ in range(4)))) == 29
    assert (await store.storage.get(project_id, "files", "a.txt")).content == b"29"


async def test_quotas(pool: Pool, changes: Changes, tmp_path: Path, project_id: str, monkeypatch: Any) -> None:
    store = make_store(pool, changes, DiskBlobs(tmp_path), quota_mb=1)
    half = b"x" * (512 * 1024)
    await store.put(project_id, "a", half)
    await store.put(project_id, "b", half)  # the same content counts again
    with pytest.raises(ResourceExhausted) as caught:
        await store.put(project_id, "c", b"1")
    assert (caught.value.reason, caught.value.metadata) == ("STORAGE_FULL", {"used": "1048577", "allowed": "1048576"})
    await store.put(project_id, "b", half[1:])
    await store.put(project_id, "c", b"1")
    monkeypatch.setattr(contents, "MAX_OBJECTS", 3)
    await store.put(project_id, "c", b"")
    with pytest.raises(ResourceExhausted, match="4 objects"):
        await store.put(project_id, "d", b"")
    with pytest.raises(NotFound):
        await store.storage.info(project_id, "files", "d")


async def test_nothing_changes_while_its_event_has_no_room(
    disk_store: Store, project_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await disk_store.put(project_id)
    before = files(tmp_path)
    monkeypatch.setattr(outbox, "MAX_WAITING", 1)
    for change in (
        disk_store.put(project_id, "b.txt", b"other"),
        disk_store.put(project_id, content=b"other"),
        disk_store.storage.delete(project_id, "files", "a.txt"),
    ):
        with pytest.raises(Unavailable, match="wait to be published"):
            await change
    assert (await disk_store.storage.get(project_id, "files", "a.txt")).content == b"hello"
    assert await usage(disk_store) == [(1, 5, 5)]
    assert files(tmp_path) == before
    assert len(await disk_store.events()) == 1


async def test_what_was_deleted_counts_until_it_is_swept(
    pool: Pool, changes: Changes, tmp_path: Path, project_id: str
) -> None:
    store = make_store(pool, changes, DiskBlobs(tmp_path), quota_mb=1)
    refused: ResourceExhausted | None = None
    for number in range(20):
        try:
            await store.put(project_id, content=bytes([number]) * 300_000)
        except ResourceExhausted as why:
            refused = why
            break
    assert refused is not None
    assert refused.reason == "STORAGE_GARBAGE_LIMIT"
    assert sum((tmp_path / project_id / name).stat().st_size for name in files(tmp_path)) <= 2 * 1024**2
    await store.sweeper.sweep(older_than_s=0)
    await store.put(project_id, content=b"x" * 300_000)


async def test_lists_are_in_order_and_paged(disk_store: Store, project_id: str) -> None:
    paths = ["a", "a/1", "a/2", "a/é", "b", "z\U0010ffff", "\U0001f600"]
    for path in reversed(paths):
        await disk_store.put(project_id, path)
    assert [one.path for one in (await disk_store.storage.list(project_id, "files")).objects] == paths
    seen: list[str] = []
    token = ""
    while True:
        page = await disk_store.storage.list(project_id, "files", page_size=3, page_token=token)
        seen += [one.path for one in page.objects]
        if not (token := page.next_page_token):
            break
    assert seen == paths
    for prefix, found in {
        "a/": paths[1:4],
        "a": paths[:4],
        "z": ["z\U0010ffff"],
        "z\U0010ffff": ["z\U0010ffff"],
        "c": [],
    }.items():
        assert [
            one.path for one in (await disk_store.storage.list(project_id, "files", prefix=prefix)).objects
        ] == found
    with pytest.raises(NotFound, match="There is no bucket nothing"):
        await disk_store.storage.list(project_id, "nothing")
    first = await disk_store.storage.list(project_id, "files", page_size=1)
    await disk_store.put(project_id, bucket="other")
    for token in ("A", "x" * 50, first.next_page_token):
        with pytest.raises(InvalidArgument, match="page_token"):
            await disk_store.storage.list(project_id, "other", page_token=token)


class TestBuckets:
    async def test_a_bucket_comes_and_goes(self, disk_store: Store, project_id: str) -> None:
        made = await disk_store.buckets.create(project_id, "pictures", public=True)
        assert (made.name, made.public) == ("pictures", True)
        with pytest.raises(AlreadyExists):
            await disk_store.buckets.create(project_id, "pictures", public=False)
        assert not (await disk_store.buckets.update(project_id, "pictures", public=False)).public
        await disk_store.put(project_id, bucket="pictures")
        with pytest.raises(FailedPrecondition, match="has objects"):
            await disk_store.buckets.delete(project_id, "pictures")
        await disk_store.storage.delete(project_id, "pictures", "a.txt")
        await disk_store.buckets.delete(project_id, "pictures")
        assert list(await disk_store.buckets.list(project_id)) == []
        for missing in (disk_store.buckets.get, disk_store.buckets.delete):
            with pytest.raises(NotFound):
                await missing(project_id, "pictures")

    async def test_the_first_object_makes_a_private_one(self, disk_store: Store, project_id: str) -> None:
        await asyncio.gather(*(disk_store.put(project_id, f"{n}") for n in range(8)))
        (bucket,) = await disk_store.buckets.list(project_id)
        assert (bucket.name, bucket.public) == ("files", False)
        with pytest.raises(NotFound, match="public bucket"):
            await disk_store.storage.get(project_id, "files", "1", public_only=True)
        await disk_store.buckets.update(project_id, "files", public=True)
        assert (await disk_store.storage.get(project_id, "files", "1", public_only=True)).content == b"hello"

    async def test_there_are_never_too_many(
        self, disk_store: Store, project_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(buckets, "MAX_BUCKETS", 3)
        answers = await asyncio.gather(
            *(disk_store.put(project_id, bucket=f"b{n}") for n in range(8)), return_exceptions=True
        )
        assert sum(isinstance(answer, ResourceExhausted) for answer in answers) == 5
        assert len(await disk_store.buckets.list(project_id)) == 3


class TestProjects:
    async def test_none_sees_anothers(self, store: Store, pool: Pool, project_id: str) -> None:
        theirs = await add_project(pool)
        await store.put(theirs, content=b"secret")
        await store.buckets.update(theirs, "files", public=True)
        for refused in (
            store.storage.get(project_id, "files", "a.txt"),
            store.storage.get(project_id, "files", "a.txt", public_only=True),
            store.storage.delete(project_id, "files", "a.txt"),
            store.storage.list(project_id, "files"),
            store.buckets.get(project_id, "files"),
            store.buckets.delete(project_id, "files"),
        ):
            with pytest.raises(NotFound):
                await refused
        await store.put(project_id, content=b"secret")
        await store.storage.delete(project_id, "files", "a.txt")
        await store.sweeper.sweep(older_than_s=0)
        assert (await store.storage.get(theirs, "files", "a.txt")).content == b"secret"

    async def test_a_deleted_one_leaves_nothing(self, store: Store, pool: Pool, project_id: str) -> None:
        other = await add_project(pool)
        for number in range(5):
            await store.put(project_id, f"{number}", b"%d" % number)
        await store.put(other)
        async with transaction(pool) as conn:
            await conn.execute("DELETE FROM projects WHERE id = %s", [project_id])
        for _ in range(2):
            await store.sweeper.remove_project(project_id)
        assert await store.rows("SELECT project_id::text FROM storage_objects") == [(other,)]
        assert await store.blobs.read(project_id, hashlib.sha256(b"1").hexdigest(), 1) is None
        assert await store.sweeper.sweep(older_than_s=0) == 5
        assert await store.rows("SELECT project_id::text FROM storage_blobs") == [(other,)]
        assert await store.rows("SELECT project_id::text FROM storage_usage") == [(other,)]
        with pytest.raises(NotFound, match="There is no project"):
            await store.put(project_id)

    @pytest.mark.parametrize("known", [False, True])
    async def test_an_object_that_is_on_its_way_when_the_project_goes_leaves_nothing(
        self, store: Store, pool: Pool, project_id: str, known: bool
    ) -> None:
        if known:  # the content is that of another object already
            await store.put(project_id, "another")
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            reached.set()
            await go_on.wait()

        store.blobs.before_write = hold
        putting = asyncio.create_task(store.put(project_id))
        await reached.wait()
        async with transaction(pool) as conn:
            await conn.execute("DELETE FROM projects WHERE id = %s", [project_id])
        await store.sweeper.remove_project(project_id)
        go_on.set()
        with pytest.raises(NotFound, match="There is no project"):
            await putting
        assert await store.sweeper.sweep(older_than_s=0) == 1
        assert await store.blobs.read(project_id, HELLO, 5) is None
        assert await store.rows("SELECT FROM storage_blobs") == []
        assert await store.rows("SELECT FROM storage_usage") == []


class Slow:
    """A clock on which everything takes a minute."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        self.at_s += 130
        return self.at_s


async def test_a_write_that_took_so_long_that_its_content_may_be_swept_is_refused(
    disk_store: Store, pool: Pool, changes: Changes, project_id: str
) -> None:
    slow = Storage(pool, disk_store.blobs, Outbox(changes), quota_mb=1, clock=Slow())
    with pytest.raises(AtlasError) as caught:
        await slow.put(project_id, "files", "a", b"x")
    assert caught.value.reason == "STORAGE_TOO_SLOW"
    assert await disk_store.events() == []


async def test_a_content_that_is_lost_is_our_fault_and_said_so(disk_store: Store, project_id: str) -> None:
    await disk_store.put(project_id)
    await disk_store.blobs.remove(project_id, [HELLO])
    with pytest.raises(Internal):
        await disk_store.storage.get(project_id, "files", "a.txt")
    await disk_store.put(project_id, "again")
    assert (await disk_store.storage.get(project_id, "files", "a.txt")).content == b"hello"


async def test_an_object_that_is_too_large(disk_store: Store, project_id: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await disk_store.put(project_id, content=b"x" * (MAX_OBJECT_BYTES + 1))
    assert caught.value.reason == "OBJECT_TOO_LARGE"
    await disk_store.put(project_id, content=b"x" * MAX_OBJECT_BYTES)


async def test_metadata_comes_back_as_it_was_written(disk_store: Store, project_id: str) -> None:
    text = '{"z": 12345678901234567890, "a": [1.10, null, "\\u0000\\n😀"], "deep": {"b": true}}'
    await disk_store.put(project_id, metadata=text.encode())
    assert (await disk_store.storage.info(project_id, "files", "a.txt")).metadata.text == text
    (event,) = await disk_store.events()
    assert event.data.text.endswith(f'"metadata":{text}}}')
