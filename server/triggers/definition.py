"""A trigger as it is stored: what it answers, under which conditions, with what, and how a failure is dealt with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

from engines.contract import Outcome
from server.triggers.bridge import Bridge
from server.triggers.conditions import AllOf, Condition
from server.triggers.paths import Path
from server.triggers.row_changes import NONE

TargetType = Literal["function", "workflow"]

RETRIED: Final = frozenset((Outcome.EXCEPTION, Outcome.WALL_LIMIT, Outcome.CRASHED, Outcome.OVERLOADED))
"""Outcomes after which a delivery is tried again unless its trigger says otherwise."""

NEVER_RETRIED: Final = frozenset((Outcome.OK, Outcome.LOAD_FAILED, Outcome.FUEL_LIMIT, Outcome.CANCELLED))
"""They would end the same way again, or were meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """The wait before attempt n + 1 is backoff_ms * 2^(n - 1), at most max_backoff_ms, with full jitter.

    No attempt begins more than `max_age_s` after the event was taken up. A refusal for want of room (`overloaded`) is
    no attempt and does not count against `attempts`.
    """

    attempts: int = 5  # 1 to 20
    backoff_ms: int = 1_000  # 10 to 3,600,000
    max_backoff_ms: int = 300_000  # backoff_ms to 86,400,000
    max_age_s: int = 86_400  # 1 to 604,800
    on: frozenset[Outcome] = RETRIED


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """`config`, `conditions` and `order_key` as they were checked; `restrictions` and `bridge` are what `config` asks
    for. `since`: when it was created or enabled, or its schedule or zone written, whichever is last."""

    id: str
    project_id: str
    event_type: str
    config: Mapping[str, Any]
    target_type: TargetType
    function_id: str | None
    workflow_id: str | None
    conditions: AllOf
    restrictions: Mapping[str, Condition] = field(default_factory=lambda: NONE)
    bridge: Bridge | None = None
    enabled: bool
    paused: bool
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    order_key: Path | None = None
    order_key_text: str = ""
    concurrency: int | None = None
    since: datetime
    created_at: datetime
    updated_at: datetime

    @property
    def target_id(self) -> str:
        found = self.function_id or self.workflow_id
        assert found is not None
        return found
