"""A delivery as the ledger has it: one pair of event and trigger, and every attempt at it.

held ◀──▶ queued ──▶ running ──▶ done        it never runs again
             ▲           ├─────▶ dead        it failed, and is not tried again by itself
             ├───────────┴─────▶ cancelled   by a caller or with its trigger; also out of queued and held
             │                   skipped     it was not to run
             └──replay── dead, cancelled, skipped
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args

from engines.contract import Outcome
from server.dispatch.ledger import LOST
from server.runs.record import RunRecord

State = Literal["queued", "running", "held", "done", "dead", "skipped", "cancelled"]
STATES: Final = get_args(State)

OUTCOMES: Final = (*(outcome.value for outcome in Outcome), LOST, "missed", "overlapped")
"""Of attempts that ended, and of ticks of a schedule that were skipped."""

BRIEF: Final = (
    "id, project_id, trigger_id, event_id, event_type, state, order_key, due_at, run_id, began_at, attempts, replays,"
    " outcome, error, created_at, finished_at, replayed_at"
)
"""Columns of a delivery without its ended attempts."""

WHOLE: Final = f"{BRIEF}, history"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Stable `reason` as in google.rpc.ErrorInfo."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """`number` counts from 1, and again from 1 after a replay. `outcome` and `ended_at` are empty while it runs.

    `run` is its record without console lines; None when that is not kept, and of a workflow's run.
    """

    number: int
    run_id: str
    began_at: datetime | None
    ended_at: datetime | None = None
    outcome: str = ""
    error: Trouble | None = None
    run: RunRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """`attempts` counts those begun since it was made or replayed, `history` holds all that are kept, oldest first."""

    id: str
    project_id: str
    trigger_id: str
    event_id: str
    event_type: str
    state: State
    order_key: str | None
    due_at: datetime
    run_id: str | None
    began_at: datetime | None
    attempts: int
    replays: int
    outcome: str
    error: Trouble | None
    created_at: datetime
    finished_at: datetime | None
    replayed_at: datetime | None
    history: Sequence[Attempt] = field(default=())

    def with_runs(self, runs: Mapping[str, RunRecord]) -> "Delivery":
        """The delivery with the records of its attempts' runs, by their ids."""
        return replace(self, history=[replace(item, run=runs.get(item.run_id)) for item in self.history])


def delivery_of(row: Mapping[str, Any]) -> Delivery:
    """The delivery of a row with the columns BRIEF, or WHOLE: then the present attempt is the last of its history."""
    values = {name: row[name] for name in BRIEF.split(", ")}
    values["error"] = _trouble(row["error"] or {})
    found = Delivery(**values)
    if "history" not in row:
        return found
    history = [_attempt(item) for item in row["history"]]
    if found.state == "running" and found.run_id is not None:
        history.append(Attempt(number=found.attempts, run_id=found.run_id, began_at=found.began_at))
    return replace(found, history=history)


def _attempt(item: Mapping[str, Any]) -> Attempt:
    return Attempt(
        number=item["attempt"],
        run_id=item.get("run_id") or "",
        began_at=_moment(item.get("began_at")),
        ended_at=_moment(item.get("ended_at")),
        outcome=item["outcome"],
        error=_trouble(item),
    )


def _trouble(item: Mapping[str, Any]) -> Trouble | None:
    reason, message = item.get("reason"), item.get("message")
    return Trouble(reason=reason or "", message=message or "") if reason or message else None


def _moment(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value).astimezone(UTC)
