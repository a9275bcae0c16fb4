"""Rows of triggers: as texts for those who ask for them, and checked again for those who act on them.

A newer version of ours may have written what this one cannot read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

import orjson

from server.errors import NotFound
from server.events.json_text import read
from server.triggers.conditions import ALWAYS
from server.triggers.definition import RetryPolicy, TargetType, Trigger
from server.triggers.parsing import parse
from server.triggers.paths import parse_path
from server.triggers.patterns import CRON, parse_pattern
from server.triggers.retry import parse_retry
from server.triggers.schedule import parse_schedule

COLUMNS: Final = (
    "t.id, t.project_id, t.event_type, t.config::text AS config, t.target_type, t.function_id, t.workflow_id,"
    " t.conditions::text AS conditions, t.enabled, t.paused, t.retry::text AS retry, t.order_key, t.concurrency,"
    " t.since, t.created_at, t.updated_at"
)
"""Of `triggers t`, for `Record` and `trigger_of`."""

NO_CONFIG: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A trigger as it is stored; `config`, `conditions` and `retry` are JSON texts."""

    id: str
    project_id: str
    event_type: str
    config: str
    target_type: TargetType
    function_id: str | None
    workflow_id: str | None
    conditions: str
    enabled: bool
    paused: bool
    retry: str
    order_key: str | None
    concurrency: int | None
    since: datetime
    created_at: datetime
    updated_at: datetime


def trigger_of(row: Mapping[str, Any]) -> Trigger:
    """The trigger of a row of COLUMNS. ValueError or InvalidArgument for one that this version cannot read.

    What triggers have in common is in memory once, as far as that is quickly found.
    """
    event_type = _pattern(row["event_type"])
    config = NO_CONFIG if row["config"] == "{}" else orjson.loads(row["config"])
    if event_type == CRON:
        parse_schedule(config)
    conditions, order_key = row["conditions"], row["order_key"]
    return Trigger(
        id=row["id"],
        project_id=_shared(row["project_id"]),
        event_type=event_type,
        config=config,
        target_type=_shared(row["target_type"]),
        function_id=_shared(row["function_id"]),
        workflow_id=_shared(row["workflow_id"]),
        conditions=ALWAYS if conditions == "[]" else parse(read(conditions.encode()).value),
        enabled=row["enabled"],
        paused=row["paused"],
        retry=_retry(row["retry"]),
        order_key=None if order_key is None else parse_path(order_key, "order_key"),
        order_key_text=_shared(order_key or ""),
        concurrency=row["concurrency"],
        since=_same(row["since"], row["created_at"]),
        created_at=row["created_at"],
        updated_at=_same(row["updated_at"], row["created_at"]),
    )


def unknown(trigger_id: str) -> NotFound:
    return NotFound(
        f"The project has no trigger {trigger_id}", reason="TRIGGER_NOT_FOUND", metadata={"trigger_id": trigger_id}
    )


@lru_cache(maxsize=32_768)
def _shared(value: Any) -> Any:
    """The same text each time."""
    return value


@lru_cache(maxsize=32_768)
def _pattern(event_type: str) -> str:
    return parse_pattern("event_type", event_type)


def _same(moment: Any, other: Any) -> Any:
    return other if moment == other else moment


@lru_cache(maxsize=1_024)
def _retry(text: str) -> RetryPolicy:
    return parse_retry(orjson.loads(text))
