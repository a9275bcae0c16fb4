"""The first build of the Wasm engine: told, waited for by those alone who need it, done by another if it is killed."""

import fcntl
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from engines.wasm import image
from engines.wasm.image import Image
from tests.fix_clients import connected
from tests.fix_up import Stack
from tests.fix_wasm import CACHE_DIR

MakeStack = Callable[..., Stack]
ECHO = "export default (input) => input"


@contextmanager
def built_by_another(cache_dir: Path) -> Iterator[None]:
    """As if another process were building during the block, whose work is there after it."""
    image.private_directory(cache_dir)
    with (cache_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        shutil.copytree(image.directory(CACHE_DIR), image.directory(cache_dir))


def builders(cache_dir: Path) -> dict[int, int]:
    """Processes that build into that directory, or wait to, with the process group of each: the helpers' own."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if os.fsencode(cache_dir) in words and b"engines.wasm.build_image" in words:
                found[int(process.name)] = os.getpgid(int(process.name))
        except OSError:
            continue
    return found


def unfinished(cache_dir: Path) -> set[str]:
    """Names of the builds that have begun."""
    return {path.name for path in cache_dir.glob("building-*")}


def test_nobody_waits_for_the_engine_who_needs_none_and_two_stacks_share_it(
    make_stack: MakeStack, wasm_image: Image, tmp_path: Path
) -> None:
    cache_dir = tmp_path / "engines"
    stacks = [make_stack(ATLAS_ENGINE_CACHE_DIR=str(cache_dir)) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        with built_by_another(cache_dir):
            for stack in stacks:
                stack.launch()
            for stack in stacks:
                stack.wait_ready()
                assert "· building the Wasm engine (once" in stack.said
                with connected(stack) as rest:
                    assert rest.run(ECHO, "at once", slug="quick") == "at once"
                    health = rest.request("GET", "/healthz").json()["sandbox"]["wasm"]
                    assert health["state"] == "being built: waiting for another process that builds it"
            deploying = [threads.submit(_deploy, stack) for stack in stacks]
            assert not any(one.done() for one in deploying)
        assert [one.result() for one in deploying] == ["1,2", "1,2"]
    for stack in stacks:
        stack.until(lambda said=stack: "· Wasm engine ready in " in said.said, 20, "nothing is told")  # type: ignore[misc]
        assert stack.stop() == 0
    assert not builders(cache_dir)


def _deploy(stack: Stack) -> str:
    with connected(stack) as rest:
        return str(rest.run("export default (input) => input.join()", [1, 2], slug="wasm", runtime="wasm"))


def test_a_build_that_is_killed_is_done_by_another_process_and_ends_with_the_stack(
    make_stack: MakeStack, tmp_path: Path
) -> None:
    cache_dir = tmp_path / "engines"
    stack = make_stack(ATLAS_ENGINE_CACHE_DIR=str(cache_dir)).start()
    stack.until(lambda: len(unfinished(cache_dir)) == 1, 60, "nothing is built")
    first = unfinished(cache_dir)
    (builder,) = {pid for pid in builders(cache_dir) if _holds(pid, cache_dir)}
    os.killpg(builders(cache_dir)[builder], signal.SIGKILL)
    stack.until(lambda: len(unfinished(cache_dir) - first) == 1, 60, "nobody takes over")
    assert not unfinished(cache_dir) & first
    with connected(stack) as rest:
        assert rest.run(ECHO, 1, slug="quick") == 1
    assert stack.stop() == 0
    assert not stack.leftovers()
    assert not builders(cache_dir)
    assert not list(cache_dir.glob("image-*"))


def _holds(pid: int, cache_dir: Path) -> bool:
    """Whether the process has the lock, by the kernel's list of locks."""
    inode = (cache_dir / "lock").stat().st_ino
    return any(
        words[1] == "FLOCK" and words[4] == str(pid) and words[5].endswith(f":{inode}")
        for words in (line.split() for line in Path("/proc/locks").read_text().splitlines())
    )


def test_a_cache_directory_that_others_can_write_to_is_named(make_stack: MakeStack, tmp_path: Path) -> None:
    cache_dir = tmp_path / "engines"
    cache_dir.mkdir()
    cache_dir.chmod(0o777)
    stack = make_stack(ATLAS_ENGINE_CACHE_DIR=str(cache_dir)).start()
    stack.until(lambda: "! no functions of runtime wasm" in stack.said, 20, "nothing is told")
    told = next(line for line in stack.said.splitlines() if "runtime wasm" in line)
    assert str(cache_dir) in told
    assert "ATLAS_ENGINE_CACHE_DIR" in told
    with connected(stack) as rest:
        assert rest.run(ECHO, 1, slug="quick") == 1
        refused = rest.deploy(ECHO, slug="wasm", runtime="wasm")
        assert refused.status_code == 503
        error = refused.json()["error"]
        assert (error["code"], error["details"][0]["reason"]) == ("unavailable", "RUNTIME_NOT_READY")
        assert error["details"][-1]["@type"] == "type.googleapis.com/google.rpc.RetryInfo"
