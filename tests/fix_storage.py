"""Stored objects on a real Postgres, over each kind of store."""

import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nats.js.errors import NotFoundError

from server.events.bus import EventBus
from server.events.envelope import Event, decode
from server.events.outbox import Outbox
from server.postgres.changes import Changes
from server.postgres.control import Pool, transaction
from server.storage import jetstream
from server.storage.blobs import Blobs
from server.storage.buckets import Buckets
from server.storage.disk import DiskBlobs
from server.storage.jetstream import StreamBlobs
from server.storage.records import Slice
from server.storage.storage import Storage
from server.storage.sweeper import Sweeper


class Watched:
    """A store with a door: `before_write` runs before each write, and may fail or wait."""

    def __init__(self, inner: Blobs) -> None:
        self.inner = inner
        self.before_write: Callable[[], Any] = lambda: None

    async def start(self) -> None:
        await self.inner.start()

    async def write(self, project_id: str, sha256: str, data: bytes) -> None:
        waiting = self.before_write()
        if waiting is not None:
            await waiting
        await self.inner.write(project_id, sha256, data)

    async def read(self, project_id: str, sha256: str, size_bytes: int, part: Slice | None = None) -> bytes | None:
        return await self.inner.read(project_id, sha256, size_bytes, part)

    async def remove(self, project_id: str, sha256s: Collection[str]) -> None:
        await self.inner.remove(project_id, sha256s)


@dataclass(kw_only=True)
class Store:
    """All that stores objects, in one process."""

    pool: Pool
    blobs: Watched
    storage: Storage
    buckets: Buckets
    sweeper: Sweeper

    async def put(self, project_id: str, path: str = "a.txt", content: bytes = b"hello", **more: Any) -> Any:
        return await self.storage.put(project_id, more.pop("bucket", "files"), path, content, **more)

    async def rows(self, query: str) -> list[Any]:
        async with transaction(self.pool) as conn:
            return list(await (await conn.execute(query.encode())).fetchall())

    async def events(self) -> list[Event]:
        """Those that wait to be published, in their order."""
        return [decode(bytes(row[0])) for row in await self.rows("SELECT envelope FROM event_outbox ORDER BY id")]


def make_store(pool: Pool, changes: Changes, blobs: Blobs, *, quota_mb: int = 16) -> Store:
    watched = Watched(blobs)
    return Store(
        pool=pool,
        blobs=watched,
        storage=Storage(pool, watched, Outbox(changes), quota_mb=quota_mb),
        buckets=Buckets(pool),
        sweeper=Sweeper(pool, watched),
    )


@pytest.fixture(params=["disk", "jetstream"])
async def blobs(request: pytest.FixtureRequest, tmp_path: Path, nats_url: str) -> AsyncIterator[Blobs]:
    """Each kind of store in turn, empty."""
    if request.param == "disk":
        yield DiskBlobs(tmp_path / "storage")
        return
    bus = EventBus(nats_url)
    await bus.start()
    with contextlib.suppress(NotFoundError):
        await bus.jetstream.delete_stream(jetstream.NAME)
    made = StreamBlobs(bus)
    await made.start()
    yield made
    await bus.close()


@pytest.fixture
def store(pool: Pool, changes: Changes, blobs: Blobs) -> Store:
    return make_store(pool, changes, blobs)


@pytest.fixture
def disk_store(pool: Pool, changes: Changes, tmp_path: Path) -> Store:
    return make_store(pool, changes, DiskBlobs(tmp_path / "storage"))
