"""Triggers in the control database: every change is one transaction that all processes hear of, then a fence.

When a method returns, every process acts on the change. What a trigger may be is in `drafts`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from psycopg.rows import class_row

from server.clock import Clock, SystemClock
from server.errors import InvalidArgument, Unavailable
from server.events.json_text import Json, read
from server.fields import parse_id
from server.functions.releases import take_turn
from server.log import logger
from server.paging import Page, at, request
from server.postgres.changes import Changes
from server.postgres.control import Connection, Pool, transaction
from server.triggers import backfill
from server.triggers.circles import Circles, Target
from server.triggers.configuration import require_known, same_times
from server.triggers.drafts import Draft, drafted, redrafted
from server.triggers.rows import COLUMNS, Record, unknown
from server.triggers.totals import require_room, total_of
from server.triggers.warnings import stopped, warnings_of

log = logger("triggers")

KEEP_HOURS: Final = 72.0
"""How far a new trigger may reach back, unless told otherwise."""

ROW_BYTES: Final = 1_024
"""Of a trigger as it is listed, its conditions and its config apart."""

_TARGETS: Final[Mapping[str, str]] = {
    "function_id": "SELECT FROM functions WHERE id = %s AND project_id = %s AND deleted_at IS NULL FOR KEY SHARE",
    "workflow_id": "SELECT FROM workflow_definitions WHERE id = %s AND project_id = %s FOR KEY SHARE",
}
_WRITTEN: Final = (
    *("event_type", "config", "target_type", "function_id", "workflow_id", "conditions", "enabled", "paused"),
    *("retry", "order_key", "concurrency"),
)
_LATER: Final = "updated_at = greatest(now(), updated_at + interval '1 microsecond')"
"""Never the same again: caches tell by it whether they have a trigger as it is."""


class Triggers:
    def __init__(
        self, pool: Pool, changes: Changes, *, events_keep_hours: float = KEEP_HOURS, clock: Clock | None = None
    ) -> None:
        self._pool = pool
        self._changes = changes
        self._keep_hours = events_keep_hours
        self._clock = clock or SystemClock()
        self._circles = Circles()

    async def create(self, project_id: str, members: Mapping[str, Json]) -> Record:
        """InvalidArgument names the member; its reason is TARGET_NOT_FOUND when the project has no such function or
        workflow. ResourceExhausted when the project has enough triggers, or large enough ones. With `start_from`
        among the members it begins with events of the past; ResourceExhausted when enough of them do."""
        members, given = backfill.taken_out(members)
        draft = drafted(members)
        require_known(draft.event_type, draft.config.value, self._keep_hours)
        start = None if given is None else backfill.start_of(given, draft, self._clock.now(), self._keep_hours)
        async with transaction(self._pool) as conn:
            await take_turn(conn, project_id)
            await _require_target(conn, project_id, draft)
            total = await total_of(conn, project_id)
            record = await _one(
                conn,
                f"INSERT INTO triggers AS t (project_id, {', '.join(_WRITTEN)})"
                f" VALUES (%s{', %s' * len(_WRITTEN)}) RETURNING {COLUMNS}",
                [project_id, *_values(draft)],
            )
            assert record is not None
            await require_room(conn, project_id, total)
            if start is not None:
                record = replace(record, backfill=await backfill.insert(conn, project_id, record.id, start))
            await self._announce(conn, record)
        await self._changes.fence()
        return await self._warned(record, draft)

    async def get(self, project_id: str, trigger_id: str) -> Record:
        """NotFound for an unknown id, as everywhere here."""
        trigger_id = parse_id("trigger_id", trigger_id)
        async with transaction(self._pool) as conn:
            record = _found(await _select(conn, project_id, trigger_id), trigger_id)
            return replace(
                record,
                backfill=await backfill.find(conn, trigger_id),
                warnings=await stopped(conn, project_id, trigger_id),
            )

    async def list(self, project_id: str, page_size: int = 0, page_token: str = "") -> Page[Record]:
        """Newest first."""
        asked = request(f"triggers of {project_id}", page_size, page_token)
        async with transaction(self._pool) as conn:
            cursor = await conn.cursor(row_factory=class_row(Record)).execute(
                f"SELECT {COLUMNS} FROM triggers t WHERE t.project_id = %s AND (t.created_at, t.id) < (%s, %s)"
                " ORDER BY t.created_at DESC, t.id DESC LIMIT %s",
                [project_id, asked.after.moment, asked.after.id, asked.size + 1],
            )
            records = await cursor.fetchall()
        return asked.page(records, lambda record: at(record.created_at, record.id), weigh=_bytes_of)

    async def update(self, project_id: str, trigger_id: str, members: Mapping[str, Json]) -> Record:
        """Change what is given; what is absent stays. InvalidArgument and ResourceExhausted as for
        `create`."""
        trigger_id = parse_id("trigger_id", trigger_id)
        async with transaction(self._pool) as conn:
            await take_turn(conn, project_id)
            before = _draft(_found(await _select(conn, project_id, trigger_id, lock=True), trigger_id))
            after = redrafted(before, members)
            if "config" in members or "event_type" in members:
                require_known(after.event_type, after.config.value, self._keep_hours)
            if after.target != before.target:
                await _require_target(conn, project_id, after)
            total = await total_of(conn, project_id)
            since = "now()" if _begins_anew(before, after) else "since"
            record = await self._updated(
                conn,
                project_id,
                trigger_id,
                f"{', '.join(f'{name} = %s' for name in _WRITTEN)}, since = {since}",
                _values(after),
            )
            await require_room(conn, project_id, total)
        await self._changes.fence()
        return await self._warned(record, after)

    async def pause(self, project_id: str, trigger_id: str) -> Record:
        """Hold its events from now on. Idempotent."""
        return await self._set_paused(project_id, trigger_id, True)

    async def resume(self, project_id: str, trigger_id: str) -> Record:
        """Run what was held, and what comes. Idempotent."""
        return await self._set_paused(project_id, trigger_id, False)

    async def delete(self, project_id: str, trigger_id: str) -> None:
        trigger_id = parse_id("trigger_id", trigger_id)
        async with transaction(self._pool) as conn:
            _found(
                await _one(
                    conn,
                    f"DELETE FROM triggers t WHERE t.project_id = %s AND t.id = %s RETURNING {COLUMNS}",
                    [project_id, trigger_id],
                ),
                trigger_id,
            )
            await self._changes.announce(conn, "trigger", f"{project_id}/{trigger_id}")
        await self._changes.fence()

    async def _set_paused(self, project_id: str, trigger_id: str, paused: bool) -> Record:
        trigger_id = parse_id("trigger_id", trigger_id)
        async with transaction(self._pool) as conn:
            record = await self._updated(conn, project_id, trigger_id, "paused = %s", [paused])
        await self._changes.fence()
        return record

    async def _updated(
        self, conn: Connection, project_id: str, trigger_id: str, assignments: str, values: Sequence[object]
    ) -> Record:
        record = _found(
            await _one(
                conn,
                f"UPDATE triggers t SET {assignments}, {_LATER} WHERE t.project_id = %s AND t.id = %s"
                f" RETURNING {COLUMNS}",
                [*values, project_id, trigger_id],
            ),
            trigger_id,
        )
        await self._announce(conn, record)
        return record

    async def _warned(self, record: Record, draft: Draft) -> Record:
        """It is stored by then; without warnings when the database is away."""
        target = Target(draft.function_id, draft.workflow_id)
        try:
            async with transaction(self._pool) as conn:
                found = await warnings_of(
                    conn, self._circles, record.project_id, draft.event_type, draft.config.value, target
                )
        except Unavailable as why:
            log.warning("triggers.unwarned", f"Whether a trigger feeds itself cannot be seen now: {why}", id=record.id)
            return record
        return replace(record, warnings=found)

    async def _announce(self, conn: Connection, record: Record) -> None:
        await self._changes.announce(conn, "trigger", f"{record.project_id}/{record.id}")


async def _select(conn: Connection, project_id: str, trigger_id: str, *, lock: bool = False) -> Record | None:
    return await _one(
        conn,
        f"SELECT {COLUMNS} FROM triggers t WHERE t.project_id = %s AND t.id = %s{' FOR UPDATE' if lock else ''}",
        [project_id, trigger_id],
    )


async def _one(conn: Connection, query: str, params: Sequence[object]) -> Record | None:
    cursor = await conn.cursor(row_factory=class_row(Record)).execute(query.encode(), params)
    return await cursor.fetchone()


def _found(record: Record | None, trigger_id: str) -> Record:
    if record is None:
        raise unknown(trigger_id)
    return record


async def _require_target(conn: Connection, project_id: str, draft: Draft) -> None:
    field, target_id = draft.target
    cursor = await conn.execute(_TARGETS[field].encode(), [target_id, project_id])
    if cursor.rowcount == 0:
        raise InvalidArgument(
            field,
            f"{field} is {target_id}; the project has no such {draft.target_type}",
            reason="TARGET_NOT_FOUND",
            value=str(target_id),
        )


def _begins_anew(before: Draft, after: Draft) -> bool:
    """Whether its schedule counts from now: it was enabled, or its times are other ones."""
    return (
        (after.enabled and not before.enabled)
        or after.event_type != before.event_type
        or not same_times(before.config.value, after.config.value)
    )


def _values(draft: Draft) -> list[object]:
    """In the order of _WRITTEN."""
    values = [getattr(draft, name) for name in _WRITTEN]
    return [value.text if isinstance(value, Json) else value for value in values]


def _draft(record: Record) -> Draft:
    return Draft(
        event_type=record.event_type,
        config=read(record.config.encode()),
        target_type=record.target_type,
        function_id=record.function_id,
        workflow_id=record.workflow_id,
        conditions=read(record.conditions.encode()),
        enabled=record.enabled,
        paused=record.paused,
        retry=read(record.retry.encode()),
        order_key=record.order_key,
        concurrency=record.concurrency,
    )


def _bytes_of(record: Record) -> int:
    return ROW_BYTES + len(record.conditions) + len(record.config)
