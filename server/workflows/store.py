"""Definitions in the control database: written only when they are right, each change a new version."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from psycopg.errors import ForeignKeyViolation
from psycopg.rows import dict_row

from server.errors import FailedPrecondition, NotFound, ResourceExhausted
from server.events.json_text import Json, read
from server.fields import parse_id, parse_name
from server.paging import Page, at, request
from server.postgres.control import Connection, Pool, transaction
from server.workflows.definition import Definition
from server.workflows.parsing import parse
from server.workflows.targets import require_functions

MAX_WORKFLOWS: Final = 1_000
"""Of a project."""

LOADED: Final = 128
"""Definitions kept parsed."""

NAMED: Final = 20
"""Triggers that an error names."""

_BRIEF: Final = "id, name, version, '' AS definition, created_at, updated_at"
_COLUMNS: Final = "id, name, version, definition::text AS definition, created_at, updated_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    id: str
    project_id: str
    name: str
    version: int
    definition: str  # JSON, as it was written
    created_at: datetime
    updated_at: datetime


class Definitions:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def validate(self, project_id: str, document: Json) -> Definition:
        """What `create` and `update` ask of a definition. InvalidArgument names the place."""
        definition = parse(document)
        async with transaction(self._pool) as conn:
            await require_functions(conn, project_id, definition, "definition")
        return definition

    async def create(self, project_id: str, name: str, document: Json) -> Workflow:
        """InvalidArgument for name or definition; ResourceExhausted above MAX_WORKFLOWS."""
        name, definition = parse_name("name", name), parse(document)
        async with transaction(self._pool) as conn:
            await require_functions(conn, project_id, definition, "definition")
            cursor = await conn.execute("SELECT count(*) FROM workflow_definitions WHERE project_id = %s", [project_id])
            ((count,),) = await cursor.fetchall()
            if count >= MAX_WORKFLOWS:
                raise ResourceExhausted(
                    f"The project has {count} workflows, which is all it may have; delete one first",
                    reason="TOO_MANY_WORKFLOWS",
                    metadata={"allowed": str(MAX_WORKFLOWS)},
                )
            made = await _one(
                conn,
                "INSERT INTO workflow_definitions (project_id, name, definition) VALUES (%s, %s, %s::json)"
                f" RETURNING {_COLUMNS}",
                [project_id, name, document.text],
                project_id,
            )
        assert made is not None
        return made

    async def get(self, project_id: str, workflow_id: str) -> Workflow:
        workflow_id = parse_id("workflow_id", workflow_id)
        async with transaction(self._pool) as conn:
            return await find(conn, project_id, workflow_id)

    async def list(self, project_id: str, page_size: int = 0, page_token: str = "") -> Page[Workflow]:
        """Newest first, without their definitions."""
        asked = request(f"workflows of {project_id}", page_size, page_token)
        async with transaction(self._pool) as conn:
            cursor = await conn.cursor(row_factory=dict_row).execute(
                f"SELECT {_BRIEF} FROM workflow_definitions WHERE project_id = %s AND (created_at, id) < (%s, %s)"
                " ORDER BY created_at DESC, id DESC LIMIT %s".encode(),
                [project_id, asked.after.moment, asked.after.id, asked.size + 1],
            )
            found = [_workflow(row, project_id) for row in await cursor.fetchall()]
        return asked.page(found, lambda item: at(item.created_at, item.id))

    async def update(
        self, project_id: str, workflow_id: str, *, name: str | None = None, document: Json | None = None
    ) -> Workflow:
        """Change what is not None. Another definition is a new version; runs that have begun keep theirs."""
        workflow_id = parse_id("workflow_id", workflow_id)
        name = None if name is None else parse_name("name", name)
        definition = None if document is None else parse(document)
        async with transaction(self._pool) as conn:
            await find(conn, project_id, workflow_id)
            if definition is not None:
                await require_functions(conn, project_id, definition, "definition")
            changed = await _one(
                conn,
                "UPDATE workflow_definitions SET name = coalesce(%s, name),"
                " definition = coalesce(%s::json, definition), version = version + %s,"
                " updated_at = now() WHERE id = %s AND project_id = %s"
                f" RETURNING {_COLUMNS}",
                [name, document and document.text, int(document is not None), workflow_id, project_id],
                project_id,
            )
        if changed is None:
            raise _unknown(workflow_id)
        return changed

    async def delete(self, project_id: str, workflow_id: str) -> None:
        """Runs that have begun go on to their end. FailedPrecondition while triggers start it, naming them."""
        workflow_id = parse_id("workflow_id", workflow_id)
        async with transaction(self._pool) as conn:
            cursor = await conn.execute(
                "SELECT id FROM workflow_definitions WHERE id = %s AND project_id = %s FOR UPDATE",
                [workflow_id, project_id],
            )  # whoever makes a trigger of it waits for the end of this
            if await cursor.fetchone() is None:
                raise _unknown(workflow_id)
            cursor = await conn.execute(
                "SELECT id FROM triggers WHERE workflow_id = %s AND project_id = %s ORDER BY created_at LIMIT %s",
                [workflow_id, project_id, NAMED],
            )
            if triggers := [str(trigger_id) for (trigger_id,) in await cursor.fetchall()]:
                told = ", ".join(triggers)
                raise FailedPrecondition(
                    f"The workflow {workflow_id} is started by these triggers, delete them first: {told}",
                    reason="WORKFLOW_IN_USE",
                    metadata={"workflow_id": workflow_id, "trigger_ids": told},
                )
            await conn.execute("DELETE FROM workflow_definitions WHERE id = %s", [workflow_id])


async def find(conn: Connection, project_id: str, workflow_id: str, *, lock: bool = False) -> Workflow:
    """NotFound when the project has none of that id. With `lock` it is there until the transaction ends."""
    found = await _one(
        conn,
        f"SELECT {_COLUMNS} FROM workflow_definitions WHERE id = %s AND project_id = %s"
        + (" FOR KEY SHARE" if lock else ""),
        [workflow_id, project_id],
        project_id,
    )
    if found is None:
        raise _unknown(workflow_id)
    return found


@functools.lru_cache(maxsize=LOADED)
def loaded(definition: str) -> Definition:
    """A definition as it is stored, which was checked when it was written."""
    return parse(read(definition.encode("utf-8", "surrogatepass")))


async def _one(conn: Connection, query: str, params: list[object], project_id: str) -> Workflow | None:
    try:
        cursor = await conn.cursor(row_factory=dict_row).execute(query.encode(), params)
    except ForeignKeyViolation:
        raise NotFound(
            f"There is no project {project_id}", reason="PROJECT_NOT_FOUND", metadata={"project_id": project_id}
        ) from None
    row = await cursor.fetchone()
    return None if row is None else _workflow(row, project_id)


def _workflow(row: Mapping[str, Any], project_id: str) -> Workflow:
    return Workflow(**row, project_id=project_id)


def _unknown(workflow_id: str) -> NotFound:
    return NotFound(
        f"The project has no workflow {workflow_id}",
        reason="WORKFLOW_NOT_FOUND",
        metadata={"workflow_id": workflow_id},
    )
