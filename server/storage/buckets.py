"""Buckets of a project: made by name, or private by the first object that is put into one."""

from collections.abc import Sequence
from typing import Final

from psycopg.errors import UniqueViolation
from psycopg.rows import class_row

from server.errors import AlreadyExists, FailedPrecondition, NotFound, ResourceExhausted
from server.postgres.control import Connection, Pool, transaction
from server.storage.names import parse_bucket
from server.storage.records import Bucket

MAX_BUCKETS: Final = 100
"""Of a project."""

_COLUMNS: Final = "name, public, created_at, updated_at"
_KEEP: Final = "ON CONFLICT (project_id, name) DO UPDATE SET updated_at = b.updated_at"


class Buckets:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def create(self, project_id: str, name: str, *, public: bool) -> Bucket:
        """AlreadyExists for a name that is taken, ResourceExhausted above MAX_BUCKETS."""
        parsed = parse_bucket("name", name)
        try:
            async with transaction(self._pool) as conn:
                return await _insert(conn, project_id, parsed, public=public)
        except UniqueViolation:
            raise AlreadyExists(
                f"There is a bucket {parsed} already", reason="BUCKET_EXISTS", metadata={"bucket": parsed}
            ) from None

    async def list(self, project_id: str) -> Sequence[Bucket]:
        """All of them, by name."""
        async with transaction(self._pool) as conn:
            cursor = await conn.cursor(row_factory=class_row(Bucket)).execute(
                f"SELECT {_COLUMNS} FROM storage_buckets WHERE project_id = %s ORDER BY name", [project_id]
            )
            return await cursor.fetchall()

    async def get(self, project_id: str, name: str) -> Bucket:
        parsed = parse_bucket("bucket", name)
        async with transaction(self._pool) as conn:
            return await found(conn, project_id, parsed)

    async def update(self, project_id: str, name: str, *, public: bool) -> Bucket:
        """In force when it returns."""
        parsed = parse_bucket("bucket", name)
        async with transaction(self._pool) as conn:
            cursor = await conn.cursor(row_factory=class_row(Bucket)).execute(
                "UPDATE storage_buckets SET public = %s, updated_at = now() WHERE project_id = %s AND name = %s"
                f" RETURNING {_COLUMNS}",
                [public, project_id, parsed],
            )
            return _known(await cursor.fetchone(), parsed)

    async def delete(self, project_id: str, name: str) -> None:
        """FailedPrecondition while there is an object in it."""
        parsed = parse_bucket("bucket", name)
        async with transaction(self._pool) as conn:
            await found(conn, project_id, parsed, lock="FOR UPDATE")
            cursor = await conn.execute(
                "SELECT FROM storage_objects WHERE project_id = %s AND bucket = %s LIMIT 1", [project_id, parsed]
            )
            if cursor.rowcount:
                raise FailedPrecondition(
                    f"The bucket {parsed} has objects; delete them first",
                    reason="BUCKET_NOT_EMPTY",
                    metadata={"bucket": parsed},
                )
            await conn.execute("DELETE FROM storage_buckets WHERE project_id = %s AND name = %s", [project_id, parsed])


async def found(conn: Connection, project_id: str, name: str, lock: str = "") -> Bucket:
    """The bucket, locked in that manner until the transaction ends; or NotFound."""
    cursor = await conn.cursor(row_factory=class_row(Bucket)).execute(
        f"SELECT {_COLUMNS} FROM storage_buckets WHERE project_id = %s AND name = %s {lock}".encode(),
        [project_id, name],
    )
    return _known(await cursor.fetchone(), name)


async def ensure(conn: Connection, project_id: str, name: str) -> None:
    """The bucket is there, and neither it nor its project goes before the transaction ends."""
    cursor = await conn.execute(
        "SELECT FROM storage_buckets WHERE project_id = %s AND name = %s FOR KEY SHARE", [project_id, name]
    )
    if not cursor.rowcount:
        await _insert(conn, project_id, name, public=False, again=_KEEP)


async def _insert(conn: Connection, project_id: str, name: str, *, public: bool, again: str = "") -> Bucket:
    """The project's row is locked, so that the count holds and the project stays."""
    cursor = await conn.execute("SELECT FROM projects WHERE id = %s FOR NO KEY UPDATE", [project_id])
    if not cursor.rowcount:
        raise NotFound(
            f"There is no project {project_id}", reason="PROJECT_NOT_FOUND", metadata={"project_id": project_id}
        )
    cursor = await conn.execute("SELECT count(*) FROM storage_buckets WHERE project_id = %s", [project_id])
    ((count,),) = await cursor.fetchall()
    if count >= MAX_BUCKETS:
        raise ResourceExhausted(
            f"The project has {count} buckets; at most {MAX_BUCKETS} are allowed",
            reason="TOO_MANY_BUCKETS",
            metadata={"used": str(count), "allowed": str(MAX_BUCKETS)},
        )
    inserting = await conn.cursor(row_factory=class_row(Bucket)).execute(
        f"INSERT INTO storage_buckets AS b (project_id, name, public) VALUES (%s, %s, %s) {again}"
        f" RETURNING {_COLUMNS}".encode(),
        [project_id, name, public],
    )
    return _known(await inserting.fetchone(), name)


def _known(bucket: Bucket | None, name: str) -> Bucket:
    if bucket is None:
        raise NotFound(f"There is no bucket {name}", reason="BUCKET_NOT_FOUND", metadata={"bucket": name})
    return bucket
