"""The engine image: what it holds, whom it trusts, and what a build that does not finish leaves."""

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest
import wasmtime

from engines.wasm import binary, build_image, image
from engines.wasm.abi import EXPORTS
from engines.wasm.artifact import standalone
from engines.wasm.image import Distrusted, Image, ensure, peek
from tests.fix_wasm import CACHE_DIR


def test_the_engine_imports_nothing_and_exports_what_the_abi_says(wasm_image: Image) -> None:
    assert not binary.has_imports(wasm_image.wasm)
    assert sorted(export.name for export in binary.exports(wasm_image.wasm)) == sorted(EXPORTS)
    wasmtime.Module.validate(wasmtime.Engine(), wasm_image.wasm)
    wasmtime.Module.validate(wasmtime.Engine(), standalone(wasm_image, b"anything"))


def test_no_path_of_this_machine_is_in_it(wasm_image: Image) -> None:
    for wasm in (wasm_image.wasm, wasm_image.command):
        assert str(Path(__file__).parents[2]).encode() not in wasm
        assert sys.prefix.encode() not in wasm
        assert b"building-" not in wasm


async def test_it_is_found_again_without_a_build(wasm_image: Image) -> None:
    said: list[str] = []
    found = await ensure(CACHE_DIR, say=said.append)
    assert (found, said) == (wasm_image, [])
    assert repr(found) == "Image()"


def test_there_is_none_in_an_empty_cache(tmp_path: Path) -> None:
    assert peek(tmp_path / "cache") is None
    assert not (tmp_path / "cache").exists()


def _copy(wasm_image: Image, cache_dir: Path) -> Path:
    folder = image.directory(cache_dir)
    image.private_directory(cache_dir)
    image.private_directory(folder)
    for name, wasm in (("engine", wasm_image.wasm), ("command", wasm_image.command)):
        (folder / f"{name}.wasm").write_bytes(wasm)
    return folder


def test_files_that_others_could_write_are_refused(wasm_image: Image, tmp_path: Path) -> None:
    folder = _copy(wasm_image, tmp_path / "cache")
    assert peek(tmp_path / "cache") == wasm_image
    for path, mode in ((folder / "engine.wasm", 0o622), (folder, 0o777), (tmp_path / "cache", 0o720)):
        before = path.stat().st_mode & 0o777
        path.chmod(mode)
        with pytest.raises(Distrusted, match=path.name):
            peek(tmp_path / "cache")
        path.chmod(before)
    assert peek(tmp_path / "cache") == wasm_image


def test_a_link_in_the_place_of_a_directory_is_refused(wasm_image: Image, tmp_path: Path) -> None:
    folder = _copy(wasm_image, tmp_path / "real")
    (tmp_path / "cache").symlink_to(tmp_path / "real")
    with pytest.raises(Distrusted, match="cache"):
        peek(tmp_path / "cache")
    moved = folder.rename(tmp_path / "moved")
    folder.symlink_to(moved)
    with pytest.raises(Distrusted, match="image-"):
        peek(tmp_path / "real")


def test_the_latest_images_are_kept(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"image-{number}").mkdir()
        os.utime(tmp_path / f"image-{number}", (1000 + number % 5, 1000 + number % 5))
    (tmp_path / "compiled").mkdir()
    build_image.prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compiled", "image-2", "image-3", "image-4", "image-6"]


def _processes_in(folder: Path) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder) in str((process / "cwd").readlink()):
                found.append(int(process.name))
    return found


async def test_a_cancelled_build_is_killed_and_leaves_nothing_that_is_believed(tmp_path: Path) -> None:
    begun = asyncio.Event()
    build = asyncio.ensure_future(ensure(tmp_path / "cache", say=lambda _: begun.set()))
    async with asyncio.timeout(30):
        await begun.wait()
    build.cancel()
    with pytest.raises(asyncio.CancelledError):
        await build
    assert peek(tmp_path / "cache") is None
    assert _processes_in(tmp_path) == []


def test_a_build_ends_with_its_starter(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-I", "-m", "engines.wasm.build_image", str(tmp_path / "cache")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as build:
        assert build.stdin is not None
        assert build.stdout is not None
        assert b"compiling" in build.stdout.readline()
        build.stdin.close()
        assert build.wait(30) == -signal.SIGKILL
    deadline = monotonic() + 30
    while _processes_in(tmp_path):  # the compilers, which are of its process group
        assert monotonic() < deadline
    assert peek(tmp_path / "cache") is None


async def test_an_image_that_another_process_made_while_this_one_waited_is_taken(
    wasm_image: Image, tmp_path: Path
) -> None:
    cache_dir = tmp_path / "cache"
    image.private_directory(cache_dir)
    said: list[str] = []
    with (cache_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = asyncio.Event()

        def say(line: str) -> None:
            said.append(line)
            waiting.set()

        other = asyncio.ensure_future(ensure(cache_dir, say=say))
        async with asyncio.timeout(30):
            await waiting.wait()
        _copy(wasm_image, cache_dir)
    assert await other == wasm_image
    assert said == ["waiting for another process that builds it"]
