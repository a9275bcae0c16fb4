"""What functions and versions there are, read from the control database.

    functions ── active_version ──▶ function_versions ── sha256, map_, script_, source_sha256 ──▶ artifacts

A version is never changed and its number never used again. What changes which of them runs is in
`server.functions.lifecycle`.
"""

from collections.abc import Mapping
from typing import Final

from psycopg.rows import dict_row

from server.errors import Internal, InvalidArgument, NotFound
from server.fields import parse_id
from server.functions.artifacts import Artifacts, Kind, sha256_of
from server.functions.records import (
    FUNCTION,
    HASHES,
    KEPT,
    VERSION,
    WITH_ACTIVE,
    WITH_VERSIONS,
    Active,
    Function,
    Hashes,
    Version,
    active_of,
    function_of,
    hashes_of,
    version_of,
)
from server.log import logger
from server.paging import END, Page, Place, at, request
from server.postgres.control import Connection, Pool, transaction

log = logger("registry")

ROW_BYTES: Final = 1024
"""Of a function or a version as it is listed, its variables apart."""


class Registry:
    def __init__(self, pool: Pool, artifacts: Artifacts) -> None:
        self._pool = pool
        self._artifacts = artifacts

    async def list(
        self, project_id: str, page_size: int = 0, page_token: str = "", *, deleted: bool = False
    ) -> Page[Function]:
        """Newest first: those that are there, or those that were deleted and can be restored."""
        asked = request(f"{'deleted ' if deleted else ''}functions of {project_id}", page_size, page_token)
        state = f"f.deleted_at IS NOT NULL AND {KEPT}" if deleted else "f.deleted_at IS NULL"
        async with transaction(self._pool) as conn:
            cursor = await conn.cursor(row_factory=dict_row).execute(
                f"SELECT {FUNCTION} FROM {WITH_ACTIVE} WHERE f.project_id = %s AND {state}"
                " AND (f.created_at, f.id) < (%s, %s) ORDER BY f.created_at DESC, f.id DESC LIMIT %s",
                [project_id, asked.after.moment, asked.after.id, asked.size + 1],
            )
            functions = [function_of(row) for row in await cursor.fetchall()]
        return asked.page(functions, lambda function: at(function.created_at, function.id), weigh=_bytes_of)

    async def get(self, project_id: str, function_id: str) -> Function:
        """Also one that was deleted and can be restored."""
        async with transaction(self._pool) as conn:
            return await function_with(conn, project_id, parse_id("function_id", function_id), deleted=True)

    async def versions(
        self, project_id: str, function_id: str, page_size: int = 0, page_token: str = ""
    ) -> Page[Version]:
        """Newest first; at most `releases.KEPT_VERSIONS` and the active one."""
        function_id = parse_id("function_id", function_id)
        asked = request(f"versions of {function_id}", page_size, page_token, first=END)
        async with transaction(self._pool) as conn:
            await function_with(conn, project_id, function_id, deleted=True)
            cursor = await conn.cursor(row_factory=dict_row).execute(
                f"SELECT {VERSION} FROM {WITH_VERSIONS}"
                " WHERE v.function_id = %s AND v.version < %s ORDER BY v.version DESC LIMIT %s",
                [function_id, asked.after.order, asked.size + 1],
            )
            versions = [version_of(row) for row in await cursor.fetchall()]
        return asked.page(versions, lambda version: Place(version.version, function_id), weigh=_bytes_of)

    async def version(self, project_id: str, function_id: str, version: int) -> Version:
        found, _ = await self.version_with_hashes(project_id, function_id, version)
        return found

    async def version_with_hashes(self, project_id: str, function_id: str, version: int) -> tuple[Version, Hashes]:
        """A version, and where its bytes are."""
        function_id = parse_id("function_id", function_id)
        parse_version(version)
        async with transaction(self._pool) as conn:
            await function_with(conn, project_id, function_id, deleted=True)
            cursor = await conn.cursor(row_factory=dict_row).execute(
                f"SELECT {VERSION}, {HASHES} FROM {WITH_VERSIONS} WHERE v.function_id = %s AND v.version = %s",
                [function_id, version],
            )
            if (row := await cursor.fetchone()) is None:
                raise no_version(function_id, version)
        hashes = hashes_of(row)
        return version_of(row), hashes

    async def active(self, project_id: str, slug: str) -> Active | None:
        """What runs under that slug."""
        async with transaction(self._pool) as conn:
            cursor = await conn.cursor(row_factory=dict_row).execute(
                f"SELECT {FUNCTION}, {HASHES}, v.secrets FROM {WITH_ACTIVE}"
                " WHERE f.project_id = %s AND f.slug = %s AND f.deleted_at IS NULL",
                [project_id, slug],
            )
            row = await cursor.fetchone()
        return None if row is None else active_of(row)

    async def artifact(self, project_id: str, sha256: str, kind: Kind) -> bytes:
        """From this machine's disk, else from the copy that all nodes share, which is put on the disk.

        Internal when it is nowhere whole.
        """
        if (data := await self._artifacts.read(project_id, sha256, kind)) is not None:
            return data
        data = await self._shared_copy(project_id, sha256)
        if data is None or sha256_of(data) != sha256:
            raise Internal(
                "The code of this function is missing; deploy it again",
                reason="ARTIFACT_MISSING",
                metadata={"sha256": sha256},
            )
        try:
            await self._artifacts.store(project_id, {kind: data})
        except OSError as why:
            log.warning("registry.disk", f"An artifact cannot be kept on disk: {why}", project_id=project_id)
        return data

    async def _shared_copy(self, project_id: str, sha256: str) -> bytes | None:
        async with transaction(self._pool) as conn:
            cursor = await conn.execute(
                "SELECT data FROM artifacts WHERE project_id = %s AND sha256 = %s", [project_id, sha256], binary=True
            )
            row = await cursor.fetchone()
        return None if row is None else bytes(row[0])


async def function_with(conn: Connection, project_id: str, function_id: str, *, deleted: bool = False) -> Function:
    """The project's function of that id, NotFound when there is none; with `deleted`, also one that can be restored."""
    cursor = await conn.cursor(row_factory=dict_row).execute(
        f"SELECT {FUNCTION} FROM {WITH_ACTIVE} WHERE f.project_id = %s AND f.id = %s"
        f" AND {KEPT if deleted else 'f.deleted_at IS NULL'}",
        [project_id, function_id],
    )
    if (row := await cursor.fetchone()) is None:
        raise NotFound(
            f"The project has no function {function_id}",
            reason="FUNCTION_NOT_FOUND",
            metadata={"function_id": function_id, "project_id": project_id},
        )
    return function_of(row)


def parse_version(version: int) -> int:
    if version < 1:
        raise InvalidArgument("version", f"version is {version}; versions count from 1", value=str(version))
    return version


def no_version(function_id: str, version: int) -> NotFound:
    return NotFound(
        f"The function has no version {version}",
        reason="VERSION_NOT_FOUND",
        metadata={"function_id": function_id, "version": str(version)},
    )


def _bytes_of(listed: Function | Version) -> int:
    return ROW_BYTES + _size(listed.env)


def _size(env: Mapping[str, str]) -> int:
    return sum(len(name) + len(value) for name, value in env.items())
