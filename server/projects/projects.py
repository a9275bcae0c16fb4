"""Projects and their keys in the control database, and the order in which a project comes and goes.

    create   leftover noted │ schema made │ project inserted, leftover erased
    delete   project deleted, leftover noted │ schema and the rest removed │ leftover erased
                            each │ may be the place of a crash

A project is visible only while all of it exists. What a crash leaves behind is noted as a leftover and removed by
`sweep`, which any process may run at any time.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol
from uuid import uuid4

from psycopg.errors import ForeignKeyViolation
from psycopg.rows import class_row

from server.errors import NotFound, Unavailable
from server.fields import parse_id, parse_name
from server.log import logger
from server.paging import Page, at, request
from server.postgres.changes import Changes
from server.postgres.control import RETRY_AFTER_MS, Connection, Pool, transaction
from server.postgres.tenants import schema_of
from server.projects import api_keys
from server.projects.api_keys import ApiKey
from server.tiers import Tier, parse_tier

log = logger("projects")

LEFTOVER_AGE_S: Final = 600
"""After which whoever was making or deleting a project is taken to have died."""

Removal = Callable[[str], Awaitable[None]]
"""Removes what a part of the system holds of a project, by id; idempotent."""

_COLUMNS: Final = "id, name, tier, schema, created_at, updated_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    id: str
    name: str
    tier: Tier | None
    schema: str  # in the tenants database
    created_at: datetime
    updated_at: datetime


class Schemas(Protocol):
    """Where projects keep their tables: `server.postgres.tenants.Tenants`."""

    async def provision(self, project_id: str) -> None:
        """Make schema and role; idempotent."""
        ...

    async def drop(self, project_id: str) -> None:
        """Remove both with all they hold; idempotent."""
        ...


class Projects:
    def __init__(self, pool: Pool, changes: Changes, schemas: Schemas, removals: Sequence[Removal] = ()) -> None:
        """`removals` run after a project is deleted, beside dropping its schema."""
        self._pool = pool
        self._changes = changes
        self._schemas = schemas
        self._removals = (schemas.drop, *removals)

    async def create(self, name: str, tier: str | None) -> Project:
        """A new project with its schema. InvalidArgument for a bad name or tier."""
        parsed_name = parse_name("name", name)
        parsed_tier = None if tier is None else parse_tier(tier)
        project_id = str(uuid4())
        async with transaction(self._pool) as conn:
            await _note_leftover(conn, project_id)
        await self._schemas.provision(project_id)
        async with transaction(self._pool) as conn:
            if not await _erase_leftover(conn, project_id):
                raise Unavailable(
                    "Making the project's schema took too long; try again",
                    reason="PROVISIONING_TIMEOUT",
                    retry_after_ms=RETRY_AFTER_MS,
                )
            project = await _one(
                conn,
                f"INSERT INTO projects (id, name, tier, schema) VALUES (%s, %s, %s, %s) RETURNING {_COLUMNS}",
                [project_id, parsed_name, parsed_tier, schema_of(project_id)],
            )
            await self._changes.announce(conn, "project", project_id)
        return _found(project, project_id)

    async def get(self, project_id: str) -> Project:
        project_id = parse_id("project_id", project_id)
        async with transaction(self._pool) as conn:
            project = await _one(conn, f"SELECT {_COLUMNS} FROM projects WHERE id = %s", [project_id])
        return _found(project, project_id)

    async def list(self, page_size: int = 0, page_token: str = "") -> Page[Project]:
        """Newest first."""
        asked = request("projects", page_size, page_token)
        async with transaction(self._pool) as conn:
            cursor = await conn.cursor(row_factory=class_row(Project)).execute(
                f"SELECT {_COLUMNS} FROM projects WHERE (created_at, id) < (%s, %s)"
                " ORDER BY created_at DESC, id DESC LIMIT %s",
                [asked.after.moment, asked.after.id, asked.size + 1],
            )
            projects = await cursor.fetchall()
        return asked.page(projects, lambda project: at(project.created_at, project.id))

    async def update(self, project_id: str, *, name: str | None = None, tier: str | None = None) -> Project:
        """Change what is not None; the empty string as `tier` takes the tier away.

        When it returns, every process uses the new tier.
        """
        project_id = parse_id("project_id", project_id)
        parsed_name = None if name is None else parse_name("name", name)
        parsed_tier = parse_tier(tier) if tier else None
        async with transaction(self._pool) as conn:
            project = await _one(
                conn,
                "UPDATE projects SET name = coalesce(%s, name), tier = CASE WHEN %s THEN tier ELSE %s END,"
                f" updated_at = now() WHERE id = %s RETURNING {_COLUMNS}",
                [parsed_name, tier is None, parsed_tier, project_id],
            )
            await self._changes.announce(conn, "project", project_id)
        updated = _found(project, project_id)
        await self._changes.fence()
        return updated

    async def delete(self, project_id: str) -> None:
        """Delete the project and everything of it. When it returns, every process refuses its keys."""
        project_id = parse_id("project_id", project_id)
        async with transaction(self._pool) as conn:
            _found(
                await _one(conn, f"DELETE FROM projects WHERE id = %s RETURNING {_COLUMNS}", [project_id]), project_id
            )
            await _note_leftover(conn, project_id)
            await self._changes.announce(conn, "project", project_id)
        await self._changes.fence()
        try:
            await self._remove(project_id)
        except Exception:
            log.exception("project.leftover", "A deleted project left something behind; a sweep will remove it")

    async def create_key(self, project_id: str, role: str, name: str) -> tuple[ApiKey, str]:
        """A new key and its secret, which is not stored and cannot be shown again."""
        project_id = parse_id("project_id", project_id)
        try:
            async with transaction(self._pool) as conn:
                return await api_keys.insert(conn, project_id, role, name)
        except ForeignKeyViolation:
            raise _unknown(project_id) from None

    async def list_keys(self, project_id: str, page_size: int = 0, page_token: str = "") -> Page[ApiKey]:
        """Newest first, revoked ones included."""
        project = await self.get(project_id)
        async with transaction(self._pool) as conn:
            return await api_keys.newest(conn, project.id, page_size, page_token)

    async def revoke_key(self, project_id: str, key_id: str) -> ApiKey:
        """Revoke for good. When it returns, every process refuses the key. Idempotent."""
        async with transaction(self._pool) as conn:
            key = await api_keys.revoke(conn, parse_id("project_id", project_id), key_id)
            await self._changes.announce(conn, "key", key.id)
        await self._changes.fence()
        return key

    async def sweep(self, *, older_than_s: float = LEFTOVER_AGE_S) -> Sequence[str]:
        """Remove what half-made and half-deleted projects left; the ids of those. Safe beside any other process."""
        async with transaction(self._pool) as conn:
            cursor = await conn.execute(
                "SELECT project_id FROM project_leftovers WHERE since <= now() - make_interval(secs => %s)",
                [older_than_s],
            )
            leftovers = [str(project_id) for (project_id,) in await cursor.fetchall()]
        return [project_id for project_id in leftovers if await self._remove(project_id)]

    async def _remove(self, project_id: str) -> bool:
        """Remove a leftover; False when another process does, or its making went on after all."""
        async with transaction(self._pool) as conn:
            cursor = await conn.execute(
                "SELECT 1 FROM project_leftovers WHERE project_id = %s FOR UPDATE SKIP LOCKED", [project_id]
            )
            if await cursor.fetchone() is None:
                return False
            for removal in self._removals:
                await removal(project_id)
            return await _erase_leftover(conn, project_id)


async def _one(conn: Connection, query: str, params: Sequence[object]) -> Project | None:
    cursor = await conn.cursor(row_factory=class_row(Project)).execute(query.encode(), params)
    return await cursor.fetchone()


async def _note_leftover(conn: Connection, project_id: str) -> None:
    await conn.execute("INSERT INTO project_leftovers (project_id) VALUES (%s)", [project_id])


async def _erase_leftover(conn: Connection, project_id: str) -> bool:
    cursor = await conn.execute("DELETE FROM project_leftovers WHERE project_id = %s", [project_id])
    return cursor.rowcount == 1


def _found(project: Project | None, project_id: str) -> Project:
    if project is None:
        raise _unknown(project_id)
    return project


def _unknown(project_id: str) -> NotFound:
    return NotFound(
        f"There is no project {project_id}", reason="PROJECT_NOT_FOUND", metadata={"project_id": project_id}
    )
