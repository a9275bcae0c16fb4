"""What is counted, and how Prometheus is told. In memory alone."""

from typing import Any, cast

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from server.telemetry.exposition import exposition, summed
from server.telemetry.metrics import FAMILIES, MOST_SERIES, OTHER, RUN_S, Family, Metrics
from server.telemetry.numbers import Malformed, Numbers, Record, Snapshot, parse


def told(metrics: Metrics) -> dict[str, Metric]:
    text = exposition(None, metrics.numbers).decode()
    return {metric.name: metric for metric in text_string_to_metric_families(text)}


def values(metric: Metric) -> dict[tuple[str, ...], float]:
    """By the name, then the values of the labels in the order of their names."""
    return {(each.name, *(value for _, value in sorted(each.labels.items()))): each.value for each in metric.samples}


def test_a_counter() -> None:
    metrics = Metrics()
    for _ in range(3):
        metrics.invocations("quickjs", "ok").add()
    metrics.invocations("wasm", "fuel_limit").add()
    metrics.records_dropped().add(7)
    shown = told(metrics)
    assert values(shown["atlas_invocations"]) == {
        ("atlas_invocations_total", "ok", "quickjs"): 3,
        ("atlas_invocations_total", "fuel_limit", "wasm"): 1,
    }
    assert values(shown["atlas_run_records_dropped"]) == {("atlas_run_records_dropped_total",): 7}


def test_a_counter_follows_a_total_that_begins_anew_with_the_process() -> None:
    metrics = Metrics()
    for total in (2, 2, 5):
        metrics.crashes("node").follow(total)
    again = Metrics(metrics.numbers)
    again.crashes("node").follow(1)
    assert values(told(again)["atlas_sandbox_crashes"]) == {("atlas_sandbox_crashes_total", "node"): 6}


def test_a_histogram_is_cumulative_and_a_bound_belongs_to_its_bucket() -> None:
    metrics = Metrics()
    for seconds in (0.0, 0.001, 0.0011, 60.0, 61.0):
        metrics.invocation_s("node").observe(seconds)
    shown = values(told(metrics)["atlas_invocation_duration_seconds"])
    name = "atlas_invocation_duration_seconds"
    assert shown[(f"{name}_bucket", "0.001", "node")] == 2
    assert shown[(f"{name}_bucket", "0.0025", "node")] == 3
    assert shown[(f"{name}_bucket", "60.0", "node")] == 4
    assert shown[(f"{name}_bucket", "+Inf", "node")] == 5
    assert shown[(f"{name}_count", "node")] == 5
    assert shown[(f"{name}_sum", "node")] == pytest.approx(121.0021)


def test_a_gauge_goes_up_and_down_and_begins_at_zero() -> None:
    metrics = Metrics()
    metrics.children("deno", "idle").set(5)
    metrics.children("deno", "idle").set(2)
    assert values(told(metrics)["atlas_sandbox_children"]) == {("atlas_sandbox_children", "deno", "idle"): 2}
    again = Metrics(metrics.numbers)
    assert values(told(again)["atlas_sandbox_children"]) == {("atlas_sandbox_children", "deno", "idle"): 0}


def test_the_process_itself_is_told() -> None:
    shown = told(Metrics())
    assert shown["process_resident_memory_bytes"].samples[0].value > 0
    assert shown["process_cpu_seconds"].type == "counter"
    assert set(shown["process_open_fds"].samples[0].labels) == {"role", "pid"}


def test_every_family_is_announced_with_its_help() -> None:
    text = exposition(None, Numbers()).decode()
    for family in FAMILIES.values():
        assert f"# HELP {family.name} {family.text}" in text
        assert f"# TYPE {family.name} {family.kind}" in text


def test_every_family_has_its_series() -> None:
    series = {name for name, value in vars(Metrics()).items() if name != "numbers"}
    assert len(series) == len(FAMILIES)


def test_a_family_that_grows_without_end_is_cut() -> None:
    metrics = Metrics()
    for number in range(MOST_SERIES + 50):
        metrics.rpcs(f"m{number}", "OK").add()
    shown = values(told(metrics)["atlas_rpc"])
    assert len(shown) == MOST_SERIES + 1
    assert shown[("atlas_rpc_total", OTHER, OTHER)] == 50


def test_when_the_memory_is_full_counting_goes_on_unseen() -> None:
    numbers = Numbers()
    for number in range(10_000):
        doubles, at = numbers.row(("x" * 100, str(number)), 10)
        doubles[at] += 1
    assert 1000 < len(numbers.records()) < 10_000


@pytest.mark.parametrize("labels", [(), ("a",), ("a", "b", "c")])
def test_labels_that_do_not_fit_are_a_fault(labels: tuple[str, ...]) -> None:
    with pytest.raises(TypeError, match="has the labels"):
        Metrics().rpcs(*labels)


def test_processes_are_summed_but_gauges_only_of_the_living() -> None:
    counter, gauge, buckets = ("atlas_rpc_total", "m", "OK"), ("atlas_sandbox_children", "wasm", "busy"), len(RUN_S) + 2
    histogram = ("atlas_rpc_duration_seconds", "m")

    def records(value: float) -> list[Record]:
        return [Record(counter, 0, (value,)), Record(gauge, 0, (value,)), Record(histogram, 0, (value,) * buckets)]

    found = summed(
        [Snapshot("api", 1, records(1)), Snapshot("api", None, records(2)), Snapshot("worker", 3, records(4))]
    )
    assert found == {counter: (7,), gauge: (5,), histogram: (7,) * buckets}


def test_what_another_version_wrote_is_left_out() -> None:
    odd = [
        Record(("atlas_gone_total",), 0, (1,)),
        Record(("atlas_rpc_total", "m"), 0, (1,)),
        Record(("atlas_rpc_duration_seconds", "m"), 0, (1, 2)),
    ]
    assert summed([Snapshot("api", 1, odd)]) == {}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        b"another\0" + bytes(100),
        b"atlas-n1" + bytes(8) + b"\xff\xff\xff\xff" * 2,
        b"atlas-n1" + bytes(8) + b"\x05\0\0\0\0\0\0\0" + b'["a"]' + bytes(50),
        b"atlas-n1" + bytes(8) + b"\x08\0\0\0\0\0\0\0" + b"not json" + bytes(50),
        b"atlas-n1" + bytes(8) + b"\x08\0\0\0\0\0\0\0" + b"[1     ]" + bytes(50),
    ],
)
def test_bytes_that_are_no_numbers(data: bytes) -> None:
    with pytest.raises(Malformed):
        list(parse(data))


def test_labels_are_escaped() -> None:
    metrics = Metrics()
    metrics.rpcs('a"b\\c\nd', "OK").add()
    (sample,) = told(metrics)["atlas_rpc"].samples
    assert sample.labels["method"] == 'a"b\\c\nd'


def test_kinds_have_what_they_need() -> None:
    for family in FAMILIES.values():
        assert bool(family.buckets_s) is (family.kind == "histogram")
        assert family.name.endswith("_total") is (family.kind == "counter")
        assert list(family.buckets_s) == sorted(family.buckets_s)
    assert Family("x", cast(Any, "gauge"), (), "").doubles == 1
