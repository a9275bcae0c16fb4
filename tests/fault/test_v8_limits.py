"""Hostile code in real Node and Deno children: each limit ends it with its own outcome, and it harms nobody else."""

import asyncio
import os
import re
import resource
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from engines.contract import Outcome
from engines.cpu_clock import cpu_ms
from engines.deno.engine import Deno
from engines.node.engine import Node
from engines.v8.engine import KIND, V8
from tests.fix_sandbox import LIMITS, children_of, is_alive, open_descriptors, program, run, until

MIB = 1024 * 1024
SMALL = replace(LIMITS, memory_bytes=48 * MIB, wall_ms=20_000, cpu_ms=20_000)
ENGINES: dict[str, type[Node] | type[Deno]] = {"node": Node, "deno": Deno}


@pytest.fixture(params=ENGINES)
async def v8(request: pytest.FixtureRequest) -> AsyncIterator[V8]:
    """Whatever the test does, nothing is left behind."""
    descriptors = open_descriptors()
    subject = ENGINES[request.param](max_children=4, max_children_per_project=4)
    await subject.start()
    pids = {subject._keeper.zygote.pid}
    try:
        yield subject
    finally:
        pids |= set(children_of(subject))
        await subject.close()
    assert not any(map(is_alive, pids))
    assert open_descriptors() <= descriptors


HOGS = {
    "objects": "const a = []; for (;;) a.push({x: new Array(100).fill(1)})",
    "buffers": "const a = []; for (;;) a.push(new Uint8Array(1 << 20).fill(1))",
    "an untouched buffer, objects": "const b = new ArrayBuffer(30 << 20), a = []; for (;;) a.push({b, x: [1, 2, 3]})",
    "WebAssembly": (
        "const m = new WebAssembly.Memory({initial: 1, maximum: 65536});"
        "for (;;) { m.grow(16); new Uint8Array(m.buffer).fill(1) }"
    ),
    "promises": "const a = []; for (;;) a.push(Promise.resolve().then(() => a))",
}


async def test_no_kind_of_memory_passes_the_limit(v8: V8) -> None:
    for name, code in HOGS.items():
        result = await run(v8, program(code, function=name), limits=SMALL)
        caught = result.error is not None and result.error.name == "RangeError"
        assert result.outcome is Outcome.MEMORY_LIMIT or (caught and result.outcome is Outcome.EXCEPTION), (
            name,
            result,
        )
        assert result.metrics.memory_bytes <= SMALL.memory_bytes + 1.25 * KIND.base_bytes, name
    again = await run(v8, program("return 1", function="objects", version=2), limits=SMALL)
    assert again.outcome is Outcome.OK
    assert v8.report()["quarantined"] == 0


async def test_catching_every_refusal_of_memory_gets_no_more_of_it(v8: V8) -> None:
    code = "const a = []; for (;;) try { a.push(new Uint8Array(1 << 20).fill(1)) } catch {}"
    task = asyncio.create_task(run(v8, code, limits=replace(SMALL, wall_ms=1_500)))
    peak = 0
    while not task.done():
        for link in v8._links.values():
            peak = max(peak, _resident_bytes(link.worker.pid))
        await asyncio.wait((task,), timeout=0.02)
    assert (await task).outcome in (Outcome.WALL_LIMIT, Outcome.MEMORY_LIMIT)
    assert 0 < peak <= SMALL.memory_bytes + 1.25 * KIND.base_bytes


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


async def test_the_wall_clock_and_processor_time_end_a_loop(v8: V8) -> None:
    spin = program("for (;;);")
    result = await run(v8, spin, limits=replace(LIMITS, wall_ms=300))
    assert (result.outcome, result.limit and result.limit.limit) == (Outcome.WALL_LIMIT, "wall_clock")
    result = await run(v8, spin, limits=replace(LIMITS, wall_ms=30_000, cpu_ms=200))
    assert (result.outcome, result.limit and result.limit.limit) == (Outcome.CPU_LIMIT, "cpu")
    assert result.metrics.cpu_ms >= 200
    assert (await run(v8, "return 1")).outcome is Outcome.OK


LEFT_BEHIND = {
    "a thread": "crypto.pbkdf2('a', 'b', 2 ** 31 - 1, 64, 'sha512', () => {})",
    "a callback": "crypto.pbkdf2('a', 'b', 1_000_000, 8, 'sha1', () => { for (;;); })",
}


@pytest.mark.parametrize("left", LEFT_BEHIND.values(), ids=LEFT_BEHIND)
async def test_what_a_run_leaves_behind_does_not_go_on_computing(v8: V8, left: str) -> None:
    code = f"import crypto from 'node:crypto'; export default () => {{ {left}; return 1 }}"
    assert (await run(v8, program(code))).value == b"1"
    pid = next(pid for pid, state in children_of(v8).items() if state == "idle")
    await until(lambda: not is_alive(pid), timeout_s=20)
    assert v8.report()["crashes"] == 0


async def test_a_child_serves_one_fresh_run_and_warm_ones_until_it_is_idle(v8: V8) -> None:
    counter = "let n = 0; export default () => ++n"
    assert [(await run(v8, program(counter))).value for _ in range(3)] == [b"1", b"2", b"3"]
    fresh = program(counter, function="g", fresh=True)
    assert [(await run(v8, fresh)).value for _ in range(2)] == [b"1", b"1"]


async def test_what_a_child_is(v8: V8) -> None:
    assert (await run(v8, "return 1")).outcome is Outcome.OK
    pid = next(pid for pid, state in children_of(v8).items() if state == "idle")
    status, limits = _table(pid, "status"), _table(pid, "limits")
    assert (status["CapEff:"], status["CapPrm:"]) == ("0" * 16, "0" * 16)
    assert (status["NoNewPrivs:"], status["Seccomp:"]) == ("1", "2")
    layers = v8.report()["layers"]
    assert isinstance(layers, dict)
    if layers["uid"] == "per-worker":
        assert int(status["Uid:"]) >= 2_000_000
    data_bytes = v8._keeper.zygote.idle_data_bytes + LIMITS.memory_bytes
    assert (limits["Max data size"], limits["Max file size"], limits["Max core file size"]) == (
        str(data_bytes),
        "0",
        "0",
    )
    known = ("/dev/null", "/dev/urandom", "socket:", "pipe:", "anon_inode:")
    assert [held for held in _descriptors(pid) if not held.startswith(known)] == []
    told = {"OPENSSL_CONF", "UV_USE_IO_URING", "UV_THREADPOOL_SIZE", "DENO_DIR", "DENO_NO_UPDATE_CHECK", "NO_COLOR"}
    assert _environment(pid) <= told


def _table(pid: int, name: str) -> dict[str, str]:
    """The first value of every row, by the row's name."""
    rows = (re.split(r"\s{2,}|\t", line.strip()) for line in Path(f"/proc/{pid}/{name}").read_text().splitlines())
    return {row[0]: row[1] for row in rows if len(row) > 1}


def _descriptors(pid: int) -> list[str]:
    return [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]


def _environment(pid: int) -> set[str]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return {entry.split(b"=")[0].decode() for entry in entries if entry}


async def test_a_blank_has_the_memory_limit_of_whoever_is_bound_to_it(v8: V8) -> None:
    for mib in (48, 96, 48):
        limits = replace(LIMITS, memory_bytes=mib * MIB)
        assert (await run(v8, program("return 1", function=f"f{mib}"), limits=limits)).outcome is Outcome.OK
    for child in v8._links:
        if child.key is not None:
            assert child.shape == (child.key[4],)


async def test_a_dead_zygote_is_replaced_and_its_memory_measured_anew(v8: V8) -> None:
    assert (await run(v8, "return 1")).outcome is Outcome.OK
    old = v8._keeper.zygote
    os.kill(old.pid, signal.SIGKILL)
    await until(lambda: v8._keeper.zygote is not old)
    assert v8._keeper.zygote.idle_data_bytes > 0
    assert (await run(v8, program("return 2", function="g"))).value == b"2"


SUPERVISOR = """
import asyncio, sys
from engines.deno.engine import Deno
from engines.node.engine import Node
from tests.fix_sandbox import program, run

async def main():
    engine = {"node": Node, "deno": Deno}[sys.argv[1]]()
    await engine.start()
    await run(engine, "return 1")
    spinning = asyncio.create_task(run(engine, program("for (;;);", function="spin")))
    while len(engine._links) < 3:
        await asyncio.sleep(0.01)
    print(engine._keeper.zygote.pid, *(link.worker.pid for link in engine._links.values()), flush=True)
    await spinning

asyncio.run(main())
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_supervisor_takes_everything_along(engine: str) -> None:
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, engine],
        env={"PYTHONPATH": os.pathsep.join((str(Path(__file__).parents[2]), *filter(None, sys.path)))},
        stdout=subprocess.PIPE,
        text=True,
    )
    with supervisor:
        assert supervisor.stdout is not None
        watched = [os.pidfd_open(int(pid)) for pid in supervisor.stdout.readline().split()]
        assert len(watched) >= 4
        supervisor.kill()
        for pidfd in watched:
            assert select.select([pidfd], [], [], 5)[0], "still alive"
            os.close(pidfd)


def test_the_clock_of_a_process() -> None:
    before = cpu_ms(os.getpid())
    sum(range(300_000))
    assert cpu_ms(os.getpid()) > before > 0
    with subprocess.Popen(["/bin/true"]) as gone:
        pass
    assert cpu_ms(gone.pid) == 0
