"""The stream on which records travel: made by whoever needs it first, the same by all."""

from typing import Final

from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StreamConfig
from nats.js.errors import BadRequestError

from server.events.bus import EventBus

NAME: Final = "ATLAS_RUNS"
SUBJECT: Final = "atlas.runs"
DURABLE: Final = "runs-writer"

AWAY: Final = (NatsError, ConnectionError, OSError, TimeoutError)
"""What NATS raises while it is away or too slow."""

_STREAM: Final = StreamConfig(
    name=NAME,
    subjects=[SUBJECT],
    retention=RetentionPolicy.WORK_QUEUE,  # gone once it is in Postgres
    discard=DiscardPolicy.OLD,
    max_age=24 * 3600.0,
    max_bytes=1024**3,
    duplicate_window=120.0,
)
_CONSUMER: Final = ConsumerConfig(durable_name=DURABLE, ack_policy=AckPolicy.EXPLICIT, ack_wait=30.0, max_deliver=-1)


async def ensure(bus: EventBus) -> None:
    """The stream and its consumer exist. Idempotent; one of AWAY when NATS does not answer."""
    try:
        await bus.jetstream.add_stream(_STREAM)
    except BadRequestError:  # it is there, made by a version of ours with other limits
        await bus.jetstream.update_stream(_STREAM)
    await bus.jetstream.add_consumer(NAME, _CONSUMER)
