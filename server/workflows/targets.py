"""Functions as workflows name them: whether they exist, and which slug one has."""

from server.errors import InvalidArgument, NotFound
from server.fields import shown
from server.postgres.control import Connection, Pool, transaction
from server.workflows.definition import Definition


class Targets:
    """`server.workflows.nodes.function.Slugs`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def slug(self, project_id: str, function_id: str) -> str:
        """NotFound when the project has no such function, or has deleted it."""
        async with transaction(self._pool) as conn:
            cursor = await conn.execute(
                "SELECT slug FROM functions WHERE id = %s AND project_id = %s AND deleted_at IS NULL",
                [function_id, project_id],
            )
            row = await cursor.fetchone()
        if row is None:
            raise NotFound(
                f"The project has no function {function_id}",
                reason="FUNCTION_NOT_FOUND",
                metadata={"function_id": function_id},
            )
        return str(row[0])


async def require_functions(conn: Connection, project_id: str, definition: Definition, field: str) -> None:
    """InvalidArgument names the first node whose function the project does not have."""
    named = {
        index: ("function" if "function" in node.config else "function_id", node.config)
        for index, node in enumerate(definition.nodes.values())
        if node.type == "function"
    }
    slugs = [config[member] for member, config in named.values() if member == "function"]
    ids = [config[member] for member, config in named.values() if member == "function_id"]
    cursor = await conn.execute(
        "SELECT slug, id::text FROM functions WHERE project_id = %s AND deleted_at IS NULL"
        " AND (slug = ANY(%s) OR id = ANY(%s::uuid[]))",
        [project_id, slugs, ids],
    )
    rows = await cursor.fetchall()
    found = {"function": {slug for slug, _ in rows}, "function_id": {function_id for _, function_id in rows}}
    for index, (member, config) in named.items():
        if (name := config[member]) not in found[member]:
            place = f"{field}.nodes[{index}].config.{member}"
            raise InvalidArgument(place, f"{place} is {shown(name)}; the project has no such function", value=name)
