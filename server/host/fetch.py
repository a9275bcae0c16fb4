"""`atlas.fetch`: HTTP requests of user code, to addresses it may reach and nowhere else.

    parse ─▶ resolve once, judge every address ─▶ connect to one of these ─▶ response within the caps
      ▲                                                                          │ 3xx, at most 5 times
      └────────────────────────── redirected ◀───────────────────────────────────┘

Each hop has a connection of its own, closed after it: no connection, cookie or DNS answer outlives the hop it was made
for, so nothing can pass from one project to another. Proxies of the environment are ignored.
"""

import asyncio
import base64
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from typing import Final
from weakref import WeakValueDictionary

import aiohttp
import orjson
from aiohttp import hdrs
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDict

from engines.contract import HostError
from server.host.names import Blocked, Lookup, Names, Unresolved
from server.host.request import NAME, Request, parse, redirected, traced
from server.settings import Network
from server.telemetry.tracing import UNTRACED, Attributes, Span

MAX_REDIRECTS: Final = 5
MAX_BODY_BYTES: Final = 5 * 1024 * 1024  # of a response, before and after decompression
MAX_FIELD_BYTES: Final = 8 * 1024
MAX_GZIP_MEMBERS: Final = 64
CHUNK_BYTES: Final = 64 * 1024
TOTAL: Final = 96
"""Requests in flight in a process; each may hold a request and a response body."""
PER_PROJECT: Final = 16

REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))
DEFAULT_HEADERS: Final = {"accept": "*/*", "accept-encoding": "gzip", "user-agent": "atlas-functions"}


class Fetcher:
    """For all projects of a process. `own_ports` are refused on every address, also on allowed ones."""

    def __init__(
        self,
        *,
        allowed: Sequence[Network] = (),
        own_ports: frozenset[int] = frozenset(),
        lookup: Lookup | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._names = Names(allowed, lookup)
        self._own_ports = own_ports
        self._tls = tls or ssl.create_default_context()
        self._total = asyncio.Semaphore(TOTAL)
        self._projects: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def fetch(
        self,
        project_id: str,
        url: object,
        options: object,
        *,
        timeout_ms: float,
        span: Span = UNTRACED,
        in_turn: bool = False,
    ) -> bytes:
        """One call, redirects included: {"status", "status_text", "url", "redirected", "headers", "body_base64"}.

        `span` is the call's: its place goes with the request as `traceparent`, unless user code has set that itself.

        Ends after the smaller of `timeout_ms` and the options' own, the wait for a turn included, unless the caller has
        one: `in_turn`. HostError: invalid_argument, fetch_blocked,
        fetch_timeout, fetch_body_limit, fetch_redirect, fetch_failed.
        """
        request = parse(url, options)
        if span.place is not None:
            request = traced(request, span.place)
            span.tell(_told(request))
        limit_ms = min(request.timeout_ms, timeout_ms)
        try:
            async with asyncio.timeout(limit_ms / 1000), nullcontext() if in_turn else self.turn(project_id):
                return await self._follow(project_id, request, span)
        except TimeoutError:
            raise HostError("fetch_timeout", f"{NAME}: no complete response within {limit_ms:.0f} ms") from None

    @asynccontextmanager
    async def turn(self, project_id: str, *, within_s: float | None = None) -> AsyncIterator[None]:
        """A place among the requests in flight, for one call at a time. TimeoutError when none is free in time."""
        of_project = self._projects.setdefault(project_id, asyncio.Semaphore(PER_PROJECT))
        async with AsyncExitStack() as held:
            async with asyncio.timeout(within_s):
                await held.enter_async_context(of_project)
                await held.enter_async_context(self._total)
            yield

    async def close(self) -> None:
        self._names.close()

    async def _follow(self, project_id: str, request: Request, span: Span) -> bytes:
        for hops in range(MAX_REDIRECTS + 1):
            addresses = await self._permitted(project_id, request)
            answer = await self._hop(request, addresses, span, redirected=hops > 0)
            if isinstance(answer, bytes):
                return answer
            request = answer
        raise HostError("fetch_redirect", f"{NAME}: more than {MAX_REDIRECTS} redirects")

    async def _permitted(self, project_id: str, request: Request) -> list[str]:
        host, port = request.url.host, request.url.port
        assert host is not None
        assert port is not None
        if port in self._own_ports:
            raise _blocked()
        try:
            return await self._names.resolve(project_id, host, port)
        except Blocked:
            raise _blocked() from None
        except Unresolved:
            raise HostError("fetch_failed", f"{NAME}: the host name could not be resolved") from None

    async def _hop(self, request: Request, addresses: list[str], span: Span, *, redirected: bool) -> bytes | Request:
        """One request and its response: the call's answer, or the request a redirect asks for."""
        connector = aiohttp.TCPConnector(
            resolver=_Pinned(addresses),
            use_dns_cache=False,
            force_close=True,
            ssl=self._tls,
            socket_factory=_only(addresses),
        )
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    auto_decompress=False,
                    trust_env=False,
                    skip_auto_headers=("user-agent", "accept", "accept-encoding", "content-type"),
                    timeout=aiohttp.ClientTimeout(total=None),
                    max_line_size=MAX_FIELD_BYTES,
                    max_field_size=MAX_FIELD_BYTES,
                ) as session,
                session.request(
                    request.method,
                    request.url,
                    headers=_sent(request),
                    data=request.body,
                    allow_redirects=False,
                ) as response,
            ):
                if response.status < 200:
                    raise _failed("the server wants to switch protocols")
                span.tell({"http.response.status_code": response.status})
                following = _redirect(request, response)
                return following or await _answer(request, response, redirected)
        except aiohttp.ClientConnectorCertificateError:
            raise _failed("the server's certificate is not valid for this name") from None
        except aiohttp.ClientSSLError:
            raise _failed("the TLS handshake failed") from None
        except aiohttp.ClientConnectionError:
            raise _failed("the server cannot be reached, or closed the connection") from None
        except aiohttp.ClientPayloadError:
            raise _failed("the response body ended early or is malformed") from None
        except (aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError, ValueError):
            raise _failed("the server's answer is not HTTP as we accept it") from None
        except OSError:
            raise _failed("the connection broke") from None


class _Pinned(AbstractResolver):
    """Answers with the addresses that were judged, whatever DNS says by now."""

    def __init__(self, addresses: list[str]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        pass


def _only(addresses: list[str]) -> Callable[[aiohttp.AddrInfoType], socket.socket]:
    """The last door: no socket is made for an address that was not judged, whichever way it came here."""

    def make(info: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, address = info
        if address[0] not in addresses:
            raise OSError("an address that was not judged")
        return socket.socket(family, kind, protocol)

    return make


def _told(request: Request) -> Attributes:
    """Never the path or the query, which may hold secrets."""
    method = request.method if request.method in hdrs.METH_ALL else "_OTHER"
    return {
        "http.request.method": method,
        "server.address": request.url.host or "",
        "server.port": request.url.port or 0,
    }


def _sent(request: Request) -> CIMultiDict[str]:
    names = {name for name, _ in request.headers}
    defaults = [(name, value) for name, value in DEFAULT_HEADERS.items() if name not in names]
    return CIMultiDict([*request.headers, *defaults])


def _redirect(request: Request, response: aiohttp.ClientResponse) -> Request | None:
    location = response.headers.get("location")
    if response.status not in REDIRECTS or location is None or request.redirect == "manual":
        return None
    if request.redirect == "error":
        raise HostError("fetch_redirect", f'{NAME}: a redirect, and the option redirect is "error"')
    return redirected(request, response.status, _wire_text(location))


async def _answer(request: Request, response: aiohttp.ClientResponse, was_redirected: bool) -> bytes:
    gzip = response.headers.get("content-encoding", "").strip().lower() in ("gzip", "x-gzip")
    body = await _read(response)
    headers = [[name.lower(), _wire_text(value)] for name, value in response.headers.items()]
    if gzip and body:
        body = gunzip(body)
        headers = [pair for pair in headers if pair[0] not in ("content-encoding", "content-length")]
    return orjson.dumps(
        {
            "status": response.status,
            "status_text": _wire_text(response.reason or ""),
            "url": str(request.url),
            "redirected": was_redirected,
            "headers": headers,
            "body_base64": base64.b64encode(body).decode(),
        }
    )


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _body_limit()
    return bytes(body)


def gunzip(data: bytes, max_bytes: int = MAX_BODY_BYTES) -> bytes:
    """Decompress, never holding more than `max_bytes` of the result. HostError past it, or when it is not gzip."""
    body = bytearray()
    for _ in range(MAX_GZIP_MEMBERS):
        member = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            body += member.decompress(data, max_bytes + 1 - len(body))
        except zlib.error:
            raise _failed("the response body is not the gzip its headers promise") from None
        if len(body) > max_bytes:
            raise _body_limit()
        if not member.eof:
            raise _failed("the response body ended early or is malformed")
        data = member.unused_data
        if not data:
            return bytes(body)
    raise _failed(f"the response body has more than {MAX_GZIP_MEMBERS} gzip members")


def _wire_text(value: str) -> str:
    """A header's bytes as fetch shows them, one character each."""
    return value.encode("utf-8", "surrogateescape").decode("latin-1")


def _blocked() -> HostError:
    return HostError("fetch_blocked", f"{NAME}: blocked address range")


def _failed(what: str) -> HostError:
    return HostError("fetch_failed", f"{NAME}: {what}")


def _body_limit() -> HostError:
    return HostError("fetch_body_limit", f"{NAME}: the response body has more than {MAX_BODY_BYTES} bytes, the limit")
