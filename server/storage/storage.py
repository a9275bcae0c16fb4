"""Objects of projects: put, get, list, delete. The row is the truth; its content is in the store before the row is.

put      content noted │ content written │ row, usage and event in one transaction
                     each │ may be the place of a crash: what was noted and has no object is swept
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

import orjson

from server.clock import Clock, SystemClock
from server.errors import AlreadyExists, Internal, InvalidArgument, NotFound, Unavailable
from server.events.envelope import MAX_TEXT_CHARS, Cause, Event
from server.events.json_text import Json
from server.events.outbox import Outbox
from server.log import logger
from server.postgres.control import Connection, Pool, transaction
from server.storage import buckets, contents, objects, tokens
from server.storage.blobs import Blobs, BlobsUnavailable
from server.storage.names import parse_bucket, parse_content_type, parse_metadata, parse_path, parse_prefix
from server.storage.records import ObjectPage, Slice, StoredObject

log = logger("storage")

MAX_OBJECT_BYTES: Final = 6 * 1024 * 1024
"""What Envoy lets through."""

ATTEMPTS: Final = 5
"""At a row that comes and goes under the hands of others."""

RETRY_AFTER_MS: Final = 1_000
SOURCE: Final = "storage"


Part = Callable[[StoredObject], Slice | None]
"""Chooses what to read of an object; None is all."""


@dataclass(frozen=True, slots=True)
class Found:
    object: StoredObject
    part: Slice | None  # which bytes `content` is, if it is not all
    content: bytes


class Storage:
    """`cause` of a change is the run that makes it: its event tells of it."""

    def __init__(self, pool: Pool, blobs: Blobs, outbox: Outbox, *, quota_mb: int, clock: Clock | None = None) -> None:
        """`quota_mb`: MiB of each project."""
        self._pool = pool
        self._blobs = blobs
        self._outbox = outbox
        self._quota_bytes = quota_mb * 1024**2
        self._clock = clock or SystemClock()

    async def put(
        self,
        project_id: str,
        bucket: str,
        path: str,
        content: bytes,
        *,
        content_type: str = "",
        metadata: bytes = b"",
        overwrite: bool = True,
        cause: Cause | None = None,
    ) -> StoredObject:
        """Store it, in a private bucket made for it if there is none of that name.

        AlreadyExists unless `overwrite`, ResourceExhausted above a quota, Unavailable when a store is away or too many
        events wait: then nothing is changed. When it returns, the object and its event are as durable as the database.
        """
        if len(content) > MAX_OBJECT_BYTES:
            raise InvalidArgument(
                "body",
                f"The object has {len(content)} bytes; at most {MAX_OBJECT_BYTES} are allowed",
                reason="OBJECT_TOO_LARGE",
                used=str(len(content)),
                allowed=str(MAX_OBJECT_BYTES),
            )
        now = self._clock.now().astimezone(UTC)
        new = StoredObject(
            bucket=parse_bucket("bucket", bucket),
            path=parse_path("path", path),
            size_bytes=len(content),
            content_type=parse_content_type("content_type", content_type),
            checksum=await asyncio.to_thread(_sha256, content),
            metadata=parse_metadata("metadata", metadata),
            created_at=now,
            updated_at=now,
        )
        deadline_s = self._clock.monotonic_s() + contents.WRITE_S
        async with transaction(self._pool) as conn:
            if not overwrite and await objects.get(conn, project_id, new.bucket, new.path):
                raise _exists(new)
            await self._outbox.require_room(conn, project_id)
            await contents.note(conn, project_id, new.checksum, new.size_bytes, quota_bytes=self._quota_bytes)
        try:
            await self._blobs.write(project_id, new.checksum, content)
        except BlobsUnavailable as why:
            raise _away(why) from why
        async with transaction(self._pool) as conn:
            stored = await self._write(conn, project_id, new, overwrite=overwrite, deadline_s=deadline_s)
            await self._outbox.add(conn, [_event("storage.upload", project_id, stored, stored.updated_at, cause)])
        return stored

    async def get(
        self, project_id: str, bucket: str, path: str, part: Part | None = None, *, public_only: bool = False
    ) -> Found:
        """The object with its content, or the part of it that `part` chooses once it is known; what that raises, too.

        NotFound, also of `public_only` when the bucket is private.
        """
        for _ in range(2):
            stored = await self.info(project_id, bucket, path, public_only=public_only)
            chosen = part(stored) if part else None
            try:
                content = await self._blobs.read(project_id, stored.checksum, stored.size_bytes, chosen)
            except BlobsUnavailable as why:
                raise _away(why) from why
            if content is not None:
                return Found(stored, chosen, content)
        # The second time, too: it was not replaced between the two looks.
        log.error("storage.lost", "A content is not in the store", project_id=project_id, sha256=stored.checksum)
        raise Internal("The object's content cannot be read", reason="CONTENT_LOST", metadata={"path": stored.path})

    async def info(self, project_id: str, bucket: str, path: str, *, public_only: bool = False) -> StoredObject:
        """The object without its content. NotFound as `get`."""
        wanted = parse_bucket("bucket", bucket), parse_path("path", path)
        async with transaction(self._pool) as conn:
            stored = await objects.get(conn, project_id, *wanted, public_only=public_only)
        if stored is None:
            raise _unknown(*wanted, public_only=public_only)
        return stored

    async def list(
        self, project_id: str, bucket: str, *, prefix: str = "", page_size: int = 0, page_token: str = ""
    ) -> ObjectPage:
        """Objects whose path begins with `prefix`, by the bytes of their paths. NotFound for an unknown bucket."""
        name, beginning = parse_bucket("bucket", bucket), parse_prefix("prefix", prefix)
        asked = tokens.request(f"{project_id} {name}", page_size, page_token)
        async with transaction(self._pool) as conn:
            await buckets.found(conn, project_id, name)
            listed = await objects.listed(conn, project_id, name, beginning, asked.after, asked.size + 1)
        return asked.page(listed)

    async def delete(self, project_id: str, bucket: str, path: str, *, cause: Cause | None = None) -> None:
        """NotFound when there is none, Unavailable when too many events wait: then nothing is changed."""
        wanted = parse_bucket("bucket", bucket), parse_path("path", path)
        now = self._clock.now().astimezone(UTC)
        async with transaction(self._pool) as conn:
            stored = await objects.lock(conn, project_id, *wanted)
            if stored is None:
                raise _unknown(*wanted)
            await contents.lock(conn, project_id, [stored.checksum])
            await objects.delete(conn, project_id, *wanted)
            await contents.settle(conn, project_id, [stored.checksum])
            await contents.count(
                conn, project_id, objects=-1, size_bytes=-stored.size_bytes, quota_bytes=self._quota_bytes
            )
            await self._outbox.add(conn, [_event("storage.delete", project_id, stored, now, cause)])

    async def _write(
        self, conn: Connection, project_id: str, new: StoredObject, *, overwrite: bool, deadline_s: float
    ) -> StoredObject:
        await buckets.ensure(conn, project_id, new.bucket)
        old, stored = await _upsert(conn, project_id, new, overwrite=overwrite)
        hashes = {stored.checksum} if old is None else {stored.checksum, old.checksum}
        known = await contents.lock(conn, project_id, hashes)
        if not known or self._clock.monotonic_s() > deadline_s:
            raise _slow()
        await contents.settle(conn, project_id, hashes)
        await contents.count(
            conn,
            project_id,
            objects=1 if old is None else 0,
            size_bytes=new.size_bytes - (old.size_bytes if old else 0),
            quota_bytes=self._quota_bytes,
        )
        return stored


async def _upsert(
    conn: Connection, project_id: str, new: StoredObject, *, overwrite: bool
) -> tuple[StoredObject | None, StoredObject]:
    """What was there, and what is now."""
    for _ in range(ATTEMPTS):
        old = await objects.lock(conn, project_id, new.bucket, new.path)
        if old is not None and not overwrite:
            raise _exists(new)
        stored = await (objects.insert if old is None else objects.replace)(conn, project_id, new)
        if stored is not None:
            return old, stored
    raise Unavailable(
        "Others write and delete the object all the time; try again",
        reason="OBJECT_BUSY",
        retry_after_ms=RETRY_AFTER_MS,
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _event(event_type: str, project_id: str, stored: StoredObject, at: datetime, cause: Cause | None) -> Event:
    told = {
        "bucket": stored.bucket,
        "path": stored.path,
        "size": stored.size_bytes,
        "content_type": stored.content_type,
        "checksum": stored.checksum,
        "metadata": orjson.Fragment(stored.metadata.text),
    }
    subject = f"{stored.bucket}/{stored.path}"
    return Event(
        id=str(uuid4()),
        type=event_type,
        project_id=project_id,
        time=at,
        source=SOURCE,
        data=Json(orjson.dumps(told).decode(), None),
        subject=subject if len(subject) <= MAX_TEXT_CHARS else None,
        cause=cause,
    )


def _unknown(bucket: str, path: str, *, public_only: bool = False) -> NotFound:
    """The same whether it is not there or not for this key, so that nobody learns which."""
    where = f"the public bucket {bucket}" if public_only else f"the bucket {bucket}"
    return NotFound(
        f"There is no object {path} in {where}", reason="OBJECT_NOT_FOUND", metadata={"bucket": bucket, "path": path}
    )


def _exists(new: StoredObject) -> AlreadyExists:
    return AlreadyExists(
        f"There is an object {new.path} in the bucket {new.bucket} already; replace it with PUT or x-upsert: true",
        reason="OBJECT_EXISTS",
        metadata={"bucket": new.bucket, "path": new.path},
    )


def _slow() -> Unavailable:
    return Unavailable(
        f"Storing the content took longer than {contents.WRITE_S:g} s; try again",
        reason="STORAGE_TOO_SLOW",
        retry_after_ms=RETRY_AFTER_MS,
    )


def _away(why: BlobsUnavailable) -> Unavailable:
    log.warning("storage.away", f"Contents cannot be stored or read: {why}")
    return Unavailable(
        "The store of contents cannot be used now; try again",
        reason="STORAGE_UNAVAILABLE",
        retry_after_ms=RETRY_AFTER_MS,
    )
