"""Rows of objects; every function works inside the caller's transaction."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
from psycopg.rows import dict_row

from server.events.json_text import Json
from server.postgres.control import Connection
from server.storage.names import after_prefix
from server.storage.records import StoredObject

_COLUMNS: Final = "bucket, path, bytes, content_type, sha256, metadata::text AS metadata, created_at, updated_at"
_KEY: Final = "project_id = %(project_id)s AND bucket = %(bucket)s AND path = %(path)s"


async def get(
    conn: Connection, project_id: str, bucket: str, path: str, *, public_only: bool = False
) -> StoredObject | None:
    """The object; None when there is none, or, of `public_only`, none in a public bucket."""
    public = (
        " AND EXISTS (SELECT FROM storage_buckets b WHERE b.project_id = %(project_id)s AND name = bucket AND public)"
    )
    return await _one(
        conn,
        f"SELECT {_COLUMNS} FROM storage_objects WHERE {_KEY}{public if public_only else ''}",
        {"project_id": project_id, "bucket": bucket, "path": path},
    )


async def lock(conn: Connection, project_id: str, bucket: str, path: str) -> StoredObject | None:
    """The object, which nobody else changes until the transaction ends."""
    return await _one(
        conn,
        f"SELECT {_COLUMNS} FROM storage_objects WHERE {_KEY} FOR UPDATE",
        {"project_id": project_id, "bucket": bucket, "path": path},
    )


async def insert(conn: Connection, project_id: str, new: StoredObject) -> StoredObject | None:
    """The object as it is stored; None when there is one of that name."""
    return await _one(
        conn,
        "INSERT INTO storage_objects (project_id, bucket, path, bytes, content_type, sha256, metadata, created_at,"
        " updated_at) VALUES (%(project_id)s, %(bucket)s, %(path)s, %(bytes)s, %(content_type)s, %(sha256)s,"
        f" %(metadata)s, %(now)s, %(now)s) ON CONFLICT DO NOTHING RETURNING {_COLUMNS}",
        _values(project_id, new),
    )


async def replace(conn: Connection, project_id: str, new: StoredObject) -> StoredObject | None:
    """The locked object with all but `created_at` of `new`."""
    return await _one(
        conn,
        "UPDATE storage_objects SET bytes = %(bytes)s, content_type = %(content_type)s, sha256 = %(sha256)s,"
        f" metadata = %(metadata)s, updated_at = greatest(%(now)s, updated_at) WHERE {_KEY} RETURNING {_COLUMNS}",
        _values(project_id, new),
    )


async def delete(conn: Connection, project_id: str, bucket: str, path: str) -> None:
    await conn.execute(
        f"DELETE FROM storage_objects WHERE {_KEY}".encode(),
        {"project_id": project_id, "bucket": bucket, "path": path},
    )


async def listed(
    conn: Connection, project_id: str, bucket: str, prefix: str, after: str, most: int
) -> Sequence[StoredObject]:
    """In the order of their paths' bytes, those behind `after` that begin with `prefix`."""
    cursor = await conn.cursor(row_factory=dict_row).execute(
        f"SELECT {_COLUMNS} FROM storage_objects WHERE project_id = %(project_id)s AND bucket = %(bucket)s"
        " AND path > %(after)s AND path >= %(prefix)s AND (%(end)s::text IS NULL OR path < %(end)s)"
        " ORDER BY path LIMIT %(most)s",
        {
            "project_id": project_id,
            "bucket": bucket,
            "prefix": prefix,
            "after": after,
            "end": after_prefix(prefix),
            "most": most,
        },
    )
    return [_object(row) for row in await cursor.fetchall()]


async def _one(conn: Connection, query: str, params: Mapping[str, object]) -> StoredObject | None:
    cursor = await conn.cursor(row_factory=dict_row).execute(query.encode(), params)
    row = await cursor.fetchone()
    return None if row is None else _object(row)


def _values(project_id: str, new: StoredObject) -> dict[str, object]:
    return {
        "project_id": project_id,
        "bucket": new.bucket,
        "path": new.path,
        "bytes": new.size_bytes,
        "content_type": new.content_type,
        "sha256": new.checksum,
        "metadata": new.metadata.text,
        "now": new.updated_at,
    }


def _object(row: Mapping[str, Any]) -> StoredObject:
    text = row["metadata"]
    return StoredObject(
        bucket=row["bucket"],
        path=row["path"],
        size_bytes=row["bytes"],
        content_type=row["content_type"],
        checksum=row["sha256"],
        metadata=Json(text, orjson.loads(text)),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
