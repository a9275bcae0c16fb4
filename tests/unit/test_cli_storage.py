"""`atlas storage` against an API of its own: what it asks for, and what it prints."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from atlas.storage.v1 import storage_pb2 as pb
from atlas.storage.v1 import storage_service_pb2 as service
from atlas.storage.v1 import storage_service_pb2_grpc
from server.errors import NotFound
from tests.fix_cli import KEY, Atlas, FakeApi, serving


class FakeStorage(FakeApi, storage_service_pb2_grpc.StorageServiceServicer):
    """Keeps puts by bucket and path."""

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[tuple[str, str], Any] = {}

    def ListBuckets(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._see(request, context)
        names = sorted({bucket for bucket, _ in self.objects})
        return service.ListBucketsResponse(buckets=[pb.Bucket(name=name, public=name == "open") for name in names])

    def ListObjects(self, request: Any, context: grpc.ServicerContext) -> Any:
        """One a page."""
        self._see(request, context)
        found = [put for put in self.objects.values() if put.bucket == request.bucket]
        found = [put for put in found if put.path.startswith(request.prefix)]
        at = int(request.page_token or 0)
        token = str(at + 1) if at + 1 < len(found) else ""
        return service.ListObjectsResponse(objects=[_stored(put) for put in found[at : at + 1]], next_page_token=token)

    def PutObject(self, request: Any, context: grpc.ServicerContext) -> pb.StoredObject:
        self._see(request, context)
        self.objects[request.bucket, request.path] = request
        return _stored(request)

    def GetObject(self, request: Any, context: grpc.ServicerContext) -> Any:
        put = self._object(request, context)
        return service.GetObjectResponse(object=_stored(put), content=put.content)

    def GetObjectInfo(self, request: Any, context: grpc.ServicerContext) -> pb.StoredObject:
        return _stored(self._object(request, context))

    def DeleteObject(self, request: Any, context: grpc.ServicerContext) -> Empty:
        self._object(request, context)
        del self.objects[request.bucket, request.path]
        return Empty()

    def _object(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._see(request, context)
        if (request.bucket, request.path) not in self.objects:
            self.refuse(NotFound("There is no such object", reason="OBJECT_NOT_FOUND"), context)
        return self.objects[request.bucket, request.path]

    CreateBucket = GetBucket = UpdateBucket = DeleteBucket = FakeApi._unasked
    PutObjectHttp = GetObjectHttp = FakeApi._unasked


def _stored(put: Any) -> pb.StoredObject:
    return pb.StoredObject(
        bucket=put.bucket, path=put.path, size=len(put.content), content_type=put.content_type, metadata=put.metadata
    )


@pytest.fixture
def fake() -> Iterator[FakeStorage]:
    found = FakeStorage()
    with serving(found, storage_service_pb2_grpc.add_StorageServiceServicer_to_server):
        yield found


@pytest.fixture
def storage(fake: FakeStorage, atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> Atlas:
    """Runs command lines `atlas storage …`; objects need no project, their key has it."""
    monkeypatch.setenv("ATLAS_URL", fake.url)
    monkeypatch.setenv("SERVICE_KEY", KEY)
    return lambda *arguments, **given: atlas("storage", *arguments, **given)


def test_help(atlas: Atlas) -> None:
    for command in ("storage", "storage ls", "storage get", "storage put", "storage rm"):
        ran = atlas(*command.split(), "--help")
        assert (ran.code, ran.err) == (0, "")
        assert f"Usage: atlas {command}" in ran.out


def test_an_object_there_and_back(fake: FakeStorage, storage: Atlas, tmp_path: Path) -> None:
    content = bytes(range(256))
    (tmp_path / "cat.jpg").write_bytes(content)
    ran = storage("put", "photos/2026/cat.jpg", "cat.jpg", "--metadata", '{"by": "Ada", "n": [1]}', "--new")
    assert (ran.code, ran.out) == (0, "Stored photos/2026/cat.jpg: 256 bytes, image/jpeg\n")
    put = fake.asked[-1]
    assert (put.bucket, put.path, put.content, put.create_only) == ("photos", "2026/cat.jpg", content, True)
    assert storage("get", "photos/2026/cat.jpg", "-o", "copy.jpg").out == "Wrote copy.jpg, 256 bytes\n"
    assert (tmp_path / "copy.jpg").read_bytes() == content
    shown = storage("get", "photos/2026/cat.jpg", "--json").json
    assert (shown["size"], shown["metadata"]) == (256, {"by": "Ada", "n": [1.0]})
    (tmp_path / "note").write_text("hello")
    assert (
        storage("put", "photos/note", "note", "--type", "text/x-note", "--json").json["content_type"] == "text/x-note"
    )
    assert not fake.asked[-1].create_only


def test_lists(fake: FakeStorage, storage: Atlas) -> None:
    for bucket, path in (("open", "a/1"), ("open", "a/2"), ("open", "b"), ("shut", "x")):
        fake.objects[bucket, path] = service.PutObjectRequest(bucket=bucket, path=path, content_type="text/plain")
    lines = [line.split() for line in storage("ls").out.splitlines()]
    assert lines == [["CREATED", "ACCESS", "BUCKET"], ["public", "open"], ["private", "shut"]]
    lines = [line.split() for line in storage("ls", "open/a/").out.splitlines()]
    assert lines == [["UPDATED", "BYTES", "TYPE", "PATH"], ["0", "text/plain", "a/1"], ["0", "text/plain", "a/2"]]
    assert [item["path"] for item in storage("ls", "open", "--json").json["objects"]] == ["a/1", "a/2", "b"]
    assert len(storage("ls", "open", "--limit", "1", "--json").json["objects"]) == 1
    assert [item["name"] for item in storage("ls", "--json").json["buckets"]] == ["open", "shut"]


def test_objects_are_removed(fake: FakeStorage, storage: Atlas) -> None:
    for path in ("1", "2", "3"):
        fake.objects["b", path] = service.PutObjectRequest(bucket="b", path=path)
    assert storage("rm", "b/1", "b/2").out == "Deleted b/1\nDeleted b/2\n"
    assert storage("rm", "b/3", "--json").json == {"deleted": ["b/3"]}
    ran = storage("rm", "b/3", "--json")
    assert (ran.code, ran.error["reason"]) == (3, "OBJECT_NOT_FOUND")


@pytest.mark.parametrize(
    "arguments",
    [
        ("get", "photos"),
        ("get", "/x"),
        ("rm", "b/1", "b/"),
        ("rm",),
        ("put", "b/x", "none.txt"),
        ("put", "b/x", "-", "--metadata", "-"),
    ],
)
def test_what_cannot_be_meant(arguments: tuple[str, ...], fake: FakeStorage, storage: Atlas) -> None:
    ran = storage(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert not fake.asked
