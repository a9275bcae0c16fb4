"""What it costs to find the triggers of an event, with 10 of them in the project and with 100,000."""

import gc
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import orjson

from server.triggers.cache import Armed, ProjectTriggers
from server.triggers.matching import Matcher
from server.triggers.parsing import parse
from server.triggers.paths import Envelope
from server.triggers.rows import trigger_of
from tests.bench.rows import Row

TITLE = "Matching events with triggers"
FEW: Final = 10
MANY: Final = 100_000
EVENTS: Final = 500
ROUNDS: Final = 10
PROJECT: Final = "7f1c2d5e-9a56-4c0b-8f43-5d3f6c1e2a90"
TYPE: Final = "cdc.INSERT.orders"

Conditions = Callable[[int], list[object]]


def equal(index: int) -> list[object]:
    return [{"field": "customer_id", "op": "eq", "value": f"c-{index}"}]


def listed(index: int) -> list[object]:
    return [{"field": "customer_id", "op": "in", "value": [f"c-{index}", f"d-{index}", f"e-{index}"]}]


def shared(index: int) -> list[object]:
    """A condition that all have, one that tells them apart, and one that is compared otherwise."""
    return [
        {"field": "status", "op": "eq", "value": "paid"},
        {"field": "region", "op": "eq", "value": index},
        {"field": "amount", "op": "gt", "value": 100},
    ]


def greater(index: int) -> list[object]:
    return [{"field": "amount", "op": "gt", "value": 100 if index == 7 else 1000}]


KINDS: Final[dict[str, Conditions]] = {"eq": equal, "in of 3": listed, "eq, eq and gt": shared}


async def measure() -> list[Row]:
    """About 10 s."""
    rows: list[Row] = []
    for name, conditions in KINDS.items():
        few_us, many_us = event_us(matcher(FEW, conditions)), event_us(matcher(MANY, conditions))
        rows.append(Row(f"an event, 100,000 triggers: {name}", many_us, "µs", f"< {2 * few_us:.1f}", baseline=few_us))
    scanned_us = event_us(matcher(FEW, greater)) / FEW
    rows.append(Row("a trigger that no equality can exclude", scanned_us, "µs"))
    rows.append(Row("memory a trigger of one eq", trigger_bytes(equal), "B"))
    rows.append(Row("memory a trigger in the cache", cached_bytes(), "B"))
    return rows


def matcher(count: int, conditions: Conditions) -> Matcher:
    made = Matcher()
    for index in range(count):
        made.add(f"trigger-{index}", TYPE, parse(conditions(index)))
    return made


def event_us(triggers: Matcher) -> float:
    """CPU of an event that fires one trigger, in the best of some rounds: others use this machine too."""
    event: Envelope = {
        "id": "0/16B3748-1",
        "type": TYPE,
        "project_id": PROJECT,
        "time": "2026-01-31T09:00:00Z",
        "source": "cdc",
        "data": {"id": 1, "customer_id": "c-7", "status": "paid", "amount": "120.50", "region": 7, "note": "x" * 100},
        "op": "INSERT",
        "schema": "proj_1",
        "table": "orders",
    }
    assert triggers.match(event) == ["trigger-7"]
    gc.collect()
    return min(_round_us(triggers, event) for _ in range(ROUNDS))


def _round_us(triggers: Matcher, event: Envelope) -> float:
    began_s = time.process_time()
    for _ in range(EVENTS):
        triggers.match(event)
    return (time.process_time() - began_s) * 1e6 / EVENTS


def trigger_bytes(conditions: Conditions) -> float:
    """Of one among 10,000, its conditions and its place in the index included."""
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    kept = matcher(10_000, conditions)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / len(kept)


def cached_bytes() -> float:
    """Of one among 10,000 of a project, as `server.triggers.cache` keeps it: all of it, with one eq."""
    now = datetime.now(UTC)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    kept = ProjectTriggers()
    for index in range(10_000):
        kept.put(Armed(trigger_of(_row(index, now)), "on-order"))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / len(kept)


def _row(index: int, now: datetime) -> dict[str, object]:
    return {
        "id": str(UUID(int=index)),
        "project_id": PROJECT,
        "event_type": TYPE,
        "config": "{}",
        "target_type": "function",
        "function_id": PROJECT,
        "workflow_id": None,
        "conditions": orjson.dumps(equal(index)).decode(),
        "enabled": True,
        "paused": False,
        "retry": "{}",
        "order_key": None,
        "concurrency": None,
        "since": now,
        "created_at": now,
        "updated_at": now + timedelta(microseconds=index + 1),
    }
