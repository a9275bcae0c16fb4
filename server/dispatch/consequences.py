"""What an event led to: its deliveries, the runs of these, the events of those, and so on down; and what led to it.

    event ─▶ deliveries ─▶ runs of their attempts ─▶ events with such a run as their cause ─▶ …

Events that no trigger answered are not kept, so that they are not in it. A level is read with two queries, however
many are in it; where there is more than an answer holds, it says so.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from psycopg.rows import dict_row

from server.dispatch.lineage import Chain, cause_of, chain
from server.errors import NotFound
from server.events.envelope import parse_event_id
from server.postgres.control import Connection, Pool, transaction

MOST: Final = 1_000
"""Events, and deliveries, of one answer."""

LEVELS: Final = 24
"""Of events; an answer is nested twice as deep."""

_TYPE: Final = (
    "(SELECT d.event_type FROM deliveries d WHERE d.project_id = e.project_id AND d.event_id = e.event_id LIMIT 1)"
    " AS event_type"
)
_EVENT: Final = f"""
SELECT e.event_id, e.stored_at, e.cause_run, e.cause_trigger, e.cause_depth, {_TYPE}
FROM delivered_events e WHERE e.project_id = %s AND e.event_id = %s
"""
_CAUSED: Final = f"""
SELECT e.event_id, e.stored_at, e.cause_run, {_TYPE} FROM delivered_events e
WHERE e.project_id = %s AND e.cause_run = ANY(%s::uuid[]) ORDER BY e.stored_at, e.event_id LIMIT %s
"""
_DELIVERIES: Final = """
SELECT id, trigger_id, event_id, state, outcome, run_id, jsonb_path_query_array(history, '$[*].run_id') AS runs
FROM deliveries WHERE project_id = %s AND event_id = ANY(%s) ORDER BY created_at, id LIMIT %s
"""


@dataclass(slots=True)
class Consequence:
    """A delivery; `runs` are those of its attempts, oldest first, `events` what these published or changed."""

    id: str
    trigger_id: str
    state: str
    outcome: str
    runs: Sequence[str]
    events: "list[Happened]" = field(default_factory=list)


@dataclass(slots=True)
class Happened:
    """An event. `truncated`: some of what it led to may be left out. `repeated`: it stands elsewhere in the answer,
    with what it led to."""

    id: str
    type: str
    stored_at: datetime
    deliveries: list[Consequence] = field(default_factory=list)
    truncated: bool = False
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Lineage:
    event: Happened
    causes: Chain
    truncated: bool


class Lineages:
    def __init__(self, pool: Pool, *, most: int = MOST, levels: int = LEVELS) -> None:
        self._pool = pool
        self._most = most
        self._levels = levels

    async def of(self, project_id: str, event_id: str) -> Lineage:
        """As of one moment. NotFound for an event that is not kept: none of its deliveries is, or it had none."""
        parse_event_id("event_id", event_id)
        async with transaction(self._pool) as conn:
            await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            cursor = await conn.cursor(row_factory=dict_row).execute(_EVENT.encode(), [project_id, event_id])
            if (row := await cursor.fetchone()) is None:
                raise NotFound(
                    f"No delivery of an event {event_id} is kept; what no trigger answered is not kept at all",
                    reason="EVENT_NOT_FOUND",
                    metadata={"event_id": event_id},
                )
            event = _happened(row)
            await self._descend(conn, project_id, event)
            causes = await chain(conn, project_id, cause_of(row), row["stored_at"])
        return Lineage(event, causes, any(each.truncated for each in _all(event)))

    async def _descend(self, conn: Connection, project_id: str, event: Happened) -> None:
        """Fill in what it led to, level by level, as far as there is room."""
        seen, level = {event.id}, [event]
        room_for_events = room_for_deliveries = self._most
        for number in range(self._levels):
            by_run, count, cut = await self._deliveries(conn, project_id, level, room_for_deliveries)
            room_for_deliveries -= count
            below: list[Happened] = []
            if number == self._levels - 1:
                cut = cut or bool(by_run)
            elif by_run:
                rows = await _read(conn, _CAUSED, [project_id, [*by_run], room_for_events + 1])
                cut = cut or len(rows) > room_for_events
                for row in rows[:room_for_events]:
                    found = _happened(row)
                    by_run[row["cause_run"]].events.append(found)
                    found.repeated = found.id in seen
                    if not found.repeated:
                        below.append(found)
                    seen.add(found.id)
                room_for_events -= len(rows[:room_for_events])
            for each in level:
                each.truncated = cut and (number < self._levels - 1 or bool(each.deliveries))
            level = below
            if not level:
                return

    async def _deliveries(
        self, conn: Connection, project_id: str, level: Sequence[Happened], most: int
    ) -> tuple[Mapping[str, Consequence], int, bool]:
        """Give these events their deliveries: by the runs that may have led on, how many, and whether there are more.
        A workflow's run has the delivery's id."""
        events = {each.id: each for each in level}
        rows = await _read(conn, _DELIVERIES, [project_id, [*events], most + 1])
        by_run: dict[str, Consequence] = {}
        for row in rows[:most]:
            runs = [*dict.fromkeys(run for run in (*row["runs"], row["run_id"]) if run)]
            found = Consequence(row["id"], row["trigger_id"], row["state"], row["outcome"], runs)
            events[row["event_id"]].deliveries.append(found)
            by_run |= dict.fromkeys((*runs, found.id), found)
        return by_run, len(rows[:most]), len(rows) > most


async def _read(conn: Connection, query: str, values: Sequence[object]) -> list[dict[str, Any]]:
    return await (await conn.cursor(row_factory=dict_row).execute(query.encode(), values)).fetchall()


def _happened(row: Mapping[str, Any]) -> Happened:
    return Happened(row["event_id"], row["event_type"] or "", row["stored_at"])


def _all(event: Happened) -> Iterable[Happened]:
    yield event
    for delivery in event.deliveries:
        for below in delivery.events:
            yield from _all(below)
