"""What is counted of runs, and of the engines' children."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engines.contract import Engine, Metrics, Outcome, Result
from server.invocations.observation import Observer, Sandboxes
from server.telemetry import metrics as telemetry

RESOLVED: Any = SimpleNamespace(function=SimpleNamespace(slug="f", version=1, project_id="p", runtime="wasm"))
USED = Metrics(wall_ms=20, queue_ms=3, boot_ms=40)


def counted(metrics: telemetry.Metrics) -> dict[str, dict[tuple[str, ...], float]]:
    """By family: the value of each series, of a histogram its sum."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for record in metrics.numbers.records():
        if any(record.doubles):
            found.setdefault(record.name[0], {})[record.name[1:]] = round(record.doubles[0], 9)
    return found


@pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.EXCEPTION, Outcome.WALL_LIMIT, Outcome.CRASHED])
def test_a_run_is_counted_by_its_outcome_and_timed(outcome: Outcome) -> None:
    metrics = telemetry.Metrics()
    with Observer(metrics).run(RESOLVED, "run-1") as run:
        run.ended(Result(outcome=outcome, metrics=USED))
    assert counted(metrics) == {
        "atlas_invocations_total": {("wasm", outcome.value): 1},
        "atlas_invocation_duration_seconds": {("wasm",): 0.02},
        "atlas_invocation_queue_seconds": {("wasm",): 0.003},
        "atlas_invocation_boot_seconds": {("wasm",): 0.04},
    }


def test_a_run_that_never_started_has_only_waited() -> None:
    metrics = telemetry.Metrics()
    with Observer(metrics).run(RESOLVED, "run-1") as run:
        run.ended(Result(outcome=Outcome.OVERLOADED, metrics=Metrics(queue_ms=5_000)))
    assert counted(metrics) == {
        "atlas_invocations_total": {("wasm", "overloaded"): 1},
        "atlas_invocation_queue_seconds": {("wasm",): 5},
    }


def test_a_run_that_was_ended_on_request_is_only_counted() -> None:
    metrics = telemetry.Metrics()
    with Observer(metrics).run(RESOLVED, "run-1") as run:
        run.ended(Result(outcome=Outcome.CANCELLED))
    assert counted(metrics) == {"atlas_invocations_total": {("wasm", "cancelled"): 1}}
    assert [record for record in metrics.numbers.records() if "seconds" in record.name[0]] == []


@pytest.mark.parametrize(
    ("error", "outcome"), [(asyncio.CancelledError(), "cancelled"), (RuntimeError("ours"), "fault")]
)
def test_a_run_without_a_result_is_counted_and_its_error_goes_on(error: BaseException, outcome: str) -> None:
    metrics = telemetry.Metrics()
    with pytest.raises(type(error)), Observer(metrics).run(RESOLVED, "run-1"):
        raise error
    assert counted(metrics) == {"atlas_invocations_total": {("wasm", outcome): 1}}


async def test_sandboxes_are_sampled() -> None:
    reports: dict[str, dict[str, object]] = {"quickjs": {"children": {"idle": 4, "busy": 1}, "crashes": 2}, "deno": {}}

    def engine(name: str) -> Engine:
        return cast(Engine, SimpleNamespace(report=lambda: reports[name]))

    metrics = telemetry.Metrics()
    sandboxes = Sandboxes(metrics, {name: engine(name) for name in reports})
    await sandboxes.sample()
    reports["quickjs"] = {"children": {"idle": 0, "busy": 5}, "crashes": 3}
    await sandboxes.sample()
    await sandboxes.sample()
    assert counted(metrics) == {
        "atlas_sandbox_children": {("quickjs", "busy"): 5},
        "atlas_sandbox_crashes_total": {("quickjs",): 3},
    }
