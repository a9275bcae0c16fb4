"""Contents in JetStream, which every process reaches: a stream of chunks, each under a subject of its own.

    atlasdb.storage.{project_id}.{sha256}.{number}      the last message of a subject is the chunk

A chunk that is written again replaces itself, so that writers of one content never harm each other and a killed one
leaves nothing that the next does not complete; a slice reads the chunks it lies in and no others.
"""

import asyncio
import hashlib
from collections.abc import Collection
from typing import Final

from nats.errors import Error as NatsError
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import BadRequestError, NoStreamResponseError, NotFoundError

from server.events.bus import EventBus
from server.storage.blobs import BlobsUnavailable
from server.storage.records import Slice

NAME: Final = "ATLAS_STORAGE"
PREFIX: Final = "atlasdb.storage."
CHUNK_BYTES: Final = 256 * 1024
AT_ONCE: Final = 8
"""Chunks of one call that are on their way."""

TRY_S: Final = 5.0
_TROUBLE: Final = (NatsError, ConnectionError, OSError, TimeoutError)


class StreamBlobs:
    """`server.storage.blobs.Blobs`."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus

    async def start(self) -> None:
        """The stream exists. BlobsUnavailable when NATS is away, has no room, or has another one of that name."""
        wanted = StreamConfig(
            name=NAME,
            description="Contents of stored objects in chunks",
            subjects=[f"{PREFIX}>"],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            max_msgs_per_subject=1,
            max_msg_size=CHUNK_BYTES + 1024,
            allow_direct=True,
        )
        try:
            await self._bus.jetstream.add_stream(wanted)
        except BadRequestError as why:
            await self._require_ours(why)
        except _TROUBLE as why:
            raise BlobsUnavailable(f"the stream {NAME} cannot be made: {why!r}") from why

    async def write(self, project_id: str, sha256: str, data: bytes) -> None:
        turn = asyncio.Semaphore(AT_ONCE)

        async def put(number: int) -> None:
            chunk = data[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
            async with turn:
                await self._bus.jetstream.publish(
                    _subject(project_id, sha256, number), chunk, timeout=TRY_S, stream=NAME
                )

        async def put_all() -> None:
            answers = await asyncio.gather(
                *(put(number) for number in range(_chunks(len(data)))), return_exceptions=True
            )
            for why in answers:
                if why is not None:
                    raise why

        try:
            try:
                await put_all()
            except NoStreamResponseError:
                await self.start()
                await put_all()
        except _TROUBLE as why:
            raise BlobsUnavailable(f"cannot write into {NAME}: {why!r}") from why

    async def read(self, project_id: str, sha256: str, size_bytes: int, part: Slice | None = None) -> bytes | None:
        wanted = part or Slice(0, size_bytes)
        first = wanted.offset // CHUNK_BYTES
        last = max(first + 1, _chunks(wanted.offset + wanted.length))
        turn = asyncio.Semaphore(AT_ONCE)

        async def get(number: int) -> bytes | None:
            async with turn:
                return await self._chunk(_subject(project_id, sha256, number))

        try:
            chunks = await asyncio.gather(*(get(number) for number in range(first, last)))
        except _TROUBLE as why:
            raise BlobsUnavailable(f"cannot read from {NAME}: {why!r}") from why
        found = [chunk for chunk in chunks if chunk is not None]
        if len(found) < len(chunks):
            return None
        start = wanted.offset - first * CHUNK_BYTES
        data = b"".join(found)[start : start + wanted.length]
        if len(data) < wanted.length:
            return None
        if part is None and await asyncio.to_thread(_sha256, data) != sha256:
            return None
        return data

    async def remove(self, project_id: str, sha256s: Collection[str]) -> None:
        try:
            for sha256 in sha256s:
                await self._bus.jetstream.purge_stream(NAME, subject=f"{PREFIX}{project_id}.{sha256}.>")
        except NotFoundError:
            return
        except _TROUBLE as why:
            raise BlobsUnavailable(f"cannot remove from {NAME}: {why!r}") from why

    async def _chunk(self, subject: str) -> bytes | None:
        """A follower answers a direct read and may be behind; what it lacks, the leader is asked for."""
        for direct in (True, False):
            try:
                message = await self._bus.jetstream.get_last_msg(NAME, subject, direct=direct)
            except NotFoundError:
                continue
            return message.data or b""
        return None

    async def _require_ours(self, refused: BadRequestError) -> None:
        try:
            found = (await self._bus.jetstream.stream_info(NAME)).config
        except _TROUBLE as why:
            raise BlobsUnavailable(f"NATS refuses the stream {NAME}: {refused.description}") from why
        if found.subjects != [f"{PREFIX}>"] or found.max_msgs_per_subject != 1:
            raise BlobsUnavailable(f"NATS has a stream {NAME} that is not ours; use another NATS account") from refused


def _chunks(size_bytes: int) -> int:
    """How many there are; an empty content has one, which is empty."""
    return max(1, -(-size_bytes // CHUNK_BYTES))


def _subject(project_id: str, sha256: str, number: int) -> str:
    return f"{PREFIX}{project_id}.{sha256}.{number}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
