"""The stream on which steps are dispatched: made by whoever needs it first, the same by all.

A message says that a step may be claimed for the nth time. It carries nothing that is not in Postgres: one that is lost
is sent again, one that comes twice finds the step claimed.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import orjson
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StreamConfig
from nats.js.errors import BadRequestError, NoStreamResponseError

from server.events.bus import EventBus
from server.fields import is_id
from server.log import logger

log = logger("workflows")

NAME: Final = "ATLAS_WORKFLOWS"
SUBJECT: Final = "atlas.workflows.steps"
DURABLE: Final = "workflow-workers"
CANCELLED: Final = "atlas.workflows.cancelled"
"""Core NATS: the id of a run that ended while steps of it may run."""

PROGRESS: Final = "atlas.workflows.progress"
"""Core NATS, with the run's id behind a dot: something of the run changed."""

AWAY: Final = (NatsError, ConnectionError, OSError, TimeoutError)
"""What NATS raises while it is away or too slow."""

ACK_WAIT_S: Final = 5.0
"""A message is acknowledged as soon as its step is claimed, which takes a transaction."""

PUBLISH_S: Final = 2.0
DUPLICATE_WINDOW_S: Final = 20.0
"""Within it a ticket that waits in the stream and is sent again is not stored again."""

_STREAM: Final = StreamConfig(
    name=NAME,
    description="Steps of workflows that may run",
    subjects=[SUBJECT],
    retention=RetentionPolicy.WORK_QUEUE,
    discard=DiscardPolicy.OLD,  # what goes is sent again
    max_age=24 * 3600.0,
    max_bytes=256 * 1024**2,
    duplicate_window=DUPLICATE_WINDOW_S,
)
_CONSUMER: Final = ConsumerConfig(
    durable_name=DURABLE, ack_policy=AckPolicy.EXPLICIT, ack_wait=ACK_WAIT_S, max_deliver=-1, max_ack_pending=10_000
)


@dataclass(frozen=True, slots=True)
class Ticket:
    """Leave to claim a step that has been claimed `claims` times before."""

    run_id: str
    node_id: str
    claims: int

    def encode(self) -> bytes:
        return orjson.dumps(self)


def decode(body: bytes) -> Ticket | None:
    """None when it is no ticket."""
    try:
        found = orjson.loads(body)
        ticket = Ticket(found["run_id"], found["node_id"], found["claims"])
    except (ValueError, TypeError, KeyError):
        return None
    fits = isinstance(ticket.run_id, str) and isinstance(ticket.node_id, str) and isinstance(ticket.claims, int)
    return (
        ticket if fits and is_id(ticket.run_id) and 0 <= ticket.claims < 2**31 and "\0" not in ticket.node_id else None
    )


async def ensure(bus: EventBus) -> None:
    """The stream and its consumer exist. Idempotent; one of AWAY when NATS does not answer."""
    try:
        await bus.jetstream.add_stream(_STREAM)
    except BadRequestError:  # it is there, made by a version of ours with other limits
        await bus.jetstream.update_stream(_STREAM)
    await bus.jetstream.add_consumer(NAME, _CONSUMER)


async def send(bus: EventBus, tickets: Sequence[Ticket]) -> None:
    """Publish them. Those that fail are sent again by `sweep`, so nothing is raised."""
    if not tickets or not bus.connected:
        return
    failed = await _publish_each(bus, tickets)
    if any(isinstance(why, NoStreamResponseError) for why in failed):  # no worker has been there yet
        with suppress(*AWAY):
            await ensure(bus)
            failed = await _publish_each(bus, tickets)
    for why in failed[:1]:
        log.warning("workflows.unsent", f"{len(failed)} steps wait to be sent again: {why!r}")


async def tell(bus: EventBus, subject: str, run_id: str) -> None:
    """Core NATS, for whoever listens; without it they find out a little later."""
    if not bus.connected:
        return
    try:
        if subject == PROGRESS:
            await bus.client.publish(f"{PROGRESS}.{run_id}", b"")
        else:
            await bus.client.publish(subject, run_id.encode())
    except AWAY as why:
        log.warning("workflows.untold", f"Nobody is told of a run's progress: {why!r}", run_id=run_id)


async def _publish_each(bus: EventBus, tickets: Sequence[Ticket]) -> list[BaseException]:
    """All at once; the failures."""
    answers = await asyncio.gather(*(_publish(bus, ticket) for ticket in tickets), return_exceptions=True)
    return [why for why in answers if isinstance(why, BaseException)]


async def _publish(bus: EventBus, ticket: Ticket) -> None:
    headers = {"Nats-Msg-Id": f"{ticket.run_id}:{ticket.node_id}:{ticket.claims}"}
    await bus.jetstream.publish(SUBJECT, ticket.encode(), timeout=PUBLISH_S, stream=NAME, headers=headers)
