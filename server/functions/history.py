"""Which versions of a function were active one after the other.

    deploy 1 · deploy 2 · activate 1 · deploy 3     →  1 2 1 3
    rollback                                        →  1 2 1
    rollback                                        →  1 2

A rollback takes the last entry off, so that the next one goes further back and never to what was just left.
"""

from typing import Final

from server.errors import FailedPrecondition
from server.postgres.control import Connection

KEPT_ENTRIES: Final = 100
"""Of one function; the oldest go."""


async def note(conn: Connection, function_id: str, version: int) -> None:
    """The version has become the active one. Only for whoever has the project's turn."""
    cursor = await conn.execute(
        "INSERT INTO function_activations (function_id, number, version)"
        " SELECT %(id)s, coalesce(max(number), 0) + 1, %(version)s FROM function_activations"
        " WHERE function_id = %(id)s RETURNING number",
        {"id": function_id, "version": version},
    )
    ((number,),) = await cursor.fetchall()
    await conn.execute(
        "DELETE FROM function_activations WHERE function_id = %s AND number <= %s", [function_id, number - KEPT_ENTRIES]
    )


async def step_back(conn: Connection, function_id: str) -> int:
    """The version that was active before the present one, whose entry is taken off.

    FailedPrecondition when there was none, or when it is kept no more.
    """
    cursor = await conn.execute(
        "SELECT a.number, a.version, v.version IS NOT NULL FROM function_activations a"
        " LEFT JOIN function_versions v USING (function_id, version)"
        " WHERE function_id = %s ORDER BY a.number DESC LIMIT 2",
        [function_id],
    )
    entries = await cursor.fetchall()
    if len(entries) < 2:
        raise FailedPrecondition(
            "No version of the function was active before the present one",
            reason="NO_EARLIER_VERSION",
            metadata={"function_id": function_id},
        )
    (present, *_), (_, version, is_kept) = entries
    if not is_kept:
        raise FailedPrecondition(
            f"Version {version} was active before, but is kept no more; activate another one",
            reason="VERSION_NOT_KEPT",
            metadata={"function_id": function_id, "version": str(version)},
        )
    await conn.execute(
        "DELETE FROM function_activations WHERE function_id = %s AND number = %s", [function_id, present]
    )
    return int(version)
