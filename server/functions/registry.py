"""Functions and their versions in the control database.

    functions ── active_version ──▶ function_versions ── sha256, map_sha256, source_sha256 ──▶ artifacts

A version is never changed and its number never used again.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from psycopg.rows import class_row, dict_row

from engines.contract import Isolation
from server.errors import InvalidArgument, NotFound
from server.fields import parse_id
from server.functions.artifacts import Artifacts
from server.functions.releases import (
    KEPT_VERSIONS,
    Language,
    Release,
    Runtime,
    delete_unused,
    forget_versions,
    hashes_of,
    insert_version,
    next_version,
    take_turn,
)
from server.paging import END, Page, Place, at, request
from server.postgres.changes import Changes
from server.postgres.control import Connection, Pool, transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A slug of a project and its active version."""

    id: str
    project_id: str
    name: str
    slug: str
    runtime: Runtime
    entrypoint: str
    language: Language
    version: int
    isolation: Isolation
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    function_id: str
    version: int
    runtime: Runtime
    language: Language
    entrypoint: str
    isolation: Isolation
    sha256: str  # of the code
    source_bytes: int
    active: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Active:
    """A function with the hashes of what it runs."""

    function: Function
    sha256: str
    map_sha256: str | None


_FUNCTION: Final = (
    "f.id, f.project_id, f.name, f.slug, v.runtime, v.entrypoint, v.language, v.version, v.isolation,"
    " f.created_at, f.updated_at"
)
_JOINED: Final = "functions f JOIN function_versions v ON v.function_id = f.id AND v.version = f.active_version"


class Registry:
    def __init__(self, pool: Pool, changes: Changes, artifacts: Artifacts) -> None:
        self._pool = pool
        self._changes = changes
        self._artifacts = artifacts

    async def list(self, project_id: str, page_size: int = 0, page_token: str = "") -> Page[Function]:
        """Newest first."""
        asked = request(f"functions of {project_id}", page_size, page_token)
        async with transaction(self._pool) as conn:
            cursor = await conn.cursor(row_factory=class_row(Function)).execute(
                f"SELECT {_FUNCTION} FROM {_JOINED} WHERE f.project_id = %s AND (f.created_at, f.id) < (%s, %s)"
                " ORDER BY f.created_at DESC, f.id DESC LIMIT %s",
                [project_id, asked.after.moment, asked.after.id, asked.size + 1],
            )
            functions = await cursor.fetchall()
        return asked.page(functions, lambda function: at(function.created_at, function.id))

    async def get(self, project_id: str, function_id: str) -> Function:
        async with transaction(self._pool) as conn:
            return await _function(conn, project_id, parse_id("function_id", function_id))

    async def versions(
        self, project_id: str, function_id: str, page_size: int = 0, page_token: str = ""
    ) -> Page[Version]:
        """Newest first; at most KEPT_VERSIONS."""
        function_id = parse_id("function_id", function_id)
        asked = request(f"versions of {function_id}", page_size, page_token, first=END)
        async with transaction(self._pool) as conn:
            function = await _function(conn, project_id, function_id)
            cursor = await conn.cursor(row_factory=class_row(Version)).execute(
                "SELECT function_id, version, runtime, language, entrypoint, isolation, sha256, source_bytes,"
                " version = %s AS active, created_at FROM function_versions"
                " WHERE function_id = %s AND version < %s ORDER BY version DESC LIMIT %s",
                [function.version, function_id, asked.after.order, asked.size + 1],
            )
            versions = await cursor.fetchall()
        return asked.page(versions, lambda version: Place(version.version, function_id))

    async def publish(self, project_id: str, release: Release, *, new: bool = False) -> Function:
        """Store the release as the next version of its slug and activate it; the files are on the disk already.

        AlreadyExists when `new` and the slug is taken; ResourceExhausted above MAX_FUNCTIONS. When it returns, every
        process runs the new version.
        """
        async with transaction(self._pool) as conn:
            await take_turn(conn, project_id)
            function_id, version = await next_version(conn, project_id, release, new=new)
            await insert_version(conn, project_id, function_id, version, release)
            unused = await forget_versions(conn, project_id, function_id, up_to=version - KEPT_VERSIONS)
            function = await _function(conn, project_id, function_id)
            await self._announce(conn, function)
        await self._changes.fence()
        await self._artifacts.remove(project_id, unused)
        return function

    async def activate(self, project_id: str, function_id: str, version: int) -> Function:
        """Let new invocations run that version. Idempotent. When it returns, every process does."""
        function_id = parse_id("function_id", function_id)
        if version < 1:
            raise InvalidArgument("version", f"version is {version}; versions count from 1", value=str(version))
        async with transaction(self._pool) as conn:
            await take_turn(conn, project_id)
            await _function(conn, project_id, function_id)
            cursor = await conn.execute(
                "UPDATE functions f SET active_version = v.version,"
                " updated_at = CASE WHEN f.active_version = v.version THEN f.updated_at ELSE now() END"
                " FROM function_versions v WHERE f.id = %s AND v.function_id = f.id AND v.version = %s",
                [function_id, version],
            )
            if cursor.rowcount == 0:
                raise NotFound(
                    f"The function has no version {version}",
                    reason="VERSION_NOT_FOUND",
                    metadata={"function_id": function_id, "version": str(version)},
                )
            function = await _function(conn, project_id, function_id)
            await self._announce(conn, function)
        await self._changes.fence()
        return function

    async def delete(self, project_id: str, function_id: str) -> None:
        """Delete the function, its versions, and their bytes unless another function has the same."""
        function_id = parse_id("function_id", function_id)
        async with transaction(self._pool) as conn:
            await take_turn(conn, project_id)
            function = await _function(conn, project_id, function_id)
            hashes = await hashes_of(conn, function_id)
            await conn.execute("DELETE FROM functions WHERE id = %s", [function_id])
            unused = await delete_unused(conn, project_id, hashes)
            await self._announce(conn, function)
        await self._changes.fence()
        await self._artifacts.remove(project_id, unused)

    async def active(self, project_id: str, slug: str) -> Active | None:
        """What runs under that slug."""
        async with transaction(self._pool) as conn:
            cursor = await conn.cursor(row_factory=dict_row).execute(
                f"SELECT {_FUNCTION}, v.sha256, v.map_sha256 FROM {_JOINED} WHERE f.project_id = %s AND f.slug = %s",
                [project_id, slug],
            )
            row = await cursor.fetchone()
        if row is None:
            return None
        sha256, map_sha256 = row.pop("sha256"), row.pop("map_sha256")
        return Active(Function(**row), sha256, map_sha256)

    async def shared_copy(self, project_id: str, sha256: str) -> bytes | None:
        """The bytes with that hash, as the deploying node stored them for all."""
        async with transaction(self._pool) as conn:
            cursor = await conn.execute(
                "SELECT data FROM artifacts WHERE project_id = %s AND sha256 = %s", [project_id, sha256], binary=True
            )
            row = await cursor.fetchone()
        return None if row is None else bytes(row[0])

    async def sweep(self) -> None:
        """Remove from this machine's disk what belongs to no version any more: deployed half, or deleted elsewhere."""
        for project_id, hashes in (await self._artifacts.unattended()).items():
            async with transaction(self._pool) as conn:
                cursor = await conn.execute(
                    "SELECT sha256 FROM artifacts WHERE project_id = %s AND sha256 = ANY(%s)",
                    [project_id, [*hashes]],
                )
                known = {row[0] for row in await cursor.fetchall()}
            await self._artifacts.remove(project_id, set(hashes) - known)

    async def _announce(self, conn: Connection, function: Function) -> None:
        await self._changes.announce(conn, "function", f"{function.project_id}/{function.slug}")


async def _function(conn: Connection, project_id: str, function_id: str) -> Function:
    cursor = await conn.cursor(row_factory=class_row(Function)).execute(
        f"SELECT {_FUNCTION} FROM {_JOINED} WHERE f.project_id = %s AND f.id = %s", [project_id, function_id]
    )
    if (function := await cursor.fetchone()) is None:
        raise NotFound(
            f"The project has no function {function_id}",
            reason="FUNCTION_NOT_FOUND",
            metadata={"function_id": function_id, "project_id": project_id},
        )
    return function
