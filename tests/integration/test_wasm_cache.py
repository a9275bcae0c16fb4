"""Compiled modules on disk: found again, and not believed when they are not ours to the last bit."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.wasm.cache import MAX_FILES, Cache, Compiled

SECRET = b"a secret of the tests, 32 bytes."
SHA = "ab" * 32
MADE = Compiled("linked", b"native code")


async def test_an_entry_is_found_by_other_processes(tmp_path: Path) -> None:
    cache = Cache(tmp_path, SECRET)
    path = cache.path("project", SHA)
    assert await cache.get(path) is None
    await cache.put(path, MADE)
    assert await Cache(tmp_path, SECRET).get(path) == MADE
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert path.is_relative_to(tmp_path / "compiled" / "project")
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def open_to_all(path: Path) -> None:
    path.chmod(0o666)


def link(path: Path) -> None:
    aside = path.with_name("aside")
    path.rename(aside)
    path.symlink_to(aside)


def open_folder(path: Path) -> None:
    path.parent.chmod(0o777)


def change_form(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"linked", b"image "))


def fifo(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("tamper", [flip, cut, empty, open_to_all, link, open_folder, change_form, fifo])
async def test_what_was_tampered_with_is_reported_and_compiled_again(
    tmp_path: Path, tamper: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = Cache(tmp_path, SECRET).path("project", SHA)
    await Cache(tmp_path, SECRET).put(path, MADE)
    tamper(path)
    with caplog.at_level(logging.ERROR):
        assert await Cache(tmp_path, SECRET).get(path) is None
    assert [record.__dict__["action"] for record in caplog.records] == ["cache_tampered"]


async def test_an_entry_is_good_for_its_name_and_its_secret_only(tmp_path: Path) -> None:
    cache = Cache(tmp_path, SECRET)
    path = cache.path("project", SHA)
    await cache.put(path, MADE)
    for other in (cache.path("project", "cd" * 32), cache.path("neighbour", SHA)):
        other.parent.mkdir(mode=0o700, exist_ok=True)
        os.link(path, other)
        assert await Cache(tmp_path, SECRET).get(other) is None
    stranger = Cache(tmp_path, b"another secret")
    assert stranger.path("project", SHA) != path  # two services may share a directory
    assert await stranger.get(path) is None


async def test_where_nothing_can_be_kept_memory_serves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "compiled").touch()
    cache = Cache(tmp_path, SECRET)
    path = cache.path("project", SHA)
    await cache.put(path, MADE)
    assert await cache.get(path) == MADE
    assert [record.__dict__["action"] for record in caplog.records] == ["cache_failed"]


@pytest.mark.parametrize("project", ["..", "a/b", "", "x" * 300, "é"])
async def test_no_project_gets_out_of_the_cache(tmp_path: Path, project: str) -> None:
    cache = Cache(tmp_path, SECRET)
    path = cache.path(project, SHA)
    await cache.put(path, MADE)
    assert path.resolve().parent.parent == (tmp_path / "compiled").resolve()


async def test_a_project_keeps_a_number_of_them(tmp_path: Path) -> None:
    cache = Cache(tmp_path, SECRET)
    paths = [cache.path("project", f"{number:064x}") for number in range(MAX_FILES + 3)]
    for number, path in enumerate(paths):
        await cache.put(path, MADE)
        os.utime(path, (number, number))
    await cache.put(paths[0], MADE)
    assert len(list(paths[0].parent.iterdir())) == MAX_FILES
    assert paths[0].exists()


async def test_a_project_keeps_a_number_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.wasm.cache.MAX_PROJECT_BYTES", 5_000)
    cache = Cache(tmp_path, SECRET)
    paths = [cache.path("project", f"{number:064x}") for number in range(7)]
    for number, path in enumerate(paths):
        await cache.put(path, Compiled("command", bytes(1_000)))
        os.utime(path, (number, number))
    await cache.put(paths[0], MADE)
    assert {path for path in paths if path.exists()} == {paths[0], *paths[3:]}


async def test_what_a_killed_process_was_writing_goes_in_its_turn(tmp_path: Path) -> None:
    cache = Cache(tmp_path, SECRET)
    paths = [cache.path("project", f"{number:064x}") for number in range(MAX_FILES)]
    await cache.put(paths[0], MADE)
    abandoned = paths[0].with_name(".new-abandoned")
    abandoned.write_bytes(b"half")
    os.utime(abandoned, (1, 1))
    for path in paths[1:]:
        await cache.put(path, MADE)
    assert not abandoned.exists()
    assert all(path.exists() for path in paths)
