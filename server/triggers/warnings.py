"""What a trigger that may be stored is warned of: that it feeds itself, where that can be seen.

It can be seen of a workflow, whose event nodes say what they publish. What a function publishes or which rows it
changes stands in its source, which nobody reads: there ATLAS_MAX_EVENT_DEPTH is what ends a circle. Conditions may
well keep a trigger from answering what it causes, and often do, so that it is a warning and not an error.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from server.events.envelope import spelled
from server.postgres.control import Connection
from server.triggers.bridge import LOGIN, SIGNUP
from server.triggers.patterns import matches

FEEDS_ITSELF: Final = "TRIGGER_FEEDS_ITSELF"
STOPPED: Final = "EVENT_LOOP"
"""As the dead letters of what was stopped have it."""

SEARCHED: Final = 1_000
"""Dead letters of a project, the newest, among which one that was stopped is looked for."""

_STOPPED: Final = """
SELECT id, created_at FROM (
  SELECT id, trigger_id, error, created_at FROM deliveries WHERE project_id = %s AND state = 'dead'
  ORDER BY created_at DESC, id DESC LIMIT %s) AS dead
WHERE trigger_id = %s AND error->>'reason' = %s ORDER BY created_at DESC, id DESC LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Caution:
    """Stable `reason`; `message` for people."""

    reason: str
    message: str


async def warnings_of(
    conn: Connection, event_type: str, config: Mapping[str, Any], workflow_id: str | None
) -> tuple[Caution, ...]:
    """Of a trigger as it is stored."""
    if workflow_id is None or (event_type in (SIGNUP, LOGIN) and config.get("table")):
        return ()
    cursor = await conn.execute("SELECT definition FROM workflow_definitions WHERE id = %s", [workflow_id])
    row = await cursor.fetchone()
    return () if row is None else tuple(_feeding(event_type, row[0]))


async def stopped(conn: Connection, project_id: str, trigger_id: str) -> tuple[Caution, ...]:
    """That a run of the trigger was not begun because it went in a circle, as long as a late dead letter says so."""
    cursor = await conn.execute(_STOPPED, [project_id, SEARCHED, trigger_id, STOPPED])
    if (row := await cursor.fetchone()) is None:
        return ()
    message = (
        f"It was stopped at {spelled(row[1])}, because triggers ran in a circle: the delivery {row[0]} tells which"
    )
    return (Caution(STOPPED, message),)


def _feeding(event_type: str, definition: object) -> Iterator[Caution]:
    for node_id, published in _published(definition):
        if matches(event_type, published):
            yield Caution(
                FEEDS_ITSELF,
                f"The node {node_id} of the workflow publishes {published}, which this trigger answers: unless "
                "conditions keep it from that, it feeds itself until ATLAS_MAX_EVENT_DEPTH ends it",
            )


def _published(definition: object) -> Iterator[tuple[str, str]]:
    """Event nodes by id, with the types that are written out. A definition that is something else has none."""
    nodes = definition.get("nodes") if isinstance(definition, dict) else None
    for node in nodes if isinstance(nodes, list) else []:
        if isinstance(node, dict) and node.get("type") == "event" and isinstance(node.get("config"), dict):
            event_type = node["config"].get("type")
            if isinstance(event_type, str) and "{{" not in event_type:
                yield str(node.get("id"))[:64], event_type
