"""Rows of contents and of usage; every function works inside the caller's transaction.

    noted ──▶ written ──▶ of an object ──▶ let go ──GRACE_S──▶ swept
      └────────── the writer died ────────────────────────────▶ swept

A content is noted before it is written, so that nothing is in the store of which there is no row. It is loose while no
object has it, and swept when it has been so for GRACE_S; whoever writes an object has noted its content less than
WRITE_S ago, so that the two never meet. Locks are taken in the order bucket, object, contents by hash, usage.
"""

from collections.abc import Collection, Mapping
from typing import Final

from server.errors import ResourceExhausted
from server.postgres.control import Connection

GRACE_S: Final = 600.0
"""How long a content that no object has is kept: whoever has begun to read or write it needs it for that long."""

WRITE_S: Final = 120.0
"""How long writing a content may take."""

MAX_OBJECTS: Final = 1_000_000
"""Of a project."""

GARBAGE_RATIO: Final = 2
"""What is in the store for a project, garbage included, may be so many times its quota."""


async def note(conn: Connection, project_id: str, sha256: str, size_bytes: int, *, quota_bytes: int) -> None:
    """The content is about to be written. ResourceExhausted when the project has too much garbage."""
    cursor = await conn.execute(
        "INSERT INTO storage_blobs AS b (project_id, sha256, bytes, loose_since) VALUES (%s, %s, %s, clock_timestamp())"
        " ON CONFLICT (project_id, sha256) DO UPDATE SET"
        " loose_since = CASE WHEN b.loose_since IS NOT NULL THEN clock_timestamp() END RETURNING xmax = 0",
        [project_id, sha256, size_bytes],
    )
    ((fresh,),) = await cursor.fetchall()
    if not fresh:
        return
    cursor = await conn.execute(
        "INSERT INTO storage_usage (project_id, blob_bytes) VALUES (%s, %s) ON CONFLICT (project_id) DO UPDATE"
        " SET blob_bytes = storage_usage.blob_bytes + excluded.blob_bytes RETURNING blob_bytes",
        [project_id, size_bytes],
    )
    ((stored_bytes,),) = await cursor.fetchall()
    if stored_bytes > (allowed := GARBAGE_RATIO * quota_bytes):
        raise ResourceExhausted(
            f"{stored_bytes} bytes would be stored of the project, with what was deleted in the last"
            f" {GRACE_S / 60:g} minutes; at most {allowed} are allowed: try again later",
            reason="STORAGE_GARBAGE_LIMIT",
            metadata={"used": str(stored_bytes), "allowed": str(allowed)},
            retry_after_ms=int(GRACE_S * 1000),
        )


async def lock(conn: Connection, project_id: str, sha256s: Collection[str]) -> bool:
    """Nobody else begins or ends to use these contents until the transaction ends; whether all are known."""
    cursor = await conn.execute(
        "SELECT sha256 FROM storage_blobs WHERE project_id = %s AND sha256 = ANY(%s) ORDER BY sha256 FOR UPDATE",
        [project_id, list(sha256s)],
    )
    return len(await cursor.fetchall()) == len(set(sha256s))


async def settle(conn: Connection, project_id: str, sha256s: Collection[str]) -> None:
    """After objects have got or let go of contents that are locked: loose is what none has."""
    await conn.execute(
        "UPDATE storage_blobs b SET loose_since = CASE WHEN NOT EXISTS (SELECT FROM storage_objects o"
        " WHERE o.project_id = b.project_id AND o.sha256 = b.sha256) THEN clock_timestamp() END"
        " WHERE project_id = %s AND sha256 = ANY(%s)",
        [project_id, list(sha256s)],
    )


async def count(conn: Connection, project_id: str, *, objects: int, size_bytes: int, quota_bytes: int) -> None:
    """The project's objects have become so many and so many bytes more. ResourceExhausted when that is too much."""
    cursor = await conn.execute(
        "INSERT INTO storage_usage (project_id, objects, object_bytes) VALUES (%s, %s, %s)"
        " ON CONFLICT (project_id) DO UPDATE SET objects = storage_usage.objects + excluded.objects,"
        " object_bytes = storage_usage.object_bytes + excluded.object_bytes RETURNING objects, object_bytes",
        [project_id, objects, size_bytes],
    )
    ((number, total_bytes),) = await cursor.fetchall()
    if objects > 0 and number > MAX_OBJECTS:
        raise _full(f"{number} objects would be stored of the project", number, MAX_OBJECTS)
    if size_bytes > 0 and total_bytes > quota_bytes:
        raise _full(f"{total_bytes} bytes would be stored of the project", total_bytes, quota_bytes)


async def claim_loose(conn: Connection, *, most: int, older_than_s: float) -> Mapping[str, Collection[str]]:
    """At most so many contents that no object has had for that long, by project; nobody writes them until the
    transaction ends."""
    cursor = await conn.execute(
        "SELECT project_id, sha256 FROM storage_blobs WHERE loose_since < clock_timestamp() - make_interval(secs => %s)"
        " ORDER BY loose_since LIMIT %s FOR UPDATE SKIP LOCKED",
        [older_than_s, most],
    )
    found: dict[str, list[str]] = {}
    for owner, sha256 in await cursor.fetchall():
        found.setdefault(str(owner), []).append(sha256)
    return dict(sorted(found.items()))


async def forget(conn: Connection, project_id: str, sha256s: Collection[str]) -> None:
    """They are in the store no more."""
    cursor = await conn.execute(
        "DELETE FROM storage_blobs WHERE project_id = %s AND sha256 = ANY(%s) RETURNING bytes",
        [project_id, list(sha256s)],
    )
    freed = sum(row[0] for row in await cursor.fetchall())
    await conn.execute(
        "UPDATE storage_usage SET blob_bytes = blob_bytes - %s WHERE project_id = %s", [freed, project_id]
    )
    await conn.execute(
        "DELETE FROM storage_usage WHERE project_id = %s AND objects = 0 AND blob_bytes = 0", [project_id]
    )


def _full(what: str, used: int, allowed: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"{what}; at most {allowed} are allowed: delete some",
        reason="STORAGE_FULL",
        metadata={"used": str(used), "allowed": str(allowed)},
    )
