"""Dead letters run again: one delivery, or all that a filter chooses.

A delivery that is done never runs again, whatever is asked. One that is replayed keeps its attempts, begins to count
them anew, and is due at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from psycopg.rows import dict_row

from server.clock import Clock, SystemClock
from server.dispatch.deliveries import read
from server.dispatch.delivery import OUTCOMES, Delivery, State
from server.errors import FailedPrecondition, InvalidArgument
from server.events.types import parse_event_type
from server.fields import parse_choice, parse_id, parse_name
from server.paging import EARLIEST, Place, at, before, request
from server.postgres.changes import Changes
from server.postgres.control import Connection, Pool, transaction

TOPIC: Final = "delivery"
"""Of the announcements that wake workers; the key is the project's id."""

REPLAYABLE: Final[tuple[State, ...]] = ("dead", "cancelled", "skipped")
MAX_IDS: Final = 1_000
KEPT_ATTEMPTS: Final = 100
"""The newest, of a delivery that is replayed: its row must not grow for ever."""

BATCH: Final = 1_000
"""Dead letters looked at in one transaction: some tens of milliseconds."""

CALL_S: Final = 5.0
"""How long one call goes on; Envoy waits 30 s for it."""

_SEEN: Final = """
SELECT id, trigger_id, event_type, outcome, CASE WHEN %(reason)s <> '' THEN error END AS error, created_at
FROM deliveries
WHERE project_id = %(project_id)s AND state = 'dead' AND (created_at, id) > (%(after)s, %(after_id)s)
  AND created_at < %(until)s {ids}
ORDER BY created_at, id LIMIT %(batch)s
"""
_AGAIN: Final = f"""
WITH chosen AS (
  SELECT id FROM deliveries d
  WHERE id = ANY(%s::uuid[]) AND state = ANY(%s)
    AND EXISTS (SELECT 1 FROM triggers t WHERE t.id = d.trigger_id AND t.enabled)
    AND EXISTS (SELECT 1 FROM delivered_events e WHERE e.project_id = d.project_id AND e.event_id = d.event_id)
  ORDER BY id FOR UPDATE OF d SKIP LOCKED
)
UPDATE deliveries AS again SET state = 'queued', due_at = now(), attempts = 0, refusals = 0, lease = NULL,
  finished_at = NULL, replays = replays + 1, replayed_at = now(),
  history = jsonb_path_query_array(history, '$[last - {KEPT_ATTEMPTS - 1} to last]')
FROM chosen WHERE again.id = chosen.id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetters:
    """Which dead letters; what is empty or None does not restrict. As the caller sent it."""

    ids: Sequence[str] = ()
    trigger: str = ""
    event_type: str = ""
    outcome: str = ""
    reason: str = ""
    since: datetime | None = None  # taken from the stream then or later
    until: datetime | None = None  # taken from the stream before

    def checked(self) -> "DeadLetters":
        """InvalidArgument names the field."""
        if len(self.ids) > MAX_IDS:
            raise InvalidArgument(
                "ids",
                f"ids has {len(self.ids)} items; at most {MAX_IDS} are allowed",
                used=str(len(self.ids)),
                allowed=str(MAX_IDS),
            )
        if self.event_type:
            parse_event_type("event_type", self.event_type)
        if self.outcome:
            parse_choice("outcome", self.outcome, OUTCOMES)
        return replace(
            self,
            ids=tuple(parse_id(f"ids[{number}]", item) for number, item in enumerate(self.ids)),
            trigger=parse_id("trigger", self.trigger) if self.trigger else "",
            reason=parse_name("reason", self.reason, required=False),
        )

    def admits(self, row: Mapping[str, Any]) -> bool:
        """What the query leaves to be decided, so that each batch looks at so many rows whatever the filter is."""
        return (
            (not self.trigger or row["trigger_id"] == self.trigger)
            and (not self.event_type or row["event_type"] == self.event_type)
            and (not self.outcome or row["outcome"] == self.outcome)
            and (not self.reason or (row["error"] or {}).get("reason") == self.reason)
        )


@dataclass(frozen=True, slots=True)
class Replayed:
    """How many are queued again; with a token the call has to be made again, until it answers none."""

    count: int
    next_page_token: str


class Replayer:
    def __init__(
        self,
        pool: Pool,
        changes: Changes,
        *,
        clock: Clock | None = None,
        batch: int = BATCH,
        call_s: float = CALL_S,
    ) -> None:
        self._pool = pool
        self._changes = changes
        self._clock = clock or SystemClock()
        self._batch = batch
        self._call_s = call_s

    async def replay(self, project_id: str, delivery_id: str) -> Delivery:
        """Queue it again, due at once. FailedPrecondition when it is done or under way, when its trigger is deleted or
        disabled, and when its event is kept no more; NotFound."""
        delivery_id = parse_id("delivery_id", delivery_id)
        async with transaction(self._pool) as conn:
            found = await read(conn, project_id, delivery_id, lock=True)
            if found.state not in REPLAYABLE:
                raise refused(found)
            if await self._again(conn, project_id, [found.id], REPLAYABLE) == 0:
                raise await _why(conn, found)
            return await read(conn, project_id, delivery_id)

    async def replay_all(self, project_id: str, wanted: DeadLetters, page_token: str = "") -> Replayed:
        """Queue dead letters again, oldest first, as many as CALL_S allows; each at most once however often it dies
        meanwhile. Those whose trigger is deleted or disabled stay as they are.

        Unavailable when the database went away: some are queued then, and asking again queues the others.
        """
        wanted = wanted.checked()
        asked = request(f"dead letters of {project_id} {wanted}", 0, page_token, first=EARLIEST)
        deadline_s = self._clock.monotonic_s() + self._call_s
        until, after, count = wanted.until or self._clock.now(), asked.after, 0
        if wanted.since is not None:
            after = max(after, before(wanted.since))
        while True:
            last, replayed = await self._next(project_id, wanted, after, until)
            count += replayed
            if last is None:
                return Replayed(count, "")
            after = last
            if self._clock.monotonic_s() >= deadline_s:
                return Replayed(count, asked.token(after))

    async def _next(
        self, project_id: str, wanted: DeadLetters, after: Place, until: datetime
    ) -> tuple[Place | None, int]:
        """One batch: where it ended, None at the end of all, and how many of it were replayed."""
        async with transaction(self._pool) as conn:
            cursor = await conn.cursor(row_factory=dict_row).execute(
                _SEEN.format(ids="AND id = ANY(%(ids)s::uuid[])" if wanted.ids else "").encode(),
                {
                    "project_id": project_id,
                    "reason": wanted.reason,
                    "after": after.moment,
                    "after_id": after.id,
                    "until": until,
                    "ids": list(wanted.ids),
                    "batch": self._batch,
                },
            )
            seen = await cursor.fetchall()
            chosen = [row["id"] for row in seen if wanted.admits(row)]
            replayed = await self._again(conn, project_id, chosen, ("dead",)) if chosen else 0
        return at(seen[-1]["created_at"], seen[-1]["id"]) if len(seen) == self._batch else None, replayed

    async def _again(self, conn: Connection, project_id: str, ids: Sequence[str], states: Sequence[State]) -> int:
        """How many of them can run and are queued now."""
        cursor = await conn.execute(_AGAIN.encode(), [ids, list(states)])
        if cursor.rowcount:
            await self._changes.announce(conn, TOPIC, project_id)
        return cursor.rowcount


def refused(found: Delivery) -> FailedPrecondition:
    """A delivery in a state out of which it cannot be replayed."""
    why = {
        "done": "is done; what is done does not run twice",
        "held": "is held; resume its trigger to run it",
    }.get(found.state, f"is {found.state} already")
    return FailedPrecondition(
        f"The delivery {found.id} {why}",
        reason="DELIVERY_DONE" if found.state == "done" else "DELIVERY_UNDER_WAY",
        metadata={"delivery_id": found.id, "state": found.state},
    )


async def _why(conn: Connection, found: Delivery) -> FailedPrecondition:
    """What keeps a delivery that may be replayed from running."""
    cursor = await conn.execute("SELECT enabled FROM triggers WHERE id = %s", [found.trigger_id])
    trigger = await cursor.fetchone()
    metadata = {"delivery_id": found.id, "trigger_id": found.trigger_id, "event_id": found.event_id}
    if trigger is None:
        return FailedPrecondition(
            f"The trigger {found.trigger_id} of the delivery {found.id} is deleted",
            reason="TRIGGER_DELETED",
            metadata=metadata,
        )
    if not trigger[0]:
        return FailedPrecondition(
            f"The trigger {found.trigger_id} of the delivery {found.id} is disabled; enable it first",
            reason="TRIGGER_DISABLED",
            metadata=metadata,
        )
    return FailedPrecondition(
        f"The event {found.event_id} of the delivery {found.id} is kept no more",
        reason="EVENT_KEPT_NO_MORE",
        metadata=metadata,
    )
