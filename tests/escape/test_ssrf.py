"""Server-side request forgery: every way we know to make atlas.fetch reach what it must not."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network

import pytest

from engines.contract import HostError
from server.host import fetch as fetch_module
from server.host.fetch import Fetcher
from server.host.names import LOOKUPS_PER_PROJECT

PUBLIC = "93.184.215.14"
SECRET = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret"


@asynccontextmanager
async def opened(fetcher: Fetcher) -> AsyncIterator[Fetcher]:
    yield fetcher
    await fetcher.close()


@pytest.fixture
async def victim() -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server on loopback that must not be reached: its port, and what arrived."""
    arrived: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.append(await reader.read(1000))
        writer.write(SECRET)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1], arrived
    server.close()
    await server.wait_closed()


async def refused(fetcher: Fetcher, url: str, **options: object) -> HostError:
    with pytest.raises(HostError) as caught:
        await fetcher.fetch("p", url, options, timeout_ms=5_000)
    return caught.value


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "0x7f.1", "0x7f000001", "2130706433", "017700000001", "0177.0.0.1", "127.0.0.1.", "0",
        "0.0.0.0", "localhost", "LOCALHOST", "localhost.", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[::127.0.0.1]", "[2002:7f00:1::]",
        "127。0。0。1", "①②⑦.0.0.1", "loc%61lhost",
    ],
)  # fmt: skip
async def test_loopback_by_every_name(victim: tuple[int, list[bytes]], host: str) -> None:
    port, arrived = victim
    async with opened(Fetcher()) as fetcher:
        found = await refused(fetcher, f"http://{host}:{port}/")
    assert found.code in ("fetch_blocked", "fetch_failed", "invalid_argument")
    assert "secret" not in found.message
    assert arrived == []


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "169.254.170.2", "[fd00:ec2::254]", "100.100.100.200", "168.63.129.16", "192.0.0.192",
     "0xa9fea9fe", "2852039166", "[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", "[fe80::1]"],
)  # fmt: skip
async def test_metadata_stays_closed_also_where_everything_is_allowed(host: str) -> None:
    async with opened(Fetcher(allowed=[ip_network("0.0.0.0/0"), ip_network("::/0")])) as fetcher:
        found = await refused(fetcher, f"http://{host}/latest/meta-data/")
    assert (found.code, found.message) == ("fetch_blocked", "atlas.fetch: blocked address range")


async def test_a_name_with_one_bad_address_among_good_ones() -> None:
    async with opened(Fetcher(lookup=lambda _host, _port: [PUBLIC, "10.0.0.7"])) as fetcher:
        assert (await refused(fetcher, "http://mixed.example/")).code == "fetch_blocked"


async def test_dns_rebinding_finds_the_first_answer_pinned(
    monkeypatch: pytest.MonkeyPatch, victim: tuple[int, list[bytes]]
) -> None:
    """A resolver that answers a public address once and loopback from then on is asked once, and believed once."""
    port, arrived = victim
    answers, asked, dialled = [[PUBLIC], ["127.0.0.1"]], list[str](), list[str]()

    def lookup(host: str, _port: int) -> list[str]:
        asked.append(host)
        return answers.pop(0)

    async def resolve_again(*_: object, **__: object) -> None:
        raise AssertionError("a second lookup")

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "getaddrinfo", resolve_again)

    async def sock_connect(sock: socket.socket, address: tuple[str, int]) -> None:
        dialled.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(loop, "sock_connect", sock_connect)
    async with opened(Fetcher(lookup=lookup)) as fetcher:
        assert (await refused(fetcher, f"http://rebind.example:{port}/")).code == "fetch_failed"
    assert (asked, dialled, arrived) == (["rebind.example"], [PUBLIC], [])


async def test_no_socket_is_made_for_an_address_that_was_not_judged() -> None:
    make = fetch_module._only([PUBLIC])
    with pytest.raises(OSError, match="not judged"):
        make((socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 80)))


@pytest.mark.parametrize("where", ["http://inner.example:{port}/", "http://127.0.0.2:{port}/", "http://[::1]:{port}/"])
async def test_every_redirect_is_judged_again(victim: tuple[int, list[bytes]], where: str) -> None:
    port, arrived = victim
    target = where.format(port=port)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode())
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    front = server.sockets[0].getsockname()[1]
    names = {"front.example": "127.0.0.1", "inner.example": "127.0.0.3"}
    allowed = [ip_network("127.0.0.1/32")]  # the front only
    async with opened(Fetcher(allowed=allowed, lookup=lambda host, _: [names.get(host, host)])) as fetcher:
        assert (await refused(fetcher, f"http://front.example:{front}/")).code == "fetch_blocked"
    server.close()
    await server.wait_closed()
    assert arrived == []


async def test_our_own_ports_stay_closed_on_allowed_addresses(victim: tuple[int, list[bytes]]) -> None:
    port, arrived = victim
    allowed = [ip_network("127.0.0.0/8")]
    async with opened(Fetcher(allowed=allowed, own_ports=frozenset((port,)))) as fetcher:
        assert (await refused(fetcher, f"http://127.0.0.1:{port}/")).code == "fetch_blocked"
    assert arrived == []


async def test_this_machine_under_another_address_is_not_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel routes a packet to one of our own addresses from that very address."""

    class Probe(socket.socket):
        def getsockname(self) -> tuple[str, int]:
            return (PUBLIC, 0)

    monkeypatch.setattr("server.host.names.socket.socket", Probe)
    async with opened(Fetcher(lookup=lambda _host, _port: [PUBLIC])) as fetcher:
        assert (await refused(fetcher, "http://ourselves.example/")).code == "fetch_blocked"


async def test_proxies_of_the_environment_are_ignored(
    monkeypatch: pytest.MonkeyPatch, victim: tuple[int, list[bytes]]
) -> None:
    port, arrived = victim
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    async with opened(Fetcher(lookup=lambda _host, _port: ["198.51.100.1"])) as fetcher:
        assert (await refused(fetcher, "http://public.example/")).code == "fetch_blocked"
    assert arrived == []


@pytest.mark.parametrize("header", ["Host", "Transfer-Encoding", "Content-Length", "Connection", "Proxy-Connection"])
async def test_a_request_cannot_be_split_or_renamed(victim: tuple[int, list[bytes]], header: str) -> None:
    port, arrived = victim
    async with opened(Fetcher(allowed=[ip_network("127.0.0.0/8")])) as fetcher:
        url = f"http://127.0.0.1:{port}/"
        await fetcher.fetch("p", url, {"headers": [[header, "evil"]]}, timeout_ms=5_000)
        assert (await refused(fetcher, url, headers=[["x", "a\r\nevil: 1"]])).code == "invalid_argument"
        assert (await refused(fetcher, url + "\r\nevil: 1")).code == "invalid_argument"
    assert len(arrived) == 1
    assert b"evil" not in arrived[0]


async def test_slow_name_servers_hold_one_project_only() -> None:
    held = threading.Event()

    def lookup(host: str, _port: int) -> list[str]:
        if host == "slow.example":
            held.wait(10)
        return ["127.0.0.1"]

    async with opened(Fetcher(lookup=lookup)) as fetcher:
        for _ in range(LOOKUPS_PER_PROJECT):
            with pytest.raises(HostError, match="within 20 ms"):
                await fetcher.fetch("greedy", "http://slow.example/", None, timeout_ms=20)
        with pytest.raises(HostError, match="within 20 ms"):
            await fetcher.fetch("greedy", "http://fast.example/", None, timeout_ms=20)
        with pytest.raises(HostError, match="blocked"):
            await fetcher.fetch("patient", "http://fast.example/", None, timeout_ms=5_000)
        held.set()
        with pytest.raises(HostError, match="blocked"):
            await fetcher.fetch("greedy", "http://fast.example/", None, timeout_ms=5_000)
