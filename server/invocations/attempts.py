"""Attempts at an asynchronous run: which of them is its end, and what is recorded of it."""

from dataclasses import dataclass
from typing import Final

from engines.contract import Outcome
from server.errors import Cancelled, Internal, NotFound, Unavailable, Unimplemented
from server.invocations.answers import Answer
from server.invocations.async_queue import Claimed
from server.invocations.invoke import Finished
from server.runs.record import RunRecord
from server.runs.recorder import Sink

MAX_ATTEMPTS: Final = 3
"""Of runs whose process died under them, or met a fault of ours."""

FAULT: Final = "INTERNAL_FAULT"
GIVE_UP_S: Final = 24 * 3600.0
"""After which a run that never found a sandbox ends as overloaded."""

BACKOFF_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)


class Attempts:
    """A Sink before another that keeps records of single attempts to itself: only the last one is the run's."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._held: dict[str, RunRecord | None] = {}

    def add(self, record: RunRecord) -> None:
        if record.run.id in self._held:
            self._held[record.run.id] = record
        else:
            self._sink.add(record)

    def begin(self, run_id: str) -> None:
        self._held[run_id] = None

    def end(self, run_id: str) -> RunRecord | None:
        """The record of the attempt, if it came to one."""
        return self._held.pop(run_id, None)


@dataclass(frozen=True, slots=True)
class Retry:
    """Back into the queue, with what is to be counted from then on."""

    delay_s: float
    attempts: int
    refusals: int


def retry(answer: Answer, claimed: Claimed, *, age_s: float) -> Retry | None:
    """Whether the run has to be tried again after that answer, before jitter; None when it has ended."""
    if isinstance(answer, Unavailable) and age_s < GIVE_UP_S:
        delay_s = BACKOFF_S[min(claimed.refusals, len(BACKOFF_S) - 1)]
        return Retry(delay_s, attempts=claimed.attempts - 1, refusals=claimed.refusals + 1)
    if isinstance(answer, Internal) and answer.reason == FAULT and claimed.attempts < MAX_ATTEMPTS:
        return Retry(BACKOFF_S[claimed.attempts], attempts=claimed.attempts, refusals=claimed.refusals)
    return None


def outcome_of(answer: Answer) -> Outcome:
    """Of a run that came to no attempt with a record."""
    if isinstance(answer, Finished):
        return answer.result.outcome
    for kind, outcome in _OUTCOMES:
        if isinstance(answer, kind):
            return outcome
    return Outcome.CRASHED


_OUTCOMES: Final = (
    (Cancelled, Outcome.CANCELLED),
    (Unavailable, Outcome.OVERLOADED),
    ((NotFound, Unimplemented), Outcome.LOAD_FAILED),
)


def fault(run_id: str) -> Internal:
    return Internal("Something failed on our side", reason=FAULT, metadata={"run_id": run_id})


def died(run_id: str) -> Internal:
    return Internal(
        f"The servers that ran this died under it, {MAX_ATTEMPTS} times; it is not tried again",
        reason="SANDBOX_CRASHED",
        metadata={"run_id": run_id, "attempts": str(MAX_ATTEMPTS)},
    )
