"""The ledger for those who ask: which events met which triggers, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from psycopg.rows import dict_row

from server.dispatch.delivery import BRIEF, OUTCOMES, STATES, WHOLE, Delivery, delivery_of
from server.errors import NotFound
from server.events.envelope import parse_event_id
from server.events.types import parse_event_type
from server.fields import parse_choice, parse_id
from server.paging import Page, at, request
from server.postgres.control import Connection, Pool, transaction
from server.runs import rows
from server.runs.record import RunRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which deliveries; what is empty or None does not restrict. As the caller sent it."""

    trigger: str = ""
    event: str = ""
    event_type: str = ""
    state: str = ""
    outcome: str = ""
    since: datetime | None = None  # taken from the stream then or later
    until: datetime | None = None  # taken from the stream before

    def checked(self) -> "Filter":
        """InvalidArgument names the field."""
        if self.event:
            parse_event_id("event", self.event)
        if self.event_type:
            parse_event_type("event_type", self.event_type)
        if self.state:
            parse_choice("state", self.state, STATES)
        if self.outcome:
            parse_choice("outcome", self.outcome, OUTCOMES)
        return replace(self, trigger=parse_id("trigger", self.trigger)) if self.trigger else self


@dataclass(frozen=True, slots=True)
class Shown:
    """A delivery with its attempts and their runs; `event` is the JSON text that came from the stream, None when it is
    not kept."""

    delivery: Delivery
    event: bytes | None


class Deliveries:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def list(self, project_id: str, wanted: Filter, page_size: int = 0, page_token: str = "") -> Page[Delivery]:
        """Newest first, without attempts."""
        wanted = wanted.checked()
        asked = request(f"deliveries of {project_id} {wanted}", page_size, page_token, until=wanted.until)
        clauses, values = where(wanted)
        async with transaction(self._pool) as conn:
            cursor = await conn.cursor(row_factory=dict_row).execute(
                f"SELECT {BRIEF} FROM deliveries WHERE project_id = %s AND (created_at, id) < (%s, %s){clauses}"
                " ORDER BY created_at DESC, id DESC LIMIT %s".encode(),
                [project_id, asked.after.moment, asked.after.id, *values, asked.size + 1],
            )
            found = [delivery_of(row) for row in await cursor.fetchall()]
        return asked.page(found, lambda item: at(item.created_at, item.id))

    async def get(self, project_id: str, delivery_id: str) -> Shown:
        """NotFound for an unknown id."""
        delivery_id = parse_id("delivery_id", delivery_id)
        async with transaction(self._pool) as conn:
            delivery = await read(conn, project_id, delivery_id)
            runs = await _runs(conn, project_id, [item.run_id for item in delivery.history if item.run_id])
            cursor = await conn.execute(
                "SELECT body FROM delivered_events WHERE project_id = %s AND event_id = %s",
                [project_id, delivery.event_id],
                binary=True,
            )
            event = await cursor.fetchone()
        return Shown(delivery.with_runs(runs), bytes(event[0]) if event else None)


async def read(conn: Connection, project_id: str, delivery_id: str, *, lock: bool = False) -> Delivery:
    """The delivery with its attempts; with `lock`, nobody else changes it before the transaction ends. NotFound."""
    cursor = await conn.cursor(row_factory=dict_row).execute(
        f"SELECT {WHOLE} FROM deliveries WHERE id = %s AND project_id = %s{' FOR UPDATE' if lock else ''}".encode(),
        [delivery_id, project_id],
    )
    if (row := await cursor.fetchone()) is None:
        raise NotFound(
            f"The project has no delivery {delivery_id}, or it is kept no more",
            reason="DELIVERY_NOT_FOUND",
            metadata={"delivery_id": delivery_id},
        )
    return delivery_of(row)


def where(wanted: Filter) -> tuple[str, Sequence[object]]:
    """Conditions with their values, but for `until`, where the list begins. Outcome and state, which are
    checked, are in the text, so that the planner sees which partial index fits."""
    conditions = {
        "trigger_id = %s": wanted.trigger or None,
        "event_id = %s": wanted.event or None,
        "event_type = %s": wanted.event_type or None,
        "created_at >= %s": wanted.since,
    }
    given = {condition: value for condition, value in conditions.items() if value is not None}
    text = [*given, *(f"{name} = '{value}'" for name in ("state", "outcome") if (value := getattr(wanted, name)))]
    return "".join(f" AND {condition}" for condition in text), list(given.values())


async def _runs(conn: Connection, project_id: str, run_ids: Sequence[str]) -> dict[str, RunRecord]:
    cursor = await conn.cursor(row_factory=dict_row).execute(
        f"SELECT {rows.BRIEF} FROM runs WHERE id = ANY(%s::uuid[]) AND project_id = %s", [list(run_ids), project_id]
    )
    return {record.run.id: record for record in map(rows.record_of, await cursor.fetchall())}
