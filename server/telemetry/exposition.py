"""The metrics of every process of this machine's stack in the Prometheus text format 0.0.4.

Counters and histograms are summed over all processes, those that have ended included; gauges over the living ones.
`process_*` are of each living process, with the labels `role` and `pid`.
"""

import itertools
import operator
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from server.telemetry.metrics import FAMILIES, Family
from server.telemetry.numbers import Name, Numbers, Snapshot, read_all

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

Sums = dict[Name, tuple[float, ...]]


def exposition(directory: Path | None, own: Numbers) -> bytes:
    """The text. Of `own` alone when there is no directory. Takes milliseconds: call it in a thread."""
    snapshots = [Snapshot("process", os.getpid(), own.records())] if directory is None else list(read_all(directory))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(snapshots))
    return generate_latest(registry)


class _Collected(Collector):
    def __init__(self, snapshots: list[Snapshot]) -> None:
        self._snapshots = snapshots

    def collect(self) -> Iterator[Metric]:
        sums = summed(self._snapshots)
        for family in FAMILIES.values():
            yield _shown(family, {name[1:]: doubles for name, doubles in sums.items() if name[0] == family.name})
        yield from _processes((each.role, each.pid) for each in self._snapshots if each.pid is not None)


def summed(snapshots: Iterable[Snapshot]) -> Sums:
    """By series, over processes. Series of families that this version does not have are left out."""
    sums: Sums = {}
    for snapshot in snapshots:
        for record in snapshot.records:
            family = FAMILIES.get(record.name[0])
            if family is None or (len(family.labels) + 1, family.doubles) != (len(record.name), len(record.doubles)):
                continue
            if family.kind == "gauge" and snapshot.pid is None:
                continue
            before = sums.get(record.name)
            sums[record.name] = tuple(map(operator.add, before, record.doubles)) if before else record.doubles
    return sums


def _shown(family: Family, series: dict[tuple[str, ...], tuple[float, ...]]) -> Metric:
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.text, labels=family.labels)
        bounds = [*map(floatToGoString, family.buckets_s), "+Inf"]
        for labels, (total_s, *counts) in sorted(series.items()):
            running, cumulated = 0.0, []
            for bound, count in zip(bounds, counts, strict=True):
                running += count
                cumulated.append((bound, running))
            histogram.add_metric(labels, cumulated, total_s)
        return histogram
    make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    numbers = make(family.name, family.text, labels=family.labels)
    for labels, (value,) in sorted(series.items()):
        numbers.add_metric(labels, value)
    return numbers


def _processes(alive: Iterable[tuple[str, int]]) -> Iterator[Metric]:
    """CPU, memory, open files and start of each, as Prometheus' own client names them."""
    families: dict[str, Metric] = {}
    for role, pid in alive:
        for metric in ProcessCollector(pid=itertools.repeat(pid).__next__, registry=None).collect():
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                family.add_sample(sample.name, {"role": role, "pid": str(pid)}, sample.value)
    yield from families.values()
