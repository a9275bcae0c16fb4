"""What a run led to and what was stopped: dead letters of `server.dispatch.loops` with the run as their cause.

    run ◀── cause.run_id ── event ◀── delivery, dead with EVENT_LOOP

It is asked of the ledger whenever the run is shown and is nowhere written into the run, whose record may come before or
after; so a replay that goes well takes it away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from psycopg.rows import class_row

from server.dispatch.loops import REASON
from server.fields import parse_id
from server.postgres.control import Pool, transaction

MOST: Final = 20
"""Of one answer."""

SEARCHED: Final = 100
"""Events of the run, the oldest, and deliveries of each: all events of a run are equally deep, so that when one is
stopped, all are."""

_STOPPED: Final = """
SELECT d.id AS delivery_id, d.trigger_id, d.event_id, d.event_type, d.error->>'message' AS message
FROM (
  SELECT project_id, event_id, stored_at FROM delivered_events
  WHERE cause_run = %(run_id)s AND project_id = %(project_id)s ORDER BY stored_at, event_id LIMIT %(searched)s
) AS e CROSS JOIN LATERAL (
  SELECT * FROM deliveries WHERE project_id = e.project_id AND event_id = e.event_id LIMIT %(searched)s
) AS d
WHERE d.state = 'dead' AND d.error->>'reason' = %(reason)s
ORDER BY e.stored_at, e.event_id, d.id LIMIT %(most)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """`message` tells why, with the chain of runs that led there."""

    delivery_id: str
    trigger_id: str
    event_id: str
    event_type: str
    message: str


@dataclass(frozen=True, slots=True)
class Found:
    """The first MOST. `more`: there are more."""

    stopped: Sequence[Stopped] = ()
    more: bool = False


class StoppedEvents:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def of(self, project_id: str, run_id: str) -> Found:
        """Of a function's or a workflow's run, known or not. InvalidArgument for what is no id; Unavailable."""
        values = {
            "project_id": project_id,
            "run_id": parse_id("run_id", run_id),
            "searched": SEARCHED,
            "reason": REASON,
            "most": MOST + 1,
        }
        async with transaction(self._pool) as conn:
            cursor = await conn.cursor(row_factory=class_row(Stopped)).execute(_STOPPED.encode(), values)
            rows = await cursor.fetchall()
        return Found(rows[:MOST], more=len(rows) > MOST)
