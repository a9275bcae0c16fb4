"""What a trigger would have fired on: the events that the stream still has, of its types, asked one after the other.

Nothing runs and nothing is kept. The stream is every project's: what is of another is passed over unseen.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import uuid4

from psycopg.rows import class_row

from server.clock import Clock, SystemClock
from server.errors import InvalidArgument, Unavailable
from server.events import stream
from server.events.bus import EventBus
from server.events.envelope import Event
from server.events.history import History, Past
from server.events.json_text import Json
from server.fields import parse_id
from server.paging import EARLIEST, Place, request
from server.postgres.control import Pool, transaction
from server.triggers.definition import Trigger
from server.triggers.drafts import DRAWN, drawn
from server.triggers.explanation import ExplainedPredicate, explain
from server.triggers.firing import fires, pattern_of, seen_by
from server.triggers.patterns import CRON
from server.triggers.rows import COLUMNS, Record, trigger_of, unknown
from server.triggers.view import envelope_of

MOST: Final = 100_000
"""Messages that one call looks at, other projects' included."""

CALL_S: Final = 5.0
TURN_S: Final = 0.005
"""How long events are looked at before others on the event loop have their turn."""

AT_ONCE: Final = 2
"""Calls of one process that read the stream; others wait."""

MAX_SAMPLES: Final = 20
DEFAULT_SAMPLES: Final = 5
MAX_DATA_CHARS: Final = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """`draft`: members of a trigger, `event_type`, and perhaps `config` and `conditions`; or the id of one. Those
    events count that came to the stream from `since` on and before `until`."""

    draft: Mapping[str, Json] = field(default_factory=dict)
    trigger_id: str = ""
    since: datetime | None = None
    until: datetime | None = None
    samples: int = 0
    page_token: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """An event that it would have fired on. `data` is JSON as the trigger sees it; empty when it is long."""

    event: Event
    type: str
    sequence: int
    stored_at: datetime
    data: str
    predicates: Sequence[ExplainedPredicate]


@dataclass(slots=True)
class Backtest:
    """`looked_at` are the project's events of its types; with a token there are more to look at."""

    looked_at: int = 0
    fired: int = 0
    samples: list[Sample] = field(default_factory=list)
    next_page_token: str = ""


class Backtester:
    def __init__(
        self, pool: Pool, bus: EventBus, *, clock: Clock | None = None, most: int = MOST, call_s: float = CALL_S
    ) -> None:
        self._pool = pool
        self._bus = bus
        self._clock = clock or SystemClock()
        self._most = most
        self._call_s = call_s
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def ask(self, project_id: str, question: Question) -> Backtest:
        """InvalidArgument names the member; NotFound for an unknown trigger; Unavailable while NATS is away."""
        if not 0 <= question.samples <= MAX_SAMPLES:
            raise InvalidArgument("samples", f"samples is {question.samples}; it must be 0 to {MAX_SAMPLES}")
        if question.since is None:
            raise InvalidArgument("since", "since is missing; it is the time from which on events count")
        if question.until is not None and question.until <= question.since:
            raise InvalidArgument("until", "until is not later than since")
        trigger = await self._trigger(project_id, question)
        texts = {name: member.text for name, member in question.draft.items()}
        name = f"backtest of {project_id} {question.trigger_id} {texts} {question.since} {question.until}"
        asked = request(name, 0, question.page_token, first=EARLIEST)
        try:
            async with self._turns, self._history(trigger, question.since, asked.after.order) as history:
                found, last = await self._look(history, trigger, question)
        except stream.AWAY as why:
            raise Unavailable(
                "The stream of events cannot be read now; try again",
                reason="EVENT_BUS_UNAVAILABLE",
                retry_after_ms=1_000,
            ) from why
        found.next_page_token = "" if last is None else asked.token(Place(last, EARLIEST.id))
        return found

    def _history(self, trigger: Trigger, since: datetime, after: int) -> History:
        pattern = pattern_of(trigger)
        return History(self._bus, pattern, sequence=after + 1) if after else History(self._bus, pattern, since=since)

    async def _trigger(self, project_id: str, question: Question) -> Trigger:
        if bool(question.trigger_id) == bool(question.draft):
            raise InvalidArgument("trigger_id", f"Give either trigger_id or a draft of a trigger: {', '.join(DRAWN)}")
        if not question.trigger_id:
            draft = drawn(question.draft)
            record = _record(project_id, self._clock.now(), draft.event_type, draft.config.text, draft.conditions.text)
        else:
            record = await self._stored(project_id, parse_id("trigger_id", question.trigger_id))
        if record["event_type"] == CRON:
            raise InvalidArgument("event_type", "event_type is cron; preview tells when a schedule fires")
        return trigger_of(record)

    async def _stored(self, project_id: str, trigger_id: str) -> dict[str, Any]:
        async with transaction(self._pool) as conn:
            cursor = await conn.cursor(row_factory=class_row(Record)).execute(
                f"SELECT {COLUMNS} FROM triggers t WHERE t.project_id = %s AND t.id = %s", [project_id, trigger_id]
            )
            if (found := await cursor.fetchone()) is None:
                raise unknown(trigger_id)
        given = _record(project_id, self._clock.now(), found.event_type, found.config, found.conditions)
        return given | {"id": found.id}

    async def _look(self, history: History, trigger: Trigger, question: Question) -> tuple[Backtest, int | None]:
        """What was found, and where to go on if there is more."""
        found, seen = Backtest(), 0
        deadline_s = self._clock.monotonic_s() + self._call_s
        turn_s = self._clock.monotonic_s() + TURN_S
        while past := await history.some():
            for message in past:
                if question.until is not None and message.stored_at >= question.until:
                    return found, None
                _count(message, trigger, question.samples, found)
                seen += 1
                now_s = self._clock.monotonic_s()
                if seen == self._most or now_s >= deadline_s:
                    return found, message.sequence
                if now_s >= turn_s:
                    await asyncio.sleep(0)
                    turn_s = self._clock.monotonic_s() + TURN_S
        return found, None


def _count(message: Past, trigger: Trigger, samples: int, found: Backtest) -> None:
    if trigger.project_id.encode() not in message.body:
        return
    try:
        event = stream.event_of(message.subject, message.body)
    except InvalidArgument:
        return
    if event.project_id != trigger.project_id:
        return
    found.looked_at += 1
    envelope = envelope_of(event)
    if not fires(trigger, envelope):
        return
    found.fired += 1
    if len(found.samples) < samples:
        seen = seen_by(trigger, envelope) or envelope
        beside = {f"config.{key}": condition for key, condition in trigger.restrictions.items()}
        explained = explain(trigger.conditions, seen, beside=beside)
        text = event.data.text if trigger.bridge is None else json.dumps(seen["data"])
        data = text if len(text) <= MAX_DATA_CHARS else ""
        sample = Sample(event, seen["type"], message.sequence, message.stored_at, data, explained.predicates)
        found.samples.append(sample)


def _record(project_id: str, now: datetime, event_type: str, config: str, conditions: str) -> dict[str, Any]:
    """A row of a trigger, in which only that matters."""
    return {
        "id": str(uuid4()),
        "project_id": project_id,
        "event_type": event_type,
        "config": config,
        "target_type": "function",
        "function_id": str(uuid4()),
        "workflow_id": None,
        "conditions": conditions,
        "enabled": True,
        "paused": False,
        "retry": "{}",
        "order_key": None,
        "concurrency": None,
        "since": now,
        "created_at": now,
        "updated_at": now,
    }
