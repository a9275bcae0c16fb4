"""The connection to NATS JetStream, kept for the life of the process and re-made for ever when it is lost."""

import contextlib
from typing import Any, Final

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext

from server.log import logger

log = logger("events")

CONNECT_TIMEOUT_S: Final = 5


class _Client(Client):
    """nats-py ends its connection at a subject that is not UTF-8 and at odd headers, and NATS lets anybody publish
    both."""

    def _build_message(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Any) -> Msg:
        readable = subject if subject.isascii() else subject.decode(errors="replace").encode()
        message: Msg = super()._build_message(sid, readable, reply, data, headers)
        return message

    async def _process_headers(self, headers: Any) -> dict[str, str] | None:
        try:
            return await super()._process_headers(headers)
        except (IndexError, ValueError):
            return None


class EventBus:
    def __init__(self, url: str) -> None:
        self._url = url
        self._client: Client | None = None

    async def start(self) -> None:
        """Connected, or an exception; once connected, reconnecting is the client's own business."""
        client = _Client()
        await client.connect(
            self._url,
            connect_timeout=CONNECT_TIMEOUT_S,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.25,  # type: ignore[arg-type]
            error_cb=_on_error,
            disconnected_cb=self._on_lost,
            reconnected_cb=_on_back,
        )
        self._client = client

    @property
    def client(self) -> Client:
        """For core NATS: what nobody keeps. ConnectionError before `start` and after `close`."""
        if self._client is None:
            raise ConnectionError("the event bus is not started")
        return self._client

    @property
    def jetstream(self) -> JetStreamContext:
        """For what must not be lost. ConnectionError before `start` and after `close`."""
        return self.client.jetstream()

    @property
    def connected(self) -> bool:
        """Whether the server was there when last heard of."""
        return self._client is not None and self._client.is_connected

    async def ping(self) -> None:
        """JetStream answers, or an exception."""
        await self.jetstream.account_info()

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            # While NATS is away, saying good-bye fails; with a TypeError on a closed transport of asyncio (3.12, 3.13).
            with contextlib.suppress(OSError, NatsError, TypeError):
                await client.close()

    async def _on_lost(self) -> None:
        if self._client is not None:  # else it is we who closed it
            log.warning("bus.lost", "The connection to NATS is lost; reconnecting")


async def _on_error(error: Exception) -> None:
    log.warning("bus.error", f"NATS: {error!r}")


async def _on_back() -> None:
    log.info("bus.back", "Connected to NATS again")
