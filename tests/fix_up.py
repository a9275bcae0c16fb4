"""`python -m server up` as a person runs it, with a state directory and a port of its own."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from server.stack import postgres
from server.stack.binaries import in_wheel
from server.stack.bootstrap import read_env
from server.stack.nats import free_port
from server.stack.orphans import marked, working_in
from server.stack.part import launcher

ROOT = Path(__file__).parents[1]
READY_S = 60.0
STOP_S = 15.0
PARTS = ("postgres", "nats-server", "valkey-server", "envoy", "api-0", "worker-0")


class Stack:
    """One state directory and the program on it, which may be started again and again."""

    def __init__(self, home: Path, variables: Mapping[str, str]) -> None:
        self.home = home
        self.state = home / "state"
        self.run = home / "run"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = home / "output"
        self.process: subprocess.Popen[bytes] | None = None
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ATLAS_")}
        self.variables = {
            **inherited,
            "ATLAS_STATE_DIR": str(self.state),
            "ATLAS_RUN_DIR": str(self.run),
            "ATLAS_FUNCTIONS_DIR": str(home / "functions"),
            "ATLAS_STORAGE_DIR": str(home / "storage"),
            "ATLAS_PORT": str(self.port),
            "ATLAS_API_PROCESSES": "1",
            **variables,
        }

    @property
    def env(self) -> dict[str, str]:
        """The file `env`."""
        return read_env(self.state / "env")

    @property
    def said(self) -> str:
        return self.output.read_text()

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Another `python -m server …` on the same state, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "server", *arguments],
            cwd=ROOT,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=READY_S,
        )

    def start(self) -> "Stack":
        """Start it and wait until it says that it is ready."""
        self.launch()
        self.wait_ready()
        return self

    def wait_ready(self) -> None:
        self.until(lambda: "\nReady in " in self.said, READY_S, "it is not ready")

    def launch(self) -> None:
        # In a session of its own it would outlive killed tests: the kernel stops it.
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*launcher(signal.SIGTERM), sys.executable, "-m", "server", "up"],
                cwd=ROOT,
                env=self.variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Ask it to stop; the exit status."""
        assert self.process
        self.process.send_signal(number)
        return self.process.wait(STOP_S)

    def until(self, true: Callable[[], bool], within_s: float, problem: str) -> None:
        """Wait for something; fail with what the program said if it ends or takes too long."""
        deadline_s = time.monotonic() + within_s
        while not true():
            assert self.process
            if self.process.poll() is not None and not true():
                pytest.fail(f"{problem}: it ended with {self.process.returncode}\n{self.said}")
            if time.monotonic() > deadline_s:
                pytest.fail(f"{problem} after {within_s} s\n{self.said}")
            time.sleep(0.02)

    def processes(self) -> dict[str, int]:
        """The parts by name, from what the kernel shows."""
        found = {}
        for pid in marked(str(self.run)):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                name = Path(f"/proc/{pid}/exe").readlink().name
            except OSError:
                continue
            for kind in ("api", "worker"):
                if kind.encode() in words:
                    mark = f"ATLAS_{kind.upper()}_SOCKET=".encode()
                    socket = next(line for line in variables if line.startswith(mark))
                    name = f"{kind}-{Path(os.fsdecode(socket)).stem}"
            found[name] = pid
        return found

    def leftovers(self) -> set[int]:
        return marked(str(self.run)) | working_in(self.run)

    def wait_gone(self) -> None:
        deadline_s = time.monotonic() + 10
        while self.leftovers():
            assert time.monotonic() < deadline_s, self.processes()
            time.sleep(0.02)

    def sockets(self) -> list[Path]:
        return [path for path in self.run.rglob("*") if path.is_socket()]

    def destroy(self) -> None:
        if self.process and self.process.poll() is None:
            self.stop(signal.SIGTERM)
        self.wait_gone()
        shutil.rmtree(self.home)


def healthy(stack: Stack) -> bool:
    try:
        return httpx.get(f"{stack.url}/healthz", timeout=10, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def psql(url: str, command: str) -> str:
    program = in_wheel(postgres.WHEEL, "psql")
    done = subprocess.run(
        [program, url, "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", command], capture_output=True, text=True, env={}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def make_stack() -> Iterator[Callable[..., Stack]]:
    """Makes stacks that are not started: `make_stack(ATLAS_NATS_URL=…)`. They are stopped and deleted afterwards."""
    made: list[Stack] = []

    def make(**variables: str) -> Stack:
        made.append(new_stack(variables))
        return made[-1]

    yield make
    for stack in made:
        stack.destroy()


@pytest.fixture(scope="session")
def running_stack(wasm_image: object) -> Iterator[Stack]:
    """A stack that serves, one a session: `url`, `env`, `process`, `state`. Leave it running.

    Projects without a tier have small limits, so that tests which reach them are quick. Its Wasm engine is built.
    """
    stack = new_stack({"ATLAS_FUNCTIONS_MAX_EXECUTION_MS": "2000", "ATLAS_FUNCTIONS_MAX_MEMORY_MB": "32"})
    try:
        yield stack.start()
    finally:
        stack.destroy()


def new_stack(variables: Mapping[str, str]) -> Stack:
    home = Path(tempfile.mkdtemp(prefix="atlas-up-", dir="/tmp"))
    home.chmod(0o711)  # `nobody` has to pass
    return Stack(home, variables)
