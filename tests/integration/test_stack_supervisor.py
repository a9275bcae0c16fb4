"""The supervisor with small programs as parts: starting again, giving up, stopping."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from server.stack.logfiles import Warnings, rotate
from server.stack.orphans import end, marked, working_in
from server.stack.part import Part, PartFailed, start
from server.stack.supervisor import Supervisor

MakePart = Callable[..., Part]
IDLE = "[ -p fifo ] || mkfifo fifo; : > ready; read nothing < fifo"
"""Once ready it is one process that executes nothing more: in the middle of that, one shows no mark."""


@pytest.fixture
def make_part(tmp_path: Path) -> MakePart:
    """A shell script as a part, ready as soon as it has made the file `ready`."""

    def make(script: str = IDLE, name: str = "dummy", **fields: object) -> Part:
        ready = tmp_path / "ready"
        options: dict[str, object] = {
            "before": lambda: ready.unlink(missing_ok=True),
            "probe": ready.exists,
            "env": {"PATH": os.defpath},
            **fields,
        }
        return Part(
            name=name,
            argv=("/bin/sh", "-c", script),
            cwd=tmp_path,
            log=tmp_path / f"{name}.log",
            **options,  # type: ignore[arg-type]
        )

    return make


@pytest.fixture
def mark(tmp_path: Path) -> str:
    return f"test-{tmp_path}"


@pytest.fixture
async def supervisor(mark: str) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(mark, lambda line: None)
    yield supervisor
    await supervisor.stop()
    assert not marked(mark)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - another process sets no event of ours
            await asyncio.sleep(0.01)


async def test_a_killed_part_is_started_again(supervisor: Supervisor, make_part: MakePart, mark: str) -> None:
    await supervisor.start(make_part())
    first = marked(mark)
    assert len(first) == 1
    os.kill(next(iter(first)), signal.SIGKILL)
    await until(lambda: bool(marked(mark) - first))


async def test_a_part_that_never_becomes_ready_shows_the_end_of_its_log(
    supervisor: Supervisor, make_part: MakePart
) -> None:
    with pytest.raises(PartFailed, match=r"dummy was not ready within 0\.3 s\n    almost"):
        await supervisor.start(make_part("echo almost; exec sleep 60", ready_s=0.3))


async def test_a_part_that_ends_before_it_is_ready_is_an_error_at_once(
    supervisor: Supervisor, make_part: MakePart
) -> None:
    with pytest.raises(PartFailed, match=r"dummy ended with status 7\n    cannot work here"):
        await supervisor.start(make_part("echo cannot work here; exit 7"))


async def test_a_part_that_fails_again_and_again_comes_back_when_it_can(
    make_part: MakePart, mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.stack.supervisor.FIRST_DELAY_S", 0.001)
    said: list[str] = []
    supervisor = Supervisor(mark, said.append)
    ready, refusals = tmp_path / "ready", [OSError(11, "no process to be had")] * 2

    def before() -> None:
        ready.unlink(missing_ok=True)
        if (tmp_path / "broken").exists() and refusals:
            raise refusals.pop()

    await supervisor.start(make_part(f"[ -e broken ] && echo cannot work here && exit 3; {IDLE}", before=before))
    (tmp_path / "broken").touch()
    os.kill(next(iter(marked(mark))), signal.SIGKILL)
    await until(lambda: len(said) >= 10)
    assert "! dummy could not be started: [Errno 11] no process to be had; starting it again" in said
    told = [line for line in said if "cannot work here" in line]
    assert len(told) == 1, "what it wrote is told once, and not for ever"
    assert told[0].startswith("! dummy ended with status 3\n")
    (tmp_path / "broken").unlink()
    await until(lambda: said[-1] == "· dummy is back")
    await supervisor.stop()


async def test_a_part_that_ignores_the_request_is_killed(make_part: MakePart, mark: str) -> None:
    supervisor = Supervisor(mark, lambda line: None)
    await supervisor.start(make_part("trap '' TERM; touch ready; while :; do sleep 1; done", stop_s=0.2))
    began_s = time.monotonic()
    await supervisor.stop()  # it would run for ever
    assert time.monotonic() - began_s >= 0.2


async def test_parts_stop_in_the_reverse_order_of_their_start(make_part: MakePart, mark: str, tmp_path: Path) -> None:
    supervisor = Supervisor(mark, lambda line: None)
    for name in ("first", "second", "third"):
        script = f"trap 'echo {name} >> ended; exit' TERM; touch ready; while :; do sleep 0.01; done"
        await supervisor.start(make_part(script, name=name))
    await supervisor.stop()
    assert (tmp_path / "ended").read_text().split() == ["third", "second", "first"]


def test_the_kernel_ends_a_part_whose_parent_was_killed(tmp_path: Path, mark: str) -> None:
    program = f"""
import time
from pathlib import Path
from server.stack.part import Part, start
start(Part(name="p", argv=("/bin/sleep", "60"), cwd=Path({str(tmp_path)!r}), log=Path({str(tmp_path / "log")!r}),
           probe=lambda: True), {mark!r})
print("started", flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == b"started\n"
        deadline_s = time.monotonic() + 5
        while not (pids := working_in(tmp_path)):
            assert time.monotonic() < deadline_s
        parent.kill()
    while marked(mark) or pids & working_in(tmp_path):
        assert time.monotonic() < deadline_s


def test_what_an_earlier_run_left_is_ended(
    make_part: MakePart, mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.stack.orphans.GRACE_S", 0.1)
    running = start(make_part(), mark)
    running.wait_ready()
    bystander = start(make_part(name="bystander"), mark + "-other")
    bystander.wait_ready()
    try:
        assert end(mark, tmp_path / "cluster") == 1
        assert running.process.wait(5) == -signal.SIGKILL
        assert bystander.alive
    finally:
        for child in (running, bystander):
            child.kill()
            child.close()


def test_warnings_of_json_logs_are_shown_and_full_logs_are_moved(tmp_path: Path) -> None:
    log = tmp_path / "api-0.log"
    log.write_text('{"level": "error", "message": "before"}\n')
    said: list[str] = []
    warnings = Warnings([log], said.append)
    with log.open("a") as file:
        file.write('{"level":"info","message":"no"}\nnot JSON\n{"level":"warning","message":"half')
        file.flush()
        warnings.read()
        assert said == []
        file.write(' a line","action":"x.y"}\n')
    warnings.read()
    assert said == ["! api-0: warning: half a line [x.y]"]
    rotate(tmp_path, max_bytes=10)
    assert log.stat().st_size == 0
    assert "before" in (tmp_path / "api-0.log.1").read_text()
    log.write_text('{"level": "error", "message": "after"}\n')
    warnings.read()
    assert said[1:] == ["! api-0: error: after"]
