"""How far triggers have come with events of the past: a row of each, written by the process that works at it.

    running ──▶ done          all is read
            ├─▶ truncated     likewise, but the stream removed some before: by age, or because it was nearly full
            └─▶ stopped       the trigger was disabled

What it writes counts only as long as the row is its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from psycopg.rows import class_row

from server.postgres.control import Connection, Pool, transaction

_CLAIM: Final = """
UPDATE trigger_backfills SET owner = %(lease)s, turn_at = clock_timestamp() WHERE trigger_id = (
  SELECT trigger_id FROM trigger_backfills b
  WHERE state = 'running' AND NOT EXISTS (SELECT FROM dispatch_leases l WHERE l.id = b.owner)
  ORDER BY (
    SELECT count(*) FROM trigger_backfills o JOIN dispatch_leases l ON l.id = o.owner
    WHERE o.project_id = b.project_id AND o.state = 'running'
  ), coalesce(turn_at, created_at) LIMIT 1 FOR UPDATE SKIP LOCKED)
AND EXISTS (SELECT FROM dispatch_leases WHERE id = %(lease)s)
RETURNING trigger_id, project_id, start_from, next_sequence, last_sequence, owner
"""
_OWN: Final = "WHERE trigger_id = %(trigger_id)s AND owner = %(owner)s AND state = 'running'"
_MOVE: Final = f"""
UPDATE trigger_backfills SET next_sequence = %(next)s, looked_at = looked_at + %(looked_at)s, fired = fired + %(fired)s
{_OWN}
"""
_BEGIN: Final = f"""
UPDATE trigger_backfills SET next_sequence = %(next)s, truncated = truncated OR %(truncated)s {_OWN}
"""
_NOTE_END: Final = f"UPDATE trigger_backfills SET last_sequence = %(last)s {_OWN}"
_TRUNCATE: Final = f"UPDATE trigger_backfills SET truncated = true {_OWN}"
_END: Final = f"""
UPDATE trigger_backfills SET finished_at = now(), owner = NULL,
  state = CASE WHEN %(state)s <> 'done' THEN 'stopped' WHEN truncated THEN 'truncated' ELSE 'done' END
{_OWN}
"""


@dataclass(slots=True)
class Row:
    """`next_sequence` is None before it has begun, `last_sequence` before the end is noted."""

    trigger_id: str
    project_id: str
    start_from: datetime
    next_sequence: int | None
    last_sequence: int | None
    owner: str


async def claim(pool: Pool, lease: str) -> Row | None:
    """One that nobody works at, of the project that has the fewest at work, the one that has waited longest."""
    async with transaction(pool) as conn:
        return await (
            await conn.cursor(row_factory=class_row(Row)).execute(_CLAIM.encode(), {"lease": lease})
        ).fetchone()


async def note_end(pool: Pool, row: Row, last: int) -> None:
    """What comes after that place meets the trigger without us."""
    await _write(pool, _NOTE_END, row, last=last)
    row.last_sequence = last


async def begin(pool: Pool, row: Row, first: int, *, truncated: bool) -> None:
    """Its first place is known, and so is from now on what is removed before it is read; `truncated`: it may have been
    before."""
    await _write(pool, _BEGIN, row, next=first, truncated=truncated)
    row.next_sequence = first


async def move(conn: Connection, row: Row, following: int, *, looked_at: int, fired: int) -> bool:
    """Whether it still is this process's."""
    given = {"next": following, "looked_at": looked_at, "fired": fired}
    cursor = await conn.execute(_MOVE.encode(), {"trigger_id": row.trigger_id, "owner": row.owner, **given})
    return cursor.rowcount > 0


async def truncate(pool: Pool, row: Row) -> None:
    await _write(pool, _TRUNCATE, row)


async def end(pool: Pool, row: Row, state: str) -> None:
    """`state`: done or stopped."""
    await _write(pool, _END, row, state=state)


async def hand_back(pool: Pool, rows: Sequence[Row]) -> None:
    """For others to go on with."""
    async with transaction(pool) as conn:
        await conn.execute(
            "UPDATE trigger_backfills SET owner = NULL WHERE trigger_id = ANY(%s::uuid[]) AND owner = ANY(%s::uuid[])",
            [[row.trigger_id for row in rows], [row.owner for row in rows]],
        )


async def _write(pool: Pool, query: str, row: Row, **values: object) -> None:
    async with transaction(pool) as conn:
        await conn.execute(query.encode(), {"trigger_id": row.trigger_id, "owner": row.owner, **values})


async def kept_from(pool: Pool) -> int | None:
    """The place in the stream from which on events are still to be read for triggers; None when there are none."""
    async with transaction(pool) as conn:
        cursor = await conn.execute(
            "SELECT min(coalesce(next_sequence, 0)) FROM trigger_backfills WHERE state = 'running'"
        )
        ((found,),) = await cursor.fetchall()
    return None if found is None else int(found)


async def note_removed(pool: Pool, first: int, stored_at: datetime) -> None:
    """The stream is going to begin at the place `first`, the last event before it was stored at `stored_at`: who has
    not come so far is truncated."""
    async with transaction(pool) as conn:
        await conn.execute(
            "UPDATE trigger_backfills SET truncated = true WHERE state = 'running' AND NOT truncated"
            " AND (next_sequence < %s OR next_sequence IS NULL AND start_from <= %s)",
            [first, stored_at],
        )
