"""What an event would do to every trigger of a project, and why: asked of the database, not of memory.

    the type ─ other ─▶ TYPE          a tick ─ of another ─▶ TICK          the conditions ─ not all ─▶ CONDITIONS
        └ meant ─▶ the conditions ─ all hold ─▶ disabled: DROPPED   paused: HELD   else FIRES

Triggers whose type is meant come first, then the newest. A large project is cut where it would take too long.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final

from psycopg.rows import class_row

from server.errors import InvalidArgument
from server.events.envelope import Event
from server.fields import parse_id
from server.postgres.control import Pool, transaction
from server.triggers.explanation import ExplainedPredicate, explain
from server.triggers.paths import Envelope
from server.triggers.patterns import CRON, matching
from server.triggers.rows import COLUMNS, Record, trigger_of, unknown
from server.triggers.view import envelope_of

MAX_EXPLAINED: Final = 1_000
MAX_ANSWER_CHARS: Final = 1_500_000
MAX_BUSY_S: Final = 1.0
"""Processor time of one diagnosis: patterns may be slow to search for."""

READ_AT_ONCE: Final = 25

_TRIGGER_CHARS: Final = 500
_PREDICATE_CHARS: Final = 200
"""Of one in an answer, beside its texts."""


class Verdict(StrEnum):
    FIRES = "fires"
    HELD = "held"
    DROPPED = "dropped"
    TYPE = "type_does_not_match"
    TICK = "tick_of_another_trigger"
    CONDITIONS = "conditions_do_not_hold"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Explained:
    record: Record
    verdict: Verdict
    why: str
    conditions_hold: bool
    predicates: Sequence[ExplainedPredicate]

    @property
    def type_matches(self) -> bool:
        return self.verdict not in (Verdict.TYPE, Verdict.UNREADABLE)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`left_out` triggers of the project are not among `triggers`."""

    event: Event
    triggers: Sequence[Explained]
    left_out: int


class Diagnostician:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def diagnose(self, event: Event, trigger_id: str = "") -> Diagnosis:
        """All triggers of the event's project, or that one. NotFound for an unknown id."""
        envelope, patterns = envelope_of(event), frozenset(matching(event.type))
        if trigger_id:
            trigger_id = parse_id("trigger_id", trigger_id)
        ids, total = ([trigger_id], 1) if trigger_id else await self._ids(event.project_id, patterns)
        explained: list[Explained] = []
        budget = _Budget()
        async for record in self._records(event.project_id, ids):
            with budget:
                explained.append(explained_of(record, envelope, meant=record.event_type in patterns))
                budget.chars_left -= _size(explained[-1])
            if budget.is_spent:
                break
            await asyncio.sleep(0)
        if trigger_id and not explained:
            raise unknown(trigger_id)
        return Diagnosis(event, explained, total - len(explained))

    async def _ids(self, project_id: str, patterns: Collection[str]) -> tuple[list[str], int]:
        """Of those to be explained, in their order, and how many there are in all."""
        async with transaction(self._pool) as conn:
            cursor = await conn.execute(
                "SELECT id, count(*) OVER () FROM triggers WHERE project_id = %s"
                " ORDER BY event_type = ANY(%s) DESC, created_at DESC, id DESC LIMIT %s",
                [project_id, [*patterns], MAX_EXPLAINED],
            )
            rows = await cursor.fetchall()
        return [row[0] for row in rows], rows[0][1] if rows else 0

    async def _records(self, project_id: str, ids: list[str]) -> AsyncIterator[Record]:
        """Without those that are deleted meanwhile."""
        for start in range(0, len(ids), READ_AT_ONCE):
            some = ids[start : start + READ_AT_ONCE]
            async with transaction(self._pool) as conn:
                cursor = await conn.cursor(row_factory=class_row(Record)).execute(
                    f"SELECT {COLUMNS} FROM triggers t WHERE t.project_id = %s AND t.id = ANY(%s::uuid[])"
                    " ORDER BY array_position(%s::uuid[], t.id)",
                    [project_id, some, some],
                )
                records = await cursor.fetchall()
            for record in records:
                yield record


def explained_of(record: Record, envelope: Envelope, *, meant: bool) -> Explained:
    """`meant`: whether the trigger's pattern means the event's type."""
    event_type = envelope["type"]
    if not meant:
        return Explained(record, Verdict.TYPE, f"it answers {record.event_type}, and this is {event_type}", False, ())
    try:
        conditions = trigger_of(asdict(record)).conditions
    except (InvalidArgument, ValueError, TypeError) as why:
        return Explained(record, Verdict.UNREADABLE, f"it cannot be read; write it again: {why}", False, ())
    found = explain(conditions, envelope)
    verdict, why_not = _verdict(record, envelope, found.holds)
    return Explained(record, verdict, why_not, found.holds, found.predicates)


def _verdict(record: Record, envelope: Envelope, holds: bool) -> tuple[Verdict, str]:
    if record.event_type == CRON and envelope.get("trigger_id") != record.id:
        return Verdict.TICK, f"a tick runs the trigger that it names, {envelope.get('trigger_id')}"
    if not holds:
        return Verdict.CONDITIONS, "not all of its conditions hold"
    if not record.enabled:
        return Verdict.DROPPED, "it is not enabled"
    if record.paused:
        return Verdict.HELD, "it is paused, and runs the event when it is resumed"
    return Verdict.FIRES, "type and conditions are met"


class _Budget:
    """What may still be spent; use it around each piece of work."""

    def __init__(self) -> None:
        self.chars_left = MAX_ANSWER_CHARS
        self._busy_s = 0.0
        self._began_s = 0.0

    def __enter__(self) -> None:
        self._began_s = time.thread_time()

    def __exit__(self, *_: object) -> None:
        self._busy_s += time.thread_time() - self._began_s

    @property
    def is_spent(self) -> bool:
        return self.chars_left <= 0 or self._busy_s >= MAX_BUSY_S


def _size(explained: Explained) -> int:
    return _TRIGGER_CHARS + sum(
        _PREDICATE_CHARS + len(each.wanted or "") + len(each.actual or "") + len(each.field) + len(each.why)
        for each in explained.predicates
    )
