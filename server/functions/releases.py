"""A release becomes a version: the steps of the one transaction, and what it leaves unused.

Writers of one project take turns, so versions have no gaps, the last commit wins the pointer, and nobody deletes bytes
that another is about to use.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from engines.contract import Isolation
from server.errors import AlreadyExists, NotFound, ResourceExhausted
from server.fields import shown
from server.functions.artifacts import sha256_of
from server.postgres.control import Connection

Runtime = Literal["quickjs", "wasm", "node", "deno"]
Language = Literal["javascript", "typescript"]

MAX_FUNCTIONS: Final = 1_000
"""Functions of one project."""

KEPT_VERSIONS: Final = 100
"""Of one function; when there are more, the oldest that is not active goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What a deploy is about to publish: checked, compiled and loaded once."""

    name: str
    slug: str
    runtime: Runtime
    language: Language
    entrypoint: str
    isolation: Isolation
    source: bytes
    code: bytes
    source_map: bytes | None


async def take_turn(conn: Connection, project_id: str) -> None:
    """Be the only writer of the project's functions until the transaction ends."""
    cursor = await conn.execute("SELECT FROM projects WHERE id = %s FOR NO KEY UPDATE", [project_id])
    if cursor.rowcount == 0:
        raise NotFound(
            f"There is no project {project_id}", reason="PROJECT_NOT_FOUND", metadata={"project_id": project_id}
        )


async def next_version(conn: Connection, project_id: str, release: Release, *, new: bool) -> tuple[str, int]:
    """The id of the slug's function, made if need be, and its next version, which the function already points at."""
    cursor = await conn.execute(
        "UPDATE functions SET name = %s, active_version = last_version + 1, last_version = last_version + 1,"
        " updated_at = now() WHERE project_id = %s AND slug = %s RETURNING id, last_version",
        [release.name, project_id, release.slug],
    )
    if (row := await cursor.fetchone()) is not None:
        if new:
            raise AlreadyExists(
                f"The slug {shown(release.slug)} is taken by another function of the project; deploy to it instead",
                reason="SLUG_TAKEN",
                metadata={"slug": release.slug},
                field="slug",
            )
        return row
    cursor = await conn.execute(
        "INSERT INTO functions (project_id, name, slug, active_version, last_version)"
        " SELECT %(project_id)s, %(name)s, %(slug)s, 1, 1"
        " WHERE (SELECT count(*) FROM functions WHERE project_id = %(project_id)s) < %(limit)s"
        " RETURNING id, last_version",
        {"project_id": project_id, "name": release.name, "slug": release.slug, "limit": MAX_FUNCTIONS},
    )
    if (row := await cursor.fetchone()) is None:
        raise ResourceExhausted(
            f"The project has {MAX_FUNCTIONS} functions, which is the most it may have; delete one",
            reason="FUNCTION_LIMIT",
            metadata={"limit": "functions", "used": str(MAX_FUNCTIONS), "allowed": str(MAX_FUNCTIONS)},
        )
    return row


async def insert_version(conn: Connection, project_id: str, function_id: str, version: int, release: Release) -> None:
    """The version with its bytes, for all nodes to fetch."""
    blobs = {sha256_of(data): data for data in (release.code, release.source_map, release.source) if data is not None}
    for sha256, data in blobs.items():
        await conn.execute(
            "INSERT INTO artifacts (project_id, sha256, data) VALUES (%s, %s, %b) ON CONFLICT DO NOTHING",
            [project_id, sha256, data],
        )
    await conn.execute(
        "INSERT INTO function_versions (function_id, project_id, version, runtime, language, entrypoint, isolation,"
        " sha256, map_sha256, source_sha256, source_bytes) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [
            function_id,
            project_id,
            version,
            release.runtime,
            release.language,
            release.entrypoint,
            release.isolation,
            sha256_of(release.code),
            None if release.source_map is None else sha256_of(release.source_map),
            sha256_of(release.source),
            len(release.source),
        ],
    )


async def forget_versions(conn: Connection, project_id: str, function_id: str, *, up_to: int) -> Sequence[str]:
    """Delete versions up to that number; the hashes that nothing uses any more."""
    hashes = await hashes_of(conn, function_id, up_to=up_to)
    await conn.execute("DELETE FROM function_versions WHERE function_id = %s AND version <= %s", [function_id, up_to])
    return await delete_unused(conn, project_id, hashes)


async def hashes_of(conn: Connection, function_id: str, *, up_to: int = 2**31 - 1) -> Collection[str]:
    """The hashes of all that the versions up to that number use."""
    cursor = await conn.execute(
        "SELECT sha256, map_sha256, source_sha256 FROM function_versions WHERE function_id = %s AND version <= %s",
        [function_id, up_to],
    )
    return {sha256 for row in await cursor.fetchall() for sha256 in row if sha256 is not None}


async def delete_unused(conn: Connection, project_id: str, hashes: Collection[str]) -> Sequence[str]:
    """Delete those of the bytes that no version uses any more; their hashes."""
    used = " OR ".join(f"v.{column} = a.sha256" for column in ("sha256", "map_sha256", "source_sha256"))
    cursor = await conn.execute(
        "DELETE FROM artifacts a WHERE project_id = %s AND sha256 = ANY(%s) AND NOT EXISTS"
        f" (SELECT FROM function_versions v WHERE v.project_id = a.project_id AND ({used})) RETURNING sha256",
        [project_id, [*hashes]],
    )
    return [row[0] for row in await cursor.fetchall()]
