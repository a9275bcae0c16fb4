"""What is counted, under which name. README's table is made from FAMILIES; buckets are upper bounds in seconds.

No label carries text that a tenant chose: a label's values are known when the program is written, so that there are
never many series. A family that gets more than MOST_SERIES nevertheless shows the rest of them as "other".
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

from server.telemetry.numbers import Numbers

MOST_SERIES: Final = 512
OTHER: Final = "other"

RUN_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""From a warm no-op to the longest tier's wall clock."""

WAIT_S: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
"""Of the queue, whose limit is 5 s by default, and of making or binding a sandbox."""

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Family:
    name: str
    kind: Kind
    labels: tuple[str, ...]
    text: str
    buckets_s: tuple[float, ...] = ()

    @property
    def doubles(self) -> int:
        """How many a series has: a histogram its sum, then a count for each bucket and for what is above them."""
        return len(self.buckets_s) + 2 if self.kind == "histogram" else 1


INVOCATIONS: Final = Family(
    "atlas_invocations_total", "counter", ("runtime", "outcome"), "Runs that ended, by how they ended"
)
INVOCATION_S: Final = Family(
    "atlas_invocation_duration_seconds",
    "histogram",
    ("runtime",),
    "Wall clock of a run in its sandbox, host calls included, queue and boot not",
    RUN_S,
)
QUEUE_S: Final = Family(
    "atlas_invocation_queue_seconds", "histogram", ("runtime",), "How long a run waited for a free sandbox", WAIT_S
)
BOOT_S: Final = Family(
    "atlas_invocation_boot_seconds",
    "histogram",
    ("runtime",),
    "How long making or binding its sandbox took; 0 when it was warm",
    WAIT_S,
)
CHILDREN: Final = Family(
    "atlas_sandbox_children", "gauge", ("runtime", "state"), "Sandbox processes by state; waiting: runs without one"
)
CRASHES: Final = Family("atlas_sandbox_crashes_total", "counter", ("runtime",), "Sandbox processes that died by fault")
HOST_CALLS: Final = Family(
    "atlas_host_calls_total", "counter", ("op", "ok"), "Calls of atlas.* that ended; ok is true or false"
)
HOST_CALL_S: Final = Family(
    "atlas_host_call_duration_seconds", "histogram", ("op",), "How long they took, their turn awaited included", RUN_S
)
RPCS: Final = Family("atlas_rpc_total", "counter", ("method", "code"), "Calls of our API by gRPC method and status")
RPC_S: Final = Family(
    "atlas_rpc_duration_seconds", "histogram", ("method",), "How long they took; of streams, until their end", RUN_S
)
RECORDS_DROPPED: Final = Family(
    "atlas_run_records_dropped_total", "counter", (), "Records of runs given up because they could not be written"
)
EVENTS: Final = Family(
    "atlas_events_total", "counter", ("result",), "Events taken from the stream: matched, unmatched or parked"
)
DELIVERIES: Final = Family(
    "atlas_deliveries_total",
    "counter",
    ("outcome",),
    "Attempts at deliveries that ended: done, retried, refused for want of room, dead or cancelled",
)
DELIVERY_LAG_S: Final = Family(
    "atlas_delivery_lag_seconds", "histogram", (), "From the stream, or the ledger, to the first attempt", RUN_S
)
DELIVERIES_RUNNING: Final = Family("atlas_deliveries_running", "gauge", (), "Deliveries that run now")
DELIVERIES_QUEUED: Final = Family(
    "atlas_deliveries_queued", "gauge", (), "Deliveries that are queued: to run at once, in their order, or later"
)
OUTBOX_WAITING: Final = Family(
    "atlas_outbox_waiting",
    "gauge",
    ("outbox",),
    "Committed events that wait to be published, of functions and of storage, counted up to 100,000",
)
OUTBOX_OLDEST_S: Final = Family(
    "atlas_outbox_oldest_seconds", "gauge", ("outbox",), "How long the oldest of them has waited"
)
OUTBOX_EVENTS: Final = Family(
    "atlas_outbox_events_total",
    "counter",
    ("outbox", "result"),
    "Committed events that were published, or refused: set aside because the stream never takes them",
)
OUTBOX_FAILURES: Final = Family(
    "atlas_outbox_failures_total", "counter", ("outbox",), "Tries to publish committed events that failed: they wait on"
)
EVENT_LOOPS: Final = Family(
    "atlas_event_loops_total",
    "counter",
    (),
    "Deliveries not run because of ATLAS_MAX_EVENT_DEPTH: triggers in a circle",
)
CRON_TICKS: Final = Family(
    "atlas_cron_ticks_total", "counter", ("verdict",), "Ticks of cron triggers: fired, missed or overlapped"
)
CRON_LATENESS_S: Final = Family(
    "atlas_cron_lateness_seconds",
    "histogram",
    (),
    "From the minute of a tick that fired to its place in the stream",
    RUN_S,
)
WORKFLOW_RUNS: Final = Family(
    "atlas_workflow_runs_total", "counter", ("state",), "Workflow runs that ended: succeeded, failed or cancelled"
)
WORKFLOW_STEPS: Final = Family(
    "atlas_workflow_steps_total",
    "counter",
    ("type", "outcome"),
    "Attempts at steps of workflows: succeeded, failed, retried, refused (no room), waiting or lost",
)
WORKFLOW_STEP_S: Final = Family(
    "atlas_workflow_step_duration_seconds", "histogram", ("type",), "How long attempts at steps took", RUN_S
)
WORKFLOW_RUNNING: Final = Family("atlas_workflow_steps_running", "gauge", (), "Steps of workflows that run now")
CDC_CHANGES: Final = Family(
    "atlas_cdc_changes_total", "counter", ("op",), "Changes of tables that became events, by operation; gap: cdc.gap"
)
CDC_GAPS: Final = Family(
    "atlas_cdc_gaps_total", "counter", (), "Times that changes were lost to events, and the projects told so"
)
CDC_SLOT: Final = Family(
    "atlas_cdc_slot",
    "gauge",
    ("state",),
    "1 for the state of the replication slot that a relay reads; all 0: none does",
)
CDC_LAG_BYTES: Final = Family(
    "atlas_cdc_lag_bytes", "gauge", (), "Write-ahead log written and not yet confirmed by the relay"
)
CDC_WAL_HELD_BYTES: Final = Family(
    "atlas_cdc_wal_held_bytes", "gauge", (), "Write-ahead log that Postgres keeps for the relay"
)
CDC_HELD: Final = Family(
    "atlas_cdc_held_projects", "gauge", (), "Projects kept out of their database until what they wrote is published"
)
CDC_HOLDS: Final = Family(
    "atlas_cdc_holds_total", "counter", (), "Times that a project was so held, because it outran change capture"
)

FAMILIES: Final[Mapping[str, Family]] = {
    family.name: family
    for family in (
        *(INVOCATIONS, INVOCATION_S, QUEUE_S, BOOT_S, CHILDREN, CRASHES),
        *(HOST_CALLS, HOST_CALL_S, RPCS, RPC_S, RECORDS_DROPPED),
        *(EVENTS, DELIVERIES, DELIVERY_LAG_S, DELIVERIES_RUNNING, DELIVERIES_QUEUED, EVENT_LOOPS),
        *(OUTBOX_WAITING, OUTBOX_OLDEST_S, OUTBOX_EVENTS, OUTBOX_FAILURES),
        *(CRON_TICKS, CRON_LATENESS_S),
        *(WORKFLOW_RUNS, WORKFLOW_STEPS, WORKFLOW_STEP_S, WORKFLOW_RUNNING),
        *(CDC_CHANGES, CDC_GAPS, CDC_SLOT, CDC_LAG_BYTES, CDC_WAL_HELD_BYTES, CDC_HELD, CDC_HOLDS),
    )
}


class Number:
    """One counter or gauge."""

    __slots__ = ("_at", "_doubles", "_followed")

    def __init__(self, doubles: "memoryview[float]", at: int, _family: Family) -> None:
        self._doubles, self._at = doubles, at
        self._followed = 0.0

    def add(self, amount: float = 1.0) -> None:
        self._doubles[self._at] += amount

    def set(self, value: float) -> None:
        self._doubles[self._at] = value

    def follow(self, total: float) -> None:
        """Add by how much a total that this process keeps elsewhere has grown since it was last told here."""
        self.add(total - self._followed)
        self._followed = total


class Histogram:
    __slots__ = ("_at", "_bounds_s", "_doubles")

    def __init__(self, doubles: "memoryview[float]", at: int, family: Family) -> None:
        self._doubles, self._at, self._bounds_s = doubles, at, family.buckets_s

    def observe(self, seconds: float) -> None:
        doubles, at = self._doubles, self._at
        doubles[at] += seconds
        doubles[at + 1 + bisect_left(self._bounds_s, seconds)] += 1.0


S = TypeVar("S", bound=Number | Histogram)


class Series(Generic[S]):
    """A family's series: `metrics.rpcs(method, code).add()`. Labels in the order in which the family names them."""

    def __init__(self, numbers: Numbers, family: Family, make: Callable[["memoryview[float]", int, Family], S]) -> None:
        self._numbers, self._family, self._make = numbers, family, make
        self._made: dict[tuple[str, ...], S] = {}

    def __call__(self, *labels: str) -> S:
        return self._made.get(labels) or self._new(labels)

    def _new(self, labels: tuple[str, ...]) -> S:
        family = self._family
        if len(labels) != len(family.labels):
            raise TypeError(f"{family.name} has the labels {family.labels}, not {labels}")
        if len(self._made) >= MOST_SERIES:
            labels = (OTHER,) * len(labels)
        made = self._make(*self._numbers.row((family.name, *labels), family.doubles), family)
        return self._made.setdefault(labels, made)


class Metrics:
    """All families of one process. Without `numbers` nobody else sees them. For the event loop's thread only."""

    def __init__(self, numbers: Numbers | None = None) -> None:
        self.numbers = found = numbers or Numbers()
        for family in FAMILIES.values():
            if family.kind == "gauge":
                found.reset(family.name)
        self.invocations = Series(found, INVOCATIONS, Number)
        self.invocation_s = Series(found, INVOCATION_S, Histogram)
        self.queue_s = Series(found, QUEUE_S, Histogram)
        self.boot_s = Series(found, BOOT_S, Histogram)
        self.children = Series(found, CHILDREN, Number)
        self.crashes = Series(found, CRASHES, Number)
        self.host_calls = Series(found, HOST_CALLS, Number)
        self.host_call_s = Series(found, HOST_CALL_S, Histogram)
        self.rpcs = Series(found, RPCS, Number)
        self.rpc_s = Series(found, RPC_S, Histogram)
        self.records_dropped = Series(found, RECORDS_DROPPED, Number)
        self.events = Series(found, EVENTS, Number)
        self.deliveries = Series(found, DELIVERIES, Number)
        self.delivery_lag_s = Series(found, DELIVERY_LAG_S, Histogram)
        self.deliveries_running = Series(found, DELIVERIES_RUNNING, Number)
        self.deliveries_queued = Series(found, DELIVERIES_QUEUED, Number)
        self.event_loops = Series(found, EVENT_LOOPS, Number)
        self.outbox_waiting = Series(found, OUTBOX_WAITING, Number)
        self.outbox_oldest_s = Series(found, OUTBOX_OLDEST_S, Number)
        self.outbox_events = Series(found, OUTBOX_EVENTS, Number)
        self.outbox_failures = Series(found, OUTBOX_FAILURES, Number)
        self.cron_ticks = Series(found, CRON_TICKS, Number)
        self.cron_lateness_s = Series(found, CRON_LATENESS_S, Histogram)
        self.workflow_runs = Series(found, WORKFLOW_RUNS, Number)
        self.workflow_steps = Series(found, WORKFLOW_STEPS, Number)
        self.workflow_step_s = Series(found, WORKFLOW_STEP_S, Histogram)
        self.workflow_running = Series(found, WORKFLOW_RUNNING, Number)
        self.cdc_changes = Series(found, CDC_CHANGES, Number)
        self.cdc_gaps = Series(found, CDC_GAPS, Number)
        self.cdc_slot = Series(found, CDC_SLOT, Number)
        self.cdc_lag_bytes = Series(found, CDC_LAG_BYTES, Number)
        self.cdc_wal_held_bytes = Series(found, CDC_WAL_HELD_BYTES, Number)
        self.cdc_held = Series(found, CDC_HELD, Number)
        self.cdc_holds = Series(found, CDC_HOLDS, Number)
