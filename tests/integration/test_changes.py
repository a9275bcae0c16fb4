"""Announcements between processes over a real Postgres: with the commit, in order, fenced, and honest about gaps."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import psycopg
import pytest

from server.clock import SystemClock
from server.postgres.changes import LEASE_S, Changes
from server.postgres.control import Pool, transaction

DEADLINE_S = 10.0


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not holds():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.005)


class Listener:
    """One process of the cluster, as far as changes are concerned."""

    def __init__(self, url: str) -> None:
        self.changes = Changes(url)
        self.heard: list[str] = []
        self.gaps = 0
        self.changes.subscribe("function", self.heard.append, self.on_gap)

    def on_gap(self) -> None:
        self.gaps += 1


Start = Callable[[], Awaitable[Listener]]


@pytest.fixture
async def listener(control_url: str) -> AsyncIterator[Start]:
    started: list[Listener] = []

    async def start() -> Listener:
        one = Listener(control_url)
        started.append(one)
        await one.changes.start()
        return one

    yield start
    for one in started:
        await one.changes.close()


async def announce(pool: Pool, key: str, changes: Changes) -> None:
    async with transaction(pool) as conn:
        await changes.announce(conn, "function", key)


def sever(url: str) -> int:
    """Kill every listening connection on the server's side."""
    with psycopg.connect(url, autocommit=True) as conn:
        return conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'atlas-listener:%'"
        ).rowcount


async def test_after_the_fence_every_process_has_heard_in_order(pool: Pool, listener: Start) -> None:
    processes = [await listener() for _ in range(4)]
    for round_number in range(20):
        await announce(pool, f"{round_number}", processes[0].changes)
        await processes[0].changes.fence()
        expected = [f"{number}" for number in range(round_number + 1)]
        for process in processes:
            assert process.heard == expected or not process.changes.connected


async def test_fences_at_the_same_time_all_hold(pool: Pool, listener: Start) -> None:
    both = await listener(), await listener()

    async def write(key: str, writer: Listener) -> None:
        await announce(pool, key, writer.changes)
        await writer.changes.fence()
        for process in both:
            assert key in process.heard or not process.changes.connected

    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(write(f"{number}", both[number % 2]) for number in range(12)))


async def test_a_rolled_back_change_is_not_announced(pool: Pool, listener: Start) -> None:
    one = await listener()

    async def fail() -> None:
        async with transaction(pool) as conn:
            await one.changes.announce(conn, "function", "never")
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    await announce(pool, "later", one.changes)
    await until(lambda: one.heard == ["later"])


async def test_a_topic_reaches_its_subscribers_only(control_url: str, pool: Pool, listener: Start) -> None:
    one = await listener()
    async with transaction(pool) as conn:
        await one.changes.announce(conn, "project", "p")
        await one.changes.announce(conn, "function", "a:b/c")
    await until(lambda: one.heard == ["a:b/c"])


async def test_a_lost_connection_comes_back_and_owns_up_to_the_gap(
    control_url: str, pool: Pool, listener: Start
) -> None:
    one = await listener()
    assert one.gaps == 1
    assert sever(control_url) == 1
    await announce(pool, "missed", one.changes)
    await until(lambda: one.gaps == 2)
    await until(lambda: one.changes.connected)
    await announce(pool, "heard", one.changes)
    await until(lambda: one.heard[-1:] == ["heard"])


async def test_the_gap_is_told_before_the_cache_may_be_trusted_again(control_url: str, listener: Start) -> None:
    one = await listener()
    trusted_at_gap: list[bool] = []
    one.changes.subscribe("key", lambda _: None, lambda: trusted_at_gap.append(one.changes.connected))
    sever(control_url)
    await until(lambda: one.gaps == 2)
    assert trusted_at_gap == [False]


async def test_a_callback_that_fails_is_a_gap_and_not_the_end(pool: Pool, listener: Start) -> None:
    one = await listener()
    bad = iter([RuntimeError("a bug")])

    def fail(key: str) -> None:
        if (failure := next(bad, None)) is not None:
            raise failure

    one.changes.subscribe("function", fail, lambda: None)
    await announce(pool, "first", one.changes)
    await until(lambda: one.gaps == 2)
    await announce(pool, "second", one.changes)
    await until(lambda: one.heard[-1:] == ["second"])


class SkewedClock(SystemClock):
    """The system's, after a leap."""

    def __init__(self) -> None:
        self.leap_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.leap_s


async def test_trust_ends_with_the_lease_alone_and_comes_back_without_a_gap(control_url: str) -> None:
    clock, gaps = SkewedClock(), list[None]()
    changes = Changes(control_url, clock=clock)
    changes.subscribe("function", lambda _: None, lambda: gaps.append(None))
    await changes.start()
    try:
        await until(lambda: changes.connected)
        clock.leap_s += LEASE_S
        assert not changes.connected, "as after a pause of the process: what happened meanwhile was not heard yet"
        await until(lambda: changes.connected)
        assert len(gaps) == 1, "the connection lived on, so nothing was missed"
    finally:
        await changes.close()
    assert not changes.connected


class Wire:
    """A TCP link to the database's socket that can be frozen: open, but nothing passes."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> "Wire":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def freeze(self) -> None:
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(self._path)
        self._writers += [writer, far_writer]
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            self._tasks.add(asyncio.create_task(self._pump(source, sink)))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await self._flowing.wait()
            sink.write(data)
        sink.close()


async def test_a_silent_network_ends_trust_within_the_lease_and_fences_still_hold(
    control_url: str, pool: Pool, listener: Start
) -> None:
    near = await listener()
    params = psycopg.conninfo.conninfo_to_dict(control_url)
    path = f"{params['host']}/.s.PGSQL.{params.get('port', 5432)}"
    async with Wire(path) as wire:
        far = Listener(psycopg.conninfo.make_conninfo(control_url, host="127.0.0.1", port=wire.port))
        try:
            await far.changes.start()
            wire.freeze()
            await announce(pool, "unheard", near.changes)
            started_s = asyncio.get_running_loop().time()
            await near.changes.fence()
            took_s = asyncio.get_running_loop().time() - started_s
            assert not far.changes.connected, "the fence may only return when the silent process has lost its lease"
            assert far.heard == []
            await until(lambda: near.heard == ["unheard"])
            assert took_s >= LEASE_S * 0.9, "it could not know earlier"
            wire.thaw()
            await until(lambda: far.gaps == 2 and far.changes.connected)
        finally:
            wire.thaw()
            await far.changes.close()


async def test_a_database_that_is_not_there_is_an_error_at_start() -> None:
    changes = Changes("postgresql:///none?host=/nonexistent", connect_s=0.2)
    with pytest.raises(psycopg.OperationalError):
        await changes.start()
    assert not changes.connected


def test_a_topic_cannot_pass_for_something_else() -> None:
    changes = Changes("postgresql:///none")
    for topic in ("fence", "a:b"):
        with pytest.raises(ValueError, match="cannot be a topic"):
            changes.subscribe(topic, lambda _: None, lambda: None)
