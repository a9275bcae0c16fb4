"""How much of the triggers a project has: every process keeps all of them in memory, so that there is a most.

Postgres keeps the total in the transaction that changes them (migration 0006); it is looked at under the project's
turn.
"""

from dataclasses import dataclass
from typing import Final

from psycopg.rows import class_row

from server.errors import ResourceExhausted
from server.postgres.control import Connection

MAX_TRIGGERS: Final = 100_000
"""Of a project."""

MAX_BYTES: Final = 64 * 1024 * 1024
"""Of the conditions and the config of all triggers of a project, as JSON texts."""


@dataclass(frozen=True, slots=True)
class Total:
    triggers: int
    bytes: int


async def total_of(conn: Connection, project_id: str) -> Total:
    cursor = await conn.cursor(row_factory=class_row(Total)).execute(
        "SELECT triggers, bytes FROM trigger_totals WHERE project_id = %s", [project_id]
    )
    return await cursor.fetchone() or Total(0, 0)


async def require_room(conn: Connection, project_id: str, before: Total) -> None:
    """After a change that is not committed. ResourceExhausted when it added to what is above the most."""
    after = await total_of(conn, project_id)
    if after.triggers > max(MAX_TRIGGERS, before.triggers):
        raise ResourceExhausted(
            f"The project has {before.triggers} triggers, which is the most it may have; delete one",
            reason="TRIGGER_LIMIT",
            metadata={"limit": "triggers", "used": str(before.triggers), "allowed": str(MAX_TRIGGERS)},
        )
    if after.bytes > max(MAX_BYTES, before.bytes):
        raise ResourceExhausted(
            f"The conditions and config of the project's triggers have {before.bytes} bytes, and would have "
            f"{after.bytes}; at most {MAX_BYTES} are allowed: shorten some, or delete a trigger",
            reason="TRIGGER_LIMIT",
            metadata={"limit": "trigger_bytes", "used": str(before.bytes), "allowed": str(MAX_BYTES)},
        )
