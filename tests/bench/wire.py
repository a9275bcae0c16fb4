"""A warm invocation over gRPC and through Envoy, beside methods of the same messages that do nothing.

The stack is the real one with one API process, pinned to a core together with its sandboxes: what a call costs there is
what bounds throughput. Envoy and the load generator have another core. No-op and invocation alternate, medians count.
"""

import asyncio
import contextlib
import multiprocessing
import os
import statistics
import struct
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from google.protobuf import struct_pb2

from atlas.functions.v1 import invocation_service_pb2 as pb
from tests.bench import noop, stack
from tests.bench.http2 import Address, Load, Post, drive
from tests.bench.rows import Row, percentile
from tests.bench.sandbox import one_core

TITLE: Final = "Invocation, warm, beside a no-op handler on the same server"
INPUT: Final = '{"n":1}'
INVOKE: Final = "atlas.functions.v1.InvocationService"

ROUNDS: Final = 5
SECONDS: Final = 1.0
BUSY: Final = 16  # requests in flight for throughput
CORES: Final = sorted(os.sched_getaffinity(0))


@dataclass(slots=True)
class Figures:
    """Of one kind of request, one number a round."""

    per_s: list[float] = field(default_factory=list)
    api_us: list[float] = field(default_factory=list)
    sandbox_us: list[float] = field(default_factory=list)
    idle_ms: list[float] = field(default_factory=list)


async def measure() -> list[Row]:
    """About 40 s."""
    rows = []
    with one_core():  # what starts here stays here, but for the API process, which chooses another
        async with stack.running(CORES[0]) as site:
            client = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
            for name, make in (
                ("gRPC", lambda method: grpc_post(site.api_socket, method, site.key)),
                ("gRPC through Envoy", lambda method: grpc_post(site.front, method, site.key)),
                ("REST through Envoy", lambda method: rest_post(site.front, method, site.key)),
            ):
                rows += await compare(name, make, site.api_pid, client)
            client.shutdown()
    return rows


async def compare(name: str, make: Callable[[bool], Post], pid: int, client: ProcessPoolExecutor) -> list[Row]:
    """`make(True)` is the invocation, `make(False)` the no-op."""
    loop = asyncio.get_running_loop()
    posts = {real: make(real) for real in (False, True)}
    figures = {real: Figures() for real in posts}

    async def load(real: bool, in_flight: int) -> Load:
        done: Load = await loop.run_in_executor(client, _drive, posts[real], in_flight)
        return done

    for real in posts:
        await load(real, BUSY)
    for _ in range(ROUNDS):
        for real, seen in figures.items():
            before_us = cpu_us(pid)
            busy = await load(real, BUSY)
            used_us = [after - before for after, before in zip(cpu_us(pid), before_us, strict=True)]
            seen.api_us.append(used_us[0] / len(busy.latencies_ms))
            seen.sandbox_us.append(used_us[1] / len(busy.latencies_ms))
            seen.per_s.append(busy.per_s)
            seen.idle_ms.append(percentile((await load(real, 1)).latencies_ms, 50))
    return list(_rows(name, figures[False], figures[True]))


def _drive(post: Post, in_flight: int) -> Load:
    return drive(post, in_flight=in_flight, seconds=SECONDS)


def _rows(name: str, base: Figures, real: Figures) -> list[Row]:
    median = statistics.median
    share = median(mine / theirs for mine, theirs in zip(real.per_s, base.per_s, strict=True)) * 100
    extra_ms = median(mine - theirs for mine, theirs in zip(real.idle_ms, base.idle_ms, strict=True))
    return [
        Row(f"{name}: invocations", median(real.per_s), "1/s", baseline=median(base.per_s)),
        Row(f"{name}: of the no-op's throughput", share, "%", "≥ 75"),
        Row(f"{name}: one at a time, p50", median(real.idle_ms), "ms", baseline=median(base.idle_ms)),
        Row(f"{name}: above the no-op", extra_ms, "ms", "< 0.4"),
        Row(f"{name}: CPU of the API process, a call", median(real.api_us) or None, "µs", baseline=median(base.api_us)),
        Row(f"{name}: CPU of its sandboxes, a call", median(real.sandbox_us), "µs"),
    ]


def grpc_post(address: Address, real: bool, key: str) -> Post:
    number = struct_pb2.Value(number_value=1)
    message = pb.InvokeRequest(
        slug="bench", input=struct_pb2.Value(struct_value=struct_pb2.Struct(fields={"n": number}))
    ).SerializeToString()
    headers = (
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "bench/1"),
        ("authorization", f"Bearer {key}"),
    )
    path = f"/{INVOKE if real else noop.SERVICE}/Invoke"
    return Post(address, path, headers, struct.pack(">BI", 0, len(message)) + message)


def rest_post(address: Address, real: bool, key: str) -> Post:
    headers = (
        ("content-type", "application/json"),
        ("user-agent", "bench/1"),
        ("authorization", f"Bearer {key}"),
    )
    return Post(address, ("/functions/v1/invoke/" if real else noop.PATH) + "bench", headers, INPUT.encode())


def cpu_us(pid: int) -> tuple[float, float]:
    """CPU time that the process has used, and that all below it have."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    below: set[int] = set()
    young = {pid}
    while young:
        young = {child for child, parent in parents.items() if parent in young}
        below |= young
    return _used_us(pid), sum(map(_used_us, below))


def _used_us(pid: int) -> float:
    """Over all its threads, to the nanosecond; 0 for one that is gone."""
    used_ns = 0
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            used_ns += int((thread / "schedstat").read_text().split()[0])
    return used_ns / 1000
