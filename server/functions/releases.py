"""A release becomes a version: the steps of the one transaction, and what it leaves unused.

Writers of one project take turns, so versions have no gaps, the last commit wins the pointer, and nobody deletes bytes
that another is about to use.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from engines.contract import Isolation
from server.errors import NotFound, ResourceExhausted
from server.functions.artifacts import sha256_of
from server.functions.configuration import Configuration
from server.functions.records import Language, RuntimeName, sealed_column, sealed_of, settings_of
from server.postgres.control import Connection

MAX_FUNCTIONS: Final = 1_000
"""Functions of one project."""

KEPT_VERSIONS: Final = 100
"""Of one function; when there are more, the oldest that is not active goes."""

_HASHES: Final = ("sha256", "map_sha256", "script_sha256", "source_sha256")


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What a deploy is about to publish: checked, then compiled and loaded once."""

    name: str
    slug: str
    runtime: RuntimeName
    language: Language
    entrypoint: str
    isolation: Isolation
    note: str
    source: bytes
    code: bytes = b""  # empty until it is compiled
    source_map: bytes | None = None
    script: bytes | None = None  # of Wasm: the text the module was made of


async def take_turn(conn: Connection, project_id: str) -> None:
    """Be the only writer of the project's functions until the transaction ends."""
    cursor = await conn.execute("SELECT FROM projects WHERE id = %s FOR NO KEY UPDATE", [project_id])
    if cursor.rowcount == 0:
        raise NotFound(
            f"There is no project {project_id}", reason="PROJECT_NOT_FOUND", metadata={"project_id": project_id}
        )


async def id_under(conn: Connection, project_id: str, slug: str) -> str | None:
    """The function that has the slug."""
    cursor = await conn.execute(
        "SELECT id FROM functions WHERE project_id = %s AND slug = %s AND deleted_at IS NULL", [project_id, slug]
    )
    row = await cursor.fetchone()
    return None if row is None else str(row[0])


async def add_function(conn: Connection, project_id: str, name: str, slug: str) -> str:
    """The id of a new function, which has no version yet. ResourceExhausted when the project has enough."""
    await require_room(conn, project_id)
    cursor = await conn.execute(
        "INSERT INTO functions (project_id, name, slug, active_version, last_version) VALUES (%s, %s, %s, 0, 0)"
        " RETURNING id",
        [project_id, name, slug],
    )
    ((function_id,),) = await cursor.fetchall()
    return str(function_id)


async def require_room(conn: Connection, project_id: str) -> None:
    """ResourceExhausted when the project cannot have one function more."""
    cursor = await conn.execute(
        "SELECT count(*) FROM functions WHERE project_id = %s AND deleted_at IS NULL", [project_id]
    )
    ((count,),) = await cursor.fetchall()
    if count >= MAX_FUNCTIONS:
        raise ResourceExhausted(
            f"The project has {count} functions, which is the most it may have; delete one",
            reason="FUNCTION_LIMIT",
            metadata={"limit": "functions", "used": str(count), "allowed": str(MAX_FUNCTIONS)},
        )


async def active_configuration(conn: Connection, function_id: str) -> Configuration:
    cursor = await conn.cursor(row_factory=dict_row).execute(
        "SELECT v.timeout_ms, v.memory_mb, v.concurrency, v.exactly_once, v.env, v.secrets FROM functions f"
        " JOIN function_versions v ON v.function_id = f.id AND v.version = f.active_version WHERE f.id = %s",
        [function_id],
    )
    (row,) = await cursor.fetchall()
    return Configuration(
        settings=settings_of(row),
        exactly_once=row["exactly_once"],
        env=row["env"],
        secrets=sealed_of(row["secrets"]),
    )


async def next_version(conn: Connection, function_id: str, name: str | None) -> int:
    """The number of the function's next version, at which it points from here on; with a new name unless it is None."""
    cursor = await conn.execute(
        "UPDATE functions SET name = coalesce(%s, name), active_version = last_version + 1,"
        " last_version = last_version + 1, updated_at = now() WHERE id = %s RETURNING last_version",
        [name, function_id],
    )
    ((version,),) = await cursor.fetchall()
    return int(version)


async def insert_version(
    conn: Connection, project_id: str, function_id: str, version: int, release: Release, configured: Configuration
) -> None:
    """The version with its bytes, for all nodes to fetch."""
    parts = (release.code, release.source_map, release.script, release.source)
    hashes = [None if data is None else sha256_of(data) for data in parts]
    for sha256, data in dict(zip(hashes, parts, strict=True)).items():
        if data is not None:
            await conn.execute(
                "INSERT INTO artifacts (project_id, sha256, data) VALUES (%s, %s, %b) ON CONFLICT DO NOTHING",
                [project_id, sha256, data],
            )
    await conn.execute(
        "INSERT INTO function_versions (function_id, project_id, version, runtime, language, entrypoint, isolation,"
        f" source_bytes, {', '.join(_HASHES)}, note, timeout_ms, memory_mb, concurrency, exactly_once, env,"
        " secrets) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [
            *(function_id, project_id, version, release.runtime, release.language, release.entrypoint),
            *(release.isolation, len(release.source), *hashes, release.note),
            *_columns(configured),
        ],
    )


async def insert_revision(
    conn: Connection,
    function_id: str,
    version: int,
    *,
    of: int,
    note: str,
    isolation: Isolation | None,
    configured: Configuration,
) -> None:
    """A version with the code of version `of`, and with its isolation when that is None."""
    same = f"function_id, project_id, runtime, language, entrypoint, source_bytes, {', '.join(_HASHES)}"
    await conn.execute(
        f"INSERT INTO function_versions ({same}, version, note, isolation,"
        " timeout_ms, memory_mb, concurrency, exactly_once, env, secrets)"
        f" SELECT {same}, %s, %s, coalesce(%s, isolation), %s, %s, %s, %s, %s, %s"
        " FROM function_versions WHERE function_id = %s AND version = %s",
        [version, note, isolation, *_columns(configured), function_id, of],
    )


def _columns(configured: Configuration) -> Sequence[object]:
    settings = configured.settings
    return (
        settings.timeout_ms,
        settings.memory_mb,
        settings.concurrency,
        configured.exactly_once,
        Jsonb(dict(configured.env)),
        Jsonb(sealed_column(configured.secrets)),
    )


async def forget_versions(conn: Connection, project_id: str, function_id: str, *, up_to: int) -> Sequence[str]:
    """Delete versions up to that number; the hashes that nothing uses any more."""
    hashes = await hashes_of(conn, function_id, up_to=up_to)
    await conn.execute("DELETE FROM function_versions WHERE function_id = %s AND version <= %s", [function_id, up_to])
    return await delete_unused(conn, project_id, hashes)


async def delete_function(conn: Connection, project_id: str, function_id: str) -> Sequence[str]:
    """Delete the function with its versions for good; the hashes that nothing uses any more."""
    hashes = await hashes_of(conn, function_id)
    await conn.execute("DELETE FROM functions WHERE id = %s", [function_id])
    return await delete_unused(conn, project_id, hashes)


async def hashes_of(conn: Connection, function_id: str, *, up_to: int = 2**31 - 1) -> Collection[str]:
    """The hashes of all that the versions up to that number use."""
    cursor = await conn.execute(
        f"SELECT {', '.join(_HASHES)} FROM function_versions WHERE function_id = %s AND version <= %s",
        [function_id, up_to],
    )
    return {sha256 for row in await cursor.fetchall() for sha256 in row if sha256 is not None}


async def delete_unused(conn: Connection, project_id: str, hashes: Collection[str]) -> Sequence[str]:
    """Delete those of the bytes that no version uses any more; their hashes."""
    unused = " AND ".join(
        f"NOT EXISTS (SELECT FROM function_versions v WHERE v.project_id = a.project_id AND v.{column} = a.sha256)"
        for column in _HASHES
    )
    cursor = await conn.execute(
        f"DELETE FROM artifacts a WHERE project_id = %s AND sha256 = ANY(%s) AND {unused} RETURNING sha256",
        [project_id, [*hashes]],
    )
    return [row[0] for row in await cursor.fetchall()]
