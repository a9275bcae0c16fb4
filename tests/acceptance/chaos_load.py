"""Events for `chaos`: published by several threads, over REST and gRPC, each again until it is acknowledged."""

import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import grpc
import httpx
from google.protobuf.json_format import ParseDict

from atlas.events.v1 import events_pb2
from atlas.events.v1 import events_service_pb2 as pb
from atlas.events.v1.events_service_pb2_grpc import EventServiceStub
from tests.fix_clients import Rest
from tests.fix_up import Stack

TYPE: Final = "chaos.run"
Send: TypeAlias = "Callable[[list[dict[str, Any]]], bool]"
"""Publish a batch; whether it was acknowledged."""

PUBLISHERS: Final = 4
BATCH: Final = 20
MATCHING: Final = 0.9
"""The share of events that the trigger's condition lets through."""

PATIENCE_S: Final = 60.0
"""For one batch to be acknowledged."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is published when: reproducible from its seed, as is the order of the kills, but not where they hit."""

    events: int
    seconds: float
    seed: int

    def batches(self) -> Iterator[tuple[float, list[dict[str, Any]]]]:
        """Events to be published together, each batch so many seconds after the start."""
        chance, made = random.Random(self.seed), 0
        while made < self.events:
            size = min(chance.randint(1, BATCH), self.events - made)
            events = [
                {
                    "id": f"chaos-{self.seed}-{number}",
                    "type": TYPE,
                    "data": {"run": chance.random() < MATCHING, "ms": chance.randrange(60)},
                }
                for number in range(made, made + size)
            ]
            yield made / self.events * self.seconds, events
            made += size


@dataclass(slots=True)
class Published:
    """`wanted` are the ids of events that the trigger lets through."""

    wanted: set[str]
    events: int = 0
    requests: int = 0


def publish(plan: Plan, stack: Stack, rest: Rest) -> Published:
    """Publish all of it, each batch again until it is acknowledged. TimeoutError when one is not within PATIENCE_S."""
    batches: queue.Queue[tuple[float, list[dict[str, Any]]]] = queue.Queue()
    for batch in plan.batches():
        batches.put(batch)
    published = Published({event["id"] for _, events in batches.queue for event in events if event["data"]["run"]})
    start_s, clock, lock = time.monotonic(), threading.Event(), threading.Lock()

    def work(send: Send) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                after_s, events = batches.get_nowait()
                clock.wait(max(0.0, start_s + after_s - time.monotonic()))
                tries = _until_acknowledged(send, events)
                with lock:
                    published.events += len(events)
                    published.requests += tries

    with grpc.insecure_channel(urlsplit(stack.url).netloc) as channel, ThreadPoolExecutor(PUBLISHERS) as threads:
        ways = (_by_rest(rest), _by_grpc(rest, channel))
        for one in [threads.submit(work, ways[number % 2]) for number in range(PUBLISHERS)]:
            one.result()
    return published


def _until_acknowledged(send: Send, events: list[dict[str, Any]]) -> int:
    """How many times they had to be sent."""
    deadline_s, tries = time.monotonic() + PATIENCE_S, 1
    while not send(events):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{len(events)} events were not acknowledged within {PATIENCE_S:g} s")
        tries += 1
        time.sleep(0.1)
    return tries


def _by_rest(rest: Rest) -> Send:
    def send(events: list[dict[str, Any]]) -> bool:
        try:
            answer = rest.manage("POST", "/events", json={"events": events}, timeout=15)
        except httpx.HTTPError:
            return False
        assert answer.status_code in (200, 502, 503, 504), answer.text
        return answer.status_code == 200

    return send


def _by_grpc(rest: Rest, channel: grpc.Channel) -> Send:
    stub = EventServiceStub(channel)
    again = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)

    def send(events: list[dict[str, Any]]) -> bool:
        messages = [ParseDict(event, events_pb2.NewEvent()) for event in events]
        request = pb.PublishEventsRequest(project_id=rest.project_id, events=messages)
        try:
            stub.PublishEvents(request, metadata=(("apikey", rest.service_key),), timeout=15)
        except grpc.RpcError as why:
            if why.code() not in again:
                raise
            return False
        return True

    return send
