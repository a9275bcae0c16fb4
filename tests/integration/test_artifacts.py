"""Artifacts on a disk where others write too: only whole and true bytes are read, and nothing outside the folder."""

import os
from pathlib import Path

import pytest

from server.functions.artifacts import Artifacts, FileTooLarge, sha256_of

PROJECT = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
CODE = b"globalThis.x = 1"
SHA = sha256_of(CODE)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "functions"


@pytest.fixture
def artifacts(root: Path) -> Artifacts:
    return Artifacts(root)


async def test_what_is_stored_is_read_and_nothing_else_is_there(root: Path, artifacts: Artifacts) -> None:
    await artifacts.store(PROJECT, {"js": CODE, "map": b"{}", "source": b"src"})
    await artifacts.store(PROJECT, {"js": CODE})
    assert await artifacts.read(PROJECT, SHA, "js") == CODE
    assert await artifacts.read(PROJECT, sha256_of(b"{}"), "map") == b"{}"
    assert sorted(path.name for path in (root / PROJECT).iterdir()) == sorted(
        [f"{SHA}.js", f"{sha256_of(b'{}')}.map", f"{sha256_of(b'src')}.source"]
    )
    assert (root / PROJECT).stat().st_mode & 0o077 == 0


async def test_what_is_not_there_is_none(artifacts: Artifacts) -> None:
    assert await artifacts.read(PROJECT, SHA, "js") is None
    assert await artifacts.read_source(PROJECT, "hello.js", 10) is None
    await artifacts.remove(PROJECT, [SHA])
    await artifacts.remove_project(PROJECT)
    assert await artifacts.unattended(older_than_s=0) == {}


@pytest.mark.parametrize("damage", [b"", CODE[:-1], CODE + b" ", CODE.replace(b"1", b"2")])
async def test_damaged_bytes_count_as_missing_and_can_be_stored_anew(
    root: Path, artifacts: Artifacts, damage: bytes
) -> None:
    await artifacts.store(PROJECT, {"js": CODE})
    (root / PROJECT / f"{SHA}.js").write_bytes(damage)
    assert await artifacts.read(PROJECT, SHA, "js") is None
    await artifacts.store(PROJECT, {"js": CODE})
    assert await artifacts.read(PROJECT, SHA, "js") == CODE


async def test_a_giant_in_the_place_of_an_artifact_is_not_read_into_memory(root: Path, artifacts: Artifacts) -> None:
    await artifacts.store(PROJECT, {"js": CODE})
    os.truncate(root / PROJECT / f"{SHA}.js", 1 << 36)  # sparse: it needs no disk
    assert await artifacts.read(PROJECT, SHA, "js") is None


async def test_a_failed_write_leaves_nothing(root: Path, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    (root / PROJECT).mkdir(parents=True)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        await artifacts.store(PROJECT, {"js": CODE})
    assert list((root / PROJECT).iterdir()) == []


async def test_source_files_are_read_up_to_a_size(root: Path, artifacts: Artifacts) -> None:
    (root / PROJECT).mkdir(parents=True)
    (root / PROJECT / "hello.js").write_bytes(b"x" * 10)
    assert await artifacts.read_source(PROJECT, "hello.js", 10) == b"x" * 10
    with pytest.raises(FileTooLarge) as caught:
        await artifacts.read_source(PROJECT, "hello.js", 9)
    assert caught.value.used == 10


async def test_links_pipes_and_folders_are_not_source_files(root: Path, artifacts: Artifacts, tmp_path: Path) -> None:
    folder = root / PROJECT
    folder.mkdir(parents=True)
    secret = tmp_path / "secret.js"
    secret.write_text("secret")
    (folder / "link.js").symlink_to(secret)
    os.mkfifo(folder / "pipe.js")
    (folder / "folder.js").mkdir()
    for name in ("link.js", "pipe.js", "folder.js"):
        assert await artifacts.read_source(PROJECT, name, 100) is None


async def test_a_folder_that_is_a_link_is_not_followed(root: Path, artifacts: Artifacts, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "hello.js").write_text("secret")
    elsewhere.with_name(root.name).mkdir()
    (root / PROJECT).symlink_to(elsewhere)
    assert await artifacts.read_source(PROJECT, "hello.js", 100) is None
    with pytest.raises(OSError, match=r"symbolic link|Not a directory"):
        await artifacts.store(PROJECT, {"js": CODE})
    await artifacts.remove_project(PROJECT)
    assert ((root / PROJECT).is_symlink(), (elsewhere / "hello.js").exists()) == (False, True)


async def test_a_link_in_the_place_of_an_artifact_is_replaced_not_followed(
    root: Path, artifacts: Artifacts, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (root / PROJECT).mkdir(parents=True)
    (root / PROJECT / f"{SHA}.js").symlink_to(victim)
    await artifacts.store(PROJECT, {"js": CODE})
    assert (victim.read_text(), await artifacts.read(PROJECT, SHA, "js")) == ("untouched", CODE)


async def test_remove_takes_only_what_it_is_told(root: Path, artifacts: Artifacts) -> None:
    await artifacts.store(PROJECT, {"js": CODE, "source": b"src"})
    (root / PROJECT / "hello.js").write_text("mine")
    await artifacts.remove(PROJECT, [SHA])
    assert await artifacts.read(PROJECT, SHA, "js") is None
    assert await artifacts.read(PROJECT, sha256_of(b"src"), "source") == b"src"
    await artifacts.remove_project(PROJECT)
    assert not (root / PROJECT).exists()


async def test_unattended_tells_old_files_and_removes_old_temporaries(root: Path, artifacts: Artifacts) -> None:
    await artifacts.store(PROJECT, {"js": CODE, "source": b"src"})
    folder = root / PROJECT
    (folder / ".tmp-old").write_text("")
    (folder / ".tmp-new").write_text("")
    (folder / "hello.js").write_text("mine")
    (root / "not-a-project").mkdir()
    for name in (f"{SHA}.js", ".tmp-old", "hello.js"):
        os.utime(folder / name, (1, 1))
    assert await artifacts.unattended() == {PROJECT: {SHA}}
    left = {path.name for path in folder.iterdir()}
    assert left == {f"{SHA}.js", f"{sha256_of(b'src')}.source", ".tmp-new", "hello.js"}
