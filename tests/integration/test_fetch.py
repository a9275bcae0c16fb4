"""atlas.fetch against real HTTP servers on this machine, which the tests allow it to reach."""

import asyncio
import base64
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any, cast
from uuid import uuid4

import orjson
import pytest
from aiohttp import web

from engines.contract import HostError
from server.host.fetch import MAX_BODY_BYTES, PER_PROJECT, Fetcher
from server.postgres.control import Pool
from server.workflows.attempting import Attempting
from server.workflows.definition import Node
from server.workflows.nodes import http
from server.workflows.nodes.http import HttpNode
from server.workflows.nodes.step import Attempt, Output, StepFailed
from server.workflows.templates import Scope

LOOPBACK = (ip_network("127.0.0.0/8"),)
Serve = Callable[[Callable[[web.Request], Awaitable[web.StreamResponse]]], Awaitable[str]]
Raw = Callable[[bytes], Awaitable[str]]


@pytest.fixture
async def fetcher() -> AsyncIterator[Fetcher]:
    found = Fetcher(allowed=LOOPBACK)
    yield found
    await found.close()


def http_attempt(url: str, *, timeout_s: float) -> Attempt:
    config = {"url": url, "method": "GET", "headers": {}, "fail_on_status": True}
    return Attempt(
        project_id="p",
        tier="free",
        run_id=str(uuid4()),
        trigger_id=None,
        node=Node(id="n", type="http", config=config, timeout_s=timeout_s),
        input=config,
        scope=Scope(event={}, steps={}, run={}),
        attempt=1,
        lease="lease",
        now=datetime.now(UTC),
    )


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start a server that answers every request with the handler; gives its base URL."""
    runners: list[web.AppRunner] = []

    async def start(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> str:
        app = web.Application(client_max_size=2 * MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def raw() -> AsyncIterator[Raw]:
    """Start a server that answers every connection with these bytes and closes it; gives its URL."""
    servers: list[asyncio.Server] = []

    async def start(answer: bytes) -> str:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)
                await writer.drain()
            except (OSError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()


async def fetch(
    fetcher: Fetcher, url: str, *, project_id: str = "p", left_ms: float = 10_000, **options: object
) -> dict[str, Any]:
    answer: dict[str, Any] = orjson.loads(await fetcher.fetch(project_id, url, options, timeout_ms=left_ms))
    answer["body"] = base64.b64decode(answer.pop("body_base64"))
    return answer


async def refusal(fetcher: Fetcher, url: str, **options: object) -> HostError:
    with pytest.raises(HostError) as caught:
        await fetcher.fetch("p", url, options, timeout_ms=10_000)
    return caught.value


async def echo(request: web.Request) -> web.Response:
    return web.json_response(
        {
            "method": request.method,
            "path": request.path_qs,
            "headers": [[name.lower(), value] for name, value in request.headers.items()],
            "body": base64.b64encode(await request.read()).decode(),
        }
    )


async def test_a_request_and_its_response(fetcher: Fetcher, serve: Serve) -> None:
    base = await serve(echo)
    answer = await fetch(
        fetcher, base + "/a%2Fb?q=1#frag", method="post", body_base64="AAEC", headers=[["X-A", "1"], ["X-A", "2"]]
    )
    assert (answer["status"], answer["status_text"], answer["redirected"]) == (200, "OK", False)
    assert answer["url"] == base + "/a%2Fb?q=1"
    seen = orjson.loads(answer["body"])
    assert (seen["method"], seen["path"], seen["body"]) == ("POST", "/a%2Fb?q=1", "AAEC")
    assert sorted(seen["headers"]) == sorted(
        [
            ["host", base.removeprefix("http://")],
            ["x-a", "1"],
            ["x-a", "2"],
            ["accept", "*/*"],
            ["accept-encoding", "gzip"],
            ["user-agent", "atlas-functions"],
            ["content-length", "3"],
            ["connection", "close"],
        ]
    )


async def test_headers_come_back_one_by_one(fetcher: Fetcher, raw: Raw) -> None:
    head = (
        b"HTTP/1.1 404 Nothing h\xe9re\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-L: \xff\r\ncontent-length: 2\r\n\r\n"
    )
    url = await raw(head + b"no")
    answer = await fetch(fetcher, url)
    assert (answer["status"], answer["status_text"], answer["body"]) == (404, "Nothing hére", b"no")
    assert answer["headers"] == [["set-cookie", "a=1"], ["set-cookie", "b=2"], ["x-l", "ÿ"], ["content-length", "2"]]


async def test_gzip_is_undone_within_the_limit(fetcher: Fetcher, serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        body = b"x" * (1000 if request.path == "/small" else MAX_BODY_BYTES + 1)
        return web.Response(body=gzip.compress(body), headers={"content-encoding": "gzip"})

    base = await serve(handler)
    answer = await fetch(fetcher, base + "/small")
    assert answer["body"] == b"x" * 1000
    assert not {"content-encoding", "content-length"} & {name for name, _ in answer["headers"]}
    assert (await refusal(fetcher, base + "/bomb")).code == "fetch_body_limit"


async def test_bodies_end_at_the_limit(fetcher: Fetcher, serve: Serve) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        left = int(request.query["bytes"])
        while left > 0:
            await response.write(b"x" * min(left, 65_536))
            left -= 65_536
        return response

    base = await serve(handler)
    assert len((await fetch(fetcher, f"{base}/?bytes={MAX_BODY_BYTES}"))["body"]) == MAX_BODY_BYTES
    found = await refusal(fetcher, f"{base}/?bytes={100 * MAX_BODY_BYTES}")
    assert found.code == "fetch_body_limit"
    assert str(MAX_BODY_BYTES) in found.message


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"SSH-2.0-secret banner\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(1000)) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nsecret\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 6\r\n\r\nsecret",
        b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: secret\r\n\r\n",
    ],
)  # fmt: skip
async def test_servers_that_do_not_speak_http(fetcher: Fetcher, raw: Raw, answer: bytes) -> None:
    found = await refusal(fetcher, await raw(answer))
    assert found.code in ("fetch_failed", "invalid_argument")
    assert "secret" not in found.message


async def test_redirects_are_followed_counted_and_reported(fetcher: Fetcher, serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        left = int(request.path.strip("/"))
        if left == 0:
            return await echo(request)
        raise web.HTTPSeeOther(f"/{left - 1}")

    base = await serve(handler)
    answer = await fetch(fetcher, base + "/5", method="POST", body_base64="eA==", headers=[["Content-Type", "a/b"]])
    seen = orjson.loads(answer["body"])
    assert (answer["redirected"], answer["url"], seen["method"], seen["body"]) == (True, base + "/0", "GET", "")
    assert "content-type" not in dict(seen["headers"])
    assert (await refusal(fetcher, base + "/6")).code == "fetch_redirect"
    assert (await refusal(fetcher, base + "/1", redirect="error")).code == "fetch_redirect"
    manual = await fetch(fetcher, base + "/3", redirect="manual")
    assert (manual["status"], dict(manual["headers"])["location"]) == (303, "/2")


async def test_credentials_do_not_follow_to_another_origin(fetcher: Fetcher, serve: Serve) -> None:
    other = await serve(echo)

    async def handler(request: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect(other + "/")

    base = await serve(handler)
    answer = await fetch(fetcher, base, headers=[["Authorization", "Bearer x"], ["Cookie", "a=b"], ["X-A", "1"]])
    names = {name for name, _ in orjson.loads(answer["body"])["headers"]}
    assert "x-a" in names
    assert not names & {"authorization", "cookie"}


async def test_nothing_is_remembered_between_calls(fetcher: Fetcher, serve: Serve) -> None:
    ports: set[int] = set()

    async def handler(request: web.Request) -> web.Response:
        assert request.transport
        ports.add(request.transport.get_extra_info("peername")[1])
        response = await echo(request)
        response.set_cookie("session", "secret")
        return response

    base = await serve(handler)
    for _ in range(3):
        answer = await fetch(fetcher, base)
        assert "cookie" not in dict(orjson.loads(answer["body"])["headers"])
    assert len(ports) == 3


async def test_a_slow_server_ends_in_a_timeout(fetcher: Fetcher, serve: Serve) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x")
        await asyncio.Event().wait()
        return response

    base = await serve(handler)
    assert "within 100 ms" in (await refusal(fetcher, base, timeout_ms=100)).message
    with pytest.raises(HostError, match="within 50 ms") as caught:  # the invocation's remaining time is shorter
        await fetch(fetcher, base, left_ms=50)
    assert caught.value.code == "fetch_timeout"


async def test_one_project_cannot_take_all_places(fetcher: Fetcher, serve: Serve) -> None:
    started, release = asyncio.Semaphore(0), asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        started.release()
        if request.path == "/hold":
            await release.wait()
        return web.Response()

    base = await serve(handler)
    held = [asyncio.create_task(fetcher.fetch("greedy", base + "/hold", None, timeout_ms=9_000)) for _ in range(100)]
    async with asyncio.timeout(20):
        for _ in range(PER_PROJECT):
            await started.acquire()
    await fetch(fetcher, base + "/other", project_id="patient")
    release.set()
    await asyncio.gather(*held)


async def test_a_step_that_finds_no_turn_was_not_attempted_and_its_time_begins_with_its_turn(
    fetcher: Fetcher, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, release = asyncio.Semaphore(0), asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        started.release()
        if request.path == "/hold":
            await release.wait()
        return web.Response()

    base = await serve(handler)
    attempting = Attempting(cast("Pool", None), {"http": HttpNode(fetcher)})
    step = http_attempt(base + "/step", timeout_s=1.5)
    held = [asyncio.create_task(fetcher.fetch("p", base + "/hold", None, timeout_ms=9_000)) for _ in range(PER_PROJECT)]
    async with asyncio.timeout(20):
        for _ in range(PER_PROJECT):
            await started.acquire()
    monkeypatch.setattr(http, "TURN_S", 0.05)
    with pytest.raises(StepFailed) as caught:
        await attempting.run(step)
    assert (caught.value.reason, caught.value.no_room) == ("HTTP_NO_ROOM", True)
    monkeypatch.setattr(http, "TURN_S", 20.0)
    waiting = asyncio.create_task(attempting.run(http_attempt(base + "/step", timeout_s=20.0)))
    impatient = asyncio.create_task(attempting.run(step))
    await asyncio.wait([waiting, impatient], timeout=1.7)  # longer than the time of the second
    release.set()
    await asyncio.gather(*held)
    assert isinstance(await waiting, Output)
    assert isinstance(await impatient, Output)


async def test_nobody_there(fetcher: Fetcher, raw: Raw) -> None:
    assert (await refusal(fetcher, "http://127.0.0.1:1/")).code == "fetch_failed"
