"""A real zygote: its workers' whole life, and that nobody survives whom nobody watches."""

import asyncio
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from engines import probe, selftest
from engines.zygote import Exit, SpawnFailed, Worker, Zygote, ZygoteError
from tests.escape.attacker import SETUPS

PROGRAM = "tests.integration.zygote_program"


@asynccontextmanager
async def running(module: str = PROGRAM) -> AsyncIterator[Zygote]:
    zygote = await Zygote.launch(module)
    try:
        yield zygote
    finally:
        await zygote.close()


@pytest.fixture
async def zygote() -> AsyncIterator[Zygote]:
    async with running() as zygote:
        yield zygote


class Talk:
    """A worker and our end of its socket."""

    def __init__(self, worker: Worker, ours: socket.socket) -> None:
        self.worker = worker
        self.ours = ours

    async def ask(self, order: str) -> bytes:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(10):
            await loop.sock_sendall(self.ours, order.encode())
            return await loop.sock_recv(self.ours, 4096)

    async def ended(self) -> Exit:
        async with asyncio.timeout(10):
            return await asyncio.shield(self.worker.exited)


async def spawn(zygote: Zygote) -> Talk:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return Talk(await zygote.spawn(theirs), ours)


async def test_a_worker_serves_its_socket_and_ends_with_it(zygote: Zygote) -> None:
    talk = await spawn(zygote)
    assert await talk.ask("echo hello") == b"hello"
    talk.ours.close()
    ended = await talk.ended()
    assert (ended.status, ended.signal) == (0, None)
    assert 0 < ended.cpu_ms < 1000
    assert 1 << 20 < ended.maxrss_bytes < 64 << 20


@pytest.mark.parametrize(
    ("order", "status", "by"),
    [
        ("exit 7", 7, None),
        ("raise", 70, None),
        ("crash", -signal.SIGSEGV, signal.SIGSEGV),
        ("forbidden", -signal.SIGSYS, signal.SIGSYS),
    ],
)
async def test_how_a_worker_ended(zygote: Zygote, order: str, status: int, by: signal.Signals | None) -> None:
    bystander = await spawn(zygote)
    talk = await spawn(zygote)
    with talk.ours, bystander.ours:
        assert await talk.ask(order) == b""
        ended = await talk.ended()
        assert (ended.status, ended.signal) == (status, by)
        assert await bystander.ask("echo unharmed") == b"unharmed"


async def test_abort_is_a_crash_and_not_an_attack(zygote: Zygote) -> None:
    talk = await spawn(zygote)
    with talk.ours:
        assert await talk.ask("abort") == b""
        ended = await talk.ended()
        assert ended.signal not in (None, signal.SIGSYS)


async def test_a_traceback_can_be_read(zygote: Zygote) -> None:
    talk = await spawn(zygote)
    with talk.ours:
        await talk.ask("raise")
        await talk.ended()
    assert "ArithmeticError: raised in the worker" in zygote.stderr()
    assert zygote.stderr() == ""


async def test_kill_ends_a_spinning_worker(zygote: Zygote) -> None:
    talk = await spawn(zygote)
    with talk.ours:
        assert await talk.ask("spin") == b"spinning"
        talk.worker.kill()
        assert (await talk.ended()).signal is signal.SIGKILL
        assert await asyncio.get_running_loop().sock_recv(talk.ours, 1) == b""
        talk.worker.kill()


async def test_a_worker_sees_nothing_of_ours(zygote: Zygote) -> None:
    talk = await spawn(zygote)
    with talk.ours:
        seen = json.loads(await talk.ask("look"))
    assert seen == {"environ": {}, "descriptors": [0, 1, 2, 3], "writable_code": [], "modules": []}


async def test_workers_have_users_of_their_own(zygote: Zygote) -> None:
    talks = [await spawn(zygote) for _ in range(3)]
    uids = [await uid_of(talk) for talk in talks]
    if zygote.layers["uid"] == "per-worker":
        assert len(set(uids)) == 3
        assert min(uids) >= 2_000_000
    else:
        assert set(uids) == {os.getuid()}
    talks[1].ours.close()
    await talks[1].ended()
    again = await spawn(zygote)
    assert await uid_of(again) == uids[1]
    for talk in (talks[0], talks[2], again):
        talk.ours.close()


async def uid_of(talk: Talk) -> int:
    assert await talk.ask("echo locked") == b"locked"
    return next(int(line.split()[1]) for line in status(talk.worker.pid) if line.startswith("Uid:"))


def status(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/status").read_text().splitlines()


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_many_at_once(zygote: Zygote) -> None:
    talks = await asyncio.gather(*(spawn(zygote) for _ in range(80)))
    assert await asyncio.gather(*(talk.ask(f"echo {n}") for n, talk in enumerate(talks))) == [
        str(n).encode() for n in range(80)
    ]
    for talk in talks:
        talk.ours.close()
    assert {(await talk.ended()).status for talk in talks} == {0}


async def test_the_self_test_passes(zygote: Zygote) -> None:
    assert await selftest.probe(zygote) == []


async def test_the_self_test_takes_no_crash_for_a_proof(zygote: Zygote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(probe.ATTEMPTS, "unknown", lambda: None)
    assert await selftest.probe(zygote) == ["unknown: no proof, the worker ended with 70"]


async def test_a_cancelled_spawn_leaves_no_worker(zygote: Zygote) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    spawning = asyncio.create_task(zygote.spawn(theirs))
    await asyncio.sleep(0)
    spawning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await spawning
    async with asyncio.timeout(10):
        assert await asyncio.get_running_loop().sock_recv(ours, 1) == b""
    ours.close()
    talk = await spawn(zygote)
    with talk.ours:
        assert await talk.ask("echo well") == b"well"


async def test_a_spawn_that_the_machine_refuses(zygote: Zygote) -> None:
    pid = zygote_pid(zygote)
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
    ours, theirs = socket.socketpair()
    with ours, pytest.raises(SpawnFailed, match="Too many open files"):
        await zygote.spawn(theirs)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    talk = await spawn(zygote)
    with talk.ours:
        assert await talk.ask("echo recovered") == b"recovered"


def zygote_pid(zygote: Zygote) -> int:
    """The zygote itself, behind its stub if there is one."""
    launched = zygote.pid
    children = Path(f"/proc/{launched}/task/{launched}/children").read_text().split()
    return int(children[0]) if zygote.layers["pidns"] == "on" else launched


@pytest.mark.parametrize("victim", ["launched", "zygote"])
async def test_a_dead_zygote_takes_its_workers_along(zygote: Zygote, victim: str) -> None:
    talk = await spawn(zygote)
    with talk.ours:
        assert await talk.ask("spin") == b"spinning"
        os.kill(zygote_pid(zygote) if victim == "zygote" else zygote.pid, signal.SIGKILL)
        assert (await talk.ended()).signal is signal.SIGKILL
        async with asyncio.timeout(10):
            reason = await asyncio.shield(zygote.died)
        assert "SIGKILL" in reason or "137" in reason
    ours, theirs = socket.socketpair()
    with ours, pytest.raises(ZygoteError, match="gone"):
        await zygote.spawn(theirs)


async def test_close_leaves_nothing_open() -> None:
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    async with running() as zygote:
        talks = [await spawn(zygote) for _ in range(3)]
        assert await talks[0].ask("spin") == b"spinning"
    for talk in talks:
        assert talk.worker.exited.done()
        assert not exists(talk.worker.pid)
        talk.ours.close()
    await zygote.close()
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


async def test_a_cancelled_launch_leaves_nothing_open() -> None:
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    launching = asyncio.create_task(Zygote.launch(PROGRAM))
    await asyncio.sleep(0)
    launching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await launching
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


async def test_a_module_that_is_not_there() -> None:
    with pytest.raises(ZygoteError, match="ModuleNotFoundError: No module named 'no_such_program'"):
        await Zygote.launch("no_such_program")


def test_only_the_main_thread_may_launch() -> None:
    raised: list[BaseException] = []

    def launch() -> None:
        try:
            asyncio.run(Zygote.launch(PROGRAM))
        except ZygoteError as why:
            raised.append(why)

    thread = threading.Thread(target=launch)
    thread.start()
    thread.join()
    assert "main thread" in str(raised[0])


def test_under_uvloop() -> None:
    async def scenario() -> None:
        async with running() as zygote:
            talk = await spawn(zygote)
            assert await talk.ask("echo fast") == b"fast"
            talk.worker.kill()
            assert (await talk.ended()).signal is signal.SIGKILL
            talk.ours.close()
            survivor = await spawn(zygote)
        assert survivor.worker.exited.result().signal is signal.SIGKILL
        survivor.ours.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


SUPERVISOR = """
import asyncio, socket, sys
from engines.zygote import Zygote
from tests.escape.attacker import weaken

async def main():
    zygote = await Zygote.launch("tests.integration.zygote_program")
    pids, kept = [zygote.pid], []
    for _ in range(3):
        ours, theirs = socket.socketpair()
        worker = await zygote.spawn(theirs)
        ours.sendall(b"spin")
        ours.recv(16)
        pids.append(worker.pid)
        kept.append(ours)
    print(*pids, flush=True)
    await asyncio.Event().wait()

weaken(sys.argv[1])
asyncio.run(main())
"""


@pytest.mark.parametrize("setup", SETUPS)
def test_a_killed_supervisor_takes_everything_along(setup: str) -> None:
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, setup],
        env={"PYTHONPATH": os.pathsep.join((str(Path(__file__).parents[2]), *filter(None, sys.path)))},
        stdout=subprocess.PIPE,
        text=True,
    )
    with supervisor:
        assert supervisor.stdout is not None
        watched = [os.pidfd_open(int(pid)) for pid in supervisor.stdout.readline().split()]
        assert len(watched) == 4
        supervisor.kill()
        for pidfd in watched:
            assert select.select([pidfd], [], [], 5)[0], "still alive"
            os.close(pidfd)
