"""What led to an event: the run that it is of, the event that started that run, and so on to the beginning.

    event ── cause.run_id ──▶ run ──▶ its delivery ──▶ the event of that ── cause.run_id ──▶ …

It ends at an event without a cause, at a run that no event started, and where the ledger keeps no more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from psycopg.rows import dict_row

from server.dispatch.identity import delivery_id
from server.events.envelope import Cause
from server.fields import is_id
from server.postgres.control import Connection

MAX_LINKS: Final = 100
SEARCHED: Final = 1_000
"""Deliveries of a trigger, the newest before the event, among which a run without a record is looked for."""

_LINK: Final = """
SELECT d.id, d.trigger_id, d.event_id, d.event_type, d.state, e.stored_at, e.cause_run, e.cause_trigger, e.cause_depth
FROM {rows} AS d
LEFT JOIN delivered_events e ON e.project_id = d.project_id AND e.event_id = d.event_id
WHERE d.project_id = %(project_id)s AND {which} LIMIT 1
"""
_BY_ID: Final = _LINK.format(rows="deliveries", which="d.id = ANY(%(ids)s::uuid[])")
_BY_RUN: Final = _LINK.format(
    rows="(SELECT * FROM deliveries WHERE trigger_id = %(trigger_id)s AND created_at <= coalesce(%(before)s, now())"
    " ORDER BY created_at DESC, id DESC LIMIT %(searched)s)",
    which="(d.run_id = %(run_id)s OR d.history @> jsonb_build_array(jsonb_build_object('run_id', %(run_id)s::text)))",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One run, and the delivery and event that it was started by, as far as the ledger knows them."""

    run_id: str
    trigger_id: str = ""
    depth: int
    delivery_id: str = ""
    event_id: str = ""
    event_type: str = ""
    state: str = ""  # of the delivery

    def __str__(self) -> str:
        began = f"event {self.event_type} {self.event_id} → " if self.event_id else ""
        by = f"trigger {self.trigger_id} " if self.trigger_id else ""
        return f"{began}{by}run {self.run_id}"


@dataclass(frozen=True, slots=True)
class Chain:
    """`links` from the nearest back. `whole`: its last link is the beginning, else more came before."""

    links: Sequence[Link]
    whole: bool


async def chain(conn: Connection, project_id: str, cause: Cause | None, before: datetime | None = None) -> Chain:
    """What led to an event of the project that has this cause, and came at about `before`, or just now."""
    links: list[Link] = []
    while cause is not None and len(links) < MAX_LINKS:
        row = await _started(conn, project_id, cause, before)
        if row is None:
            links.append(Link(run_id=cause.run_id, trigger_id=cause.trigger_id or "", depth=cause.depth))
            return Chain(links, whole=cause.depth == 1 and cause.trigger_id is None)
        links.append(
            Link(
                run_id=cause.run_id,
                trigger_id=row["trigger_id"],
                depth=cause.depth,
                delivery_id=row["id"],
                event_id=row["event_id"],
                event_type=row["event_type"],
                state=row["state"],
            )
        )
        if row["stored_at"] is None:
            return Chain(links, whole=cause.depth == 1)
        before, cause = row["stored_at"], cause_of(row)
    return Chain(links, whole=cause is None)


def cause_of(row: dict[str, Any]) -> Cause | None:
    """Of a row of `delivered_events`."""
    if row["cause_run"] is None:
        return None
    return Cause(run_id=row["cause_run"], trigger_id=row["cause_trigger"], depth=row["cause_depth"])


async def _started(conn: Connection, project_id: str, cause: Cause, before: datetime | None) -> dict[str, Any] | None:
    """The delivery that a run was an attempt at, with its event's cause. A workflow's run has its delivery's id, a
    function's is told by its record; while that is not written, it is among the last of its trigger's."""
    ids = [cause.run_id]
    cursor = await conn.execute(
        "SELECT trigger, request_id FROM runs WHERE id = %s AND project_id = %s", [cause.run_id, project_id]
    )
    if (run := await cursor.fetchone()) is not None and is_id(run[0]):
        ids.append(delivery_id(run[0], run[1]))
    rows = conn.cursor(row_factory=dict_row)
    found = await (await rows.execute(_BY_ID.encode(), {"project_id": project_id, "ids": ids})).fetchone()
    if found is None and cause.trigger_id is not None:
        given = {
            "project_id": project_id,
            "trigger_id": cause.trigger_id,
            "run_id": cause.run_id,
            "before": before,
            "searched": SEARCHED,
        }
        found = await (await rows.execute(_BY_RUN.encode(), given)).fetchone()
    return found
