"""Ways out of a project's own objects: names that climb, links on the disk, and what a forger may put in between."""

import hashlib
from pathlib import Path

import pytest

from server.errors import AtlasError, InvalidArgument, NotFound
from server.postgres.control import Pool
from server.storage.blobs import BlobsUnavailable
from server.storage.disk import DiskBlobs
from server.storage.records import Slice
from tests.fix_functions import add_project
from tests.fix_storage import Store

SECRET = b"a secret of the victim"
SHA = hashlib.sha256(SECRET).hexdigest()


@pytest.fixture
async def victim(disk_store: Store, pool: Pool) -> str:
    """A project with a secret in a private bucket."""
    project_id = await add_project(pool)
    await disk_store.put(project_id, "secret", SECRET)
    return project_id


async def test_no_name_leads_to_another_project(disk_store: Store, project_id: str, victim: str) -> None:
    await disk_store.put(project_id, "own")
    for bucket in (
        "files",
        f"../{victim}",
        victim,
        f"{victim}/files",
        "..",
        "files/../../" + victim,
        "files\0",
        "%2e%2e",
    ):
        for path in (
            "secret",
            "../secret",
            f"../../{victim}/{SHA}",
            f"/{victim}/files/secret",
            SHA,
            f"../{victim}/{SHA}",
        ):
            with pytest.raises((InvalidArgument, NotFound)):
                await disk_store.storage.get(project_id, bucket, path)
            with pytest.raises((InvalidArgument, NotFound)):
                await disk_store.storage.delete(project_id, bucket, path)
    for prefix in ("", "../", f"{victim}/", "secret"):
        listed = await disk_store.storage.list(project_id, "files", prefix=prefix)
        assert {one.path for one in listed.objects} <= {"own"}
    theirs = await disk_store.storage.list(victim, "files", page_size=1)
    assert [one.path for one in theirs.objects] == ["secret"]


async def test_who_knows_a_hash_has_not_the_content(disk_store: Store, project_id: str, victim: str) -> None:
    """Contents are shared within a project only: putting nothing, or something else, brings nobody what another has."""
    assert await disk_store.blobs.read(project_id, SHA, len(SECRET)) is None
    await disk_store.put(project_id, SHA, b"x" * len(SECRET))
    assert (await disk_store.storage.get(project_id, "files", SHA)).content == b"x" * len(SECRET)
    await disk_store.storage.delete(project_id, "files", SHA)
    await disk_store.put(project_id, "same", SECRET)
    await disk_store.storage.delete(project_id, "files", "same")
    await disk_store.sweeper.sweep(older_than_s=0)
    assert (await disk_store.storage.get(victim, "files", "secret")).content == SECRET


async def test_links_on_the_disk_are_not_followed(tmp_path: Path, project_id: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    blobs = DiskBlobs(root)
    outside.mkdir()
    (outside / SHA).write_bytes(SECRET)
    root.mkdir()
    (root / project_id).symlink_to(outside)
    for part in (None, Slice(0, 5)):
        assert await blobs.read(project_id, SHA, len(SECRET), part) is None
    with pytest.raises(BlobsUnavailable):
        await blobs.write(project_id, SHA, SECRET)
    with pytest.raises(BlobsUnavailable):
        await blobs.remove(project_id, [SHA])
    assert (outside / SHA).read_bytes() == SECRET
    assert len(list(outside.iterdir())) == 1


async def test_a_link_in_the_place_of_a_content_is_not_read(
    disk_store: Store, tmp_path: Path, project_id: str, victim: str
) -> None:
    await disk_store.put(project_id, "mine", b"y" * len(SECRET))
    mine = tmp_path / "storage" / project_id / hashlib.sha256(b"y" * len(SECRET)).hexdigest()
    mine.unlink()
    mine.symlink_to(tmp_path / "storage" / victim / SHA)
    for part in (None, lambda stored: Slice(0, 5)):
        with pytest.raises(AtlasError):
            await disk_store.storage.get(project_id, "files", "mine", part)
    await disk_store.put(project_id, "mine", b"y" * len(SECRET))  # replaces the link, not what it leads to
    assert (await disk_store.storage.get(project_id, "files", "mine")).content == b"y" * len(SECRET)
    assert (await disk_store.storage.get(victim, "files", "secret")).content == SECRET
