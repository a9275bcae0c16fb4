"""Stored objects as clients meet them, over REST and gRPC through Envoy, and from functions."""

import base64
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import grpc
import httpx
import nats
import pytest
from nats.js import JetStreamContext

from atlas.storage.v1 import storage_service_pb2 as pb
from atlas.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from server.events import stream
from server.events.envelope import Event
from tests.fix_clients import Rest, connected
from tests.fix_clients import eventually as waited_for
from tests.fix_runs import eventually
from tests.fix_up import Stack

MIB = 1024 * 1024


class Objects:
    """REST as one project, in a bucket of one test."""

    def __init__(self, rest: Rest, bucket: str) -> None:
        self.rest = rest
        self.bucket = bucket

    def ask(
        self, method: str, path: str = "", *, at: str = "object", key: str | None = None, **options: Any
    ) -> httpx.Response:
        url = f"/storage/v1/{at}/{self.bucket}{'/' + path if path else ''}"
        return self.rest.request(method, url, key=key or self.rest.service_key, **options)

    def put(self, path: str, content: bytes = b"hello", *, method: str = "PUT", **headers: str) -> httpx.Response:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask(method, path, content=content, headers=sent)

    def publish(self, public: bool = True) -> httpx.Response:
        return self.rest.request(
            "PATCH", f"/storage/v1/bucket/{self.bucket}", key=self.rest.service_key, json={"public": public}
        )


@pytest.fixture
def objects(rest: Rest) -> Objects:
    return Objects(rest, f"b{uuid4().hex[:12]}")


@pytest.fixture
async def jetstream(running_stack: Stack) -> AsyncIterator[JetStreamContext]:
    """Of the stack's own NATS."""
    config = (running_stack.run / "nats.conf").read_text()
    address, token = re.findall(r'listen: "(.+?)"|token: "(.+?)"', config)
    client = await nats.connect(f"nats://{token[1]}@{address[0]}")
    yield client.jetstream()
    await client.close()


def reason(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["details"][0]["reason"]


class TestObjects:
    def test_an_object_comes_and_goes(self, objects: Objects) -> None:
        content = os.urandom(100_000)
        metadata = base64.b64encode('{"owner": "é", "n": 1.5}'.encode()).decode()
        answer = objects.put("a/b c/ü.bin", content, content_type="image/png", x_metadata=metadata)
        assert answer.status_code == 200, answer.text
        sha = hashlib.sha256(content).hexdigest()
        stored = answer.json()
        assert (stored["bucket"], stored["path"], stored["size"]) == (objects.bucket, "a/b c/ü.bin", 100_000)
        assert (stored["content_type"], stored["checksum"], stored["etag"]) == ("image/png", sha, f'"{sha}"')
        assert (stored["metadata"], stored["created_at"]) == ({"owner": "é", "n": 1.5}, stored["updated_at"])
        got = objects.ask("GET", "a/b c/ü.bin")
        assert (got.status_code, got.content) == (200, content)
        assert got.headers["content-type"] == "image/png"
        assert got.headers["etag"] == f'"{sha}"'
        assert base64.b64decode(got.headers["x-metadata"]) == '{"owner": "é", "n": 1.5}'.encode()
        assert got.headers["repr-digest"] == f"sha-256=:{base64.b64encode(bytes.fromhex(sha)).decode()}:"
        assert got.headers["accept-ranges"] == "bytes"
        assert got.headers["last-modified"].endswith("GMT")
        assert objects.ask("GET", "a/b%20c/%C3%BC.bin", at="info").json() == stored
        gone = objects.ask("DELETE", "a/b c/ü.bin")
        assert (gone.status_code, gone.json()) == (200, {})
        assert reason(objects.ask("GET", "a/b c/ü.bin")) == (404, "OBJECT_NOT_FOUND")
        assert reason(objects.ask("DELETE", "a/b c/ü.bin")) == (404, "OBJECT_NOT_FOUND")

    def test_post_creates_and_put_replaces(self, objects: Objects) -> None:
        assert objects.put("a", method="POST").status_code == 200
        assert reason(objects.put("a", b"2", method="POST")) == (409, "OBJECT_EXISTS")
        assert reason(objects.put("a", b"2", method="POST", x_upsert="perhaps")) == (400, "INVALID_FIELD")
        assert objects.ask("GET", "a").content == b"hello"
        assert objects.put("a", b"2", method="POST", x_upsert="true").status_code == 200
        assert objects.put("a", b"3").status_code == 200
        assert objects.ask("GET", "a").content == b"3"

    def test_sizes(self, objects: Objects) -> None:
        assert objects.put("empty", b"").json()["size"] == 0
        empty = objects.ask("GET", "empty")
        assert (empty.status_code, empty.content) == (200, b"")
        largest = os.urandom(6 * MIB)
        answer = objects.put("largest", largest)
        assert answer.status_code == 200, answer.text
        assert objects.ask("GET", "largest").content == largest
        refused = objects.put("larger", largest + b"x")
        assert refused.status_code == 413
        assert "6 MiB" in refused.json()["error"]["message"]
        assert objects.ask("GET", "larger").status_code == 404

    @pytest.mark.parametrize(
        ("asked", "content", "told"),
        [
            ("bytes=0-0", b"0", "bytes 0-0/10"),
            ("bytes=2-4", b"234", "bytes 2-4/10"),
            ("bytes=7-", b"789", "bytes 7-9/10"),
            ("bytes=-3", b"789", "bytes 7-9/10"),
            ("bytes=-30", b"0123456789", "bytes 0-9/10"),
            ("bytes=8-100", b"89", "bytes 8-9/10"),
        ],
    )
    def test_ranges(self, objects: Objects, asked: str, content: bytes, told: str) -> None:
        objects.put("digits", b"0123456789", content_type="text/plain")
        got = objects.ask("GET", "digits", headers={"range": asked})
        assert (got.status_code, got.content, got.headers["content-range"]) == (206, content, told)
        assert got.headers["content-type"] == "text/plain"

    def test_ranges_that_are_none(self, objects: Objects) -> None:
        etag = objects.put("digits", b"0123456789").json()["etag"]
        for asked in ("bytes=10-", "bytes=-0"):
            got = objects.ask("GET", "digits", headers={"range": asked})
            assert (got.headers["content-range"], *reason(got)) == ("bytes */10", 416, "RANGE_NOT_SATISFIABLE")
        for asked in ("bytes=4-2", "bytes=0-1,3-4", "lines=1-2", "bytes=", "bytes=a-b", "bytes=" + "9" * 40 + "-"):
            got = objects.ask("GET", "digits", headers={"range": asked})
            assert (got.status_code, got.content) == (200, b"0123456789"), asked
        changed = {"range": "bytes=0-1", "if-range": '"another"'}
        assert objects.ask("GET", "digits", headers=changed).status_code == 200
        assert objects.ask("GET", "digits", headers={"range": "bytes=0-1", "if-range": etag}).status_code == 206

    def test_what_a_client_has_is_not_sent_again(self, objects: Objects) -> None:
        etag = objects.put("a").json()["etag"]
        for known in (etag, f'W/{etag}, "b"', "*"):
            got = objects.ask("GET", "a", headers={"if-none-match": known})
            assert (got.status_code, got.content, got.headers["etag"]) == (304, b"", etag)
        assert objects.ask("GET", "a", headers={"if-none-match": '"b"'}).status_code == 200

    @pytest.mark.parametrize("content_type", ["text/html", "image/svg+xml", "application/xhtml+xml", "text/javascript"])
    def test_nothing_of_it_runs_in_a_browser(self, objects: Objects, content_type: str) -> None:
        objects.put("page", b"<script>alert(1)</script>", content_type=content_type)
        for headers in ({}, {"range": "bytes=0-3"}):
            got = objects.ask("GET", "page", headers=headers)
            assert got.headers["content-type"] == content_type
            assert got.headers["x-content-type-options"] == "nosniff"
            assert got.headers["content-security-policy"].endswith("; sandbox")

    def test_lists(self, objects: Objects) -> None:
        for path in ("b", "a/2", "a/1", "ä"):
            objects.put(path, path.encode(), content_type="text/plain")
        listed = objects.ask("GET").json()
        assert ([one["path"] for one in listed["objects"]], listed["next_page_token"]) == (["a/1", "a/2", "b", "ä"], "")
        first = objects.ask("GET", params={"page_size": 3, "prefix": ""}).json()
        rest = objects.ask("GET", params={"page_token": first["next_page_token"]}).json()
        assert [one["path"] for one in first["objects"] + rest["objects"]] == ["a/1", "a/2", "b", "ä"]
        assert [one["path"] for one in objects.ask("GET", params={"prefix": "a/"}).json()["objects"]] == ["a/1", "a/2"]
        assert reason(objects.ask("GET", params={"page_size": 201})) == (400, "INVALID_FIELD")
        assert reason(objects.ask("GET", params={"page_token": "A" * 2000})) == (400, "INVALID_FIELD")

    def test_buckets(self, objects: Objects) -> None:
        ask, key = objects.rest.request, objects.rest.service_key
        made = ask("POST", "/storage/v1/bucket", key=key, json={"name": objects.bucket, "public": True})
        assert (made.status_code, made.json()["public"]) == (200, True)
        assert reason(ask("POST", "/storage/v1/bucket", key=key, json={"name": objects.bucket})) == (
            409,
            "BUCKET_EXISTS",
        )
        assert reason(ask("POST", "/storage/v1/bucket", key=key, json={"name": "Large"})) == (400, "INVALID_FIELD")
        assert objects.bucket in [one["name"] for one in ask("GET", "/storage/v1/bucket", key=key).json()["buckets"]]
        assert objects.publish(False).json()["public"] is False
        path = f"/storage/v1/bucket/{objects.bucket}"
        assert ask("GET", path, key=key).json()["public"] is False
        assert reason(ask("PATCH", path, key=key, json={})) == (400, "INVALID_FIELD")
        objects.put("a")
        assert reason(ask("DELETE", path, key=key)) == (400, "BUCKET_NOT_EMPTY")
        objects.ask("DELETE", "a")
        assert ask("DELETE", path, key=key).status_code == 200
        assert reason(ask("GET", path, key=key)) == (404, "BUCKET_NOT_FOUND")
        assert reason(objects.ask("GET")) == (404, "BUCKET_NOT_FOUND")


class TestKeys:
    def test_what_an_anon_key_may(self, objects: Objects) -> None:
        objects.put("a")
        anon = objects.rest.anon_key
        missing = objects.ask("GET", "missing", key=anon)
        hidden = objects.ask("GET", "a", key=anon)
        assert reason(missing) == reason(hidden) == (404, "OBJECT_NOT_FOUND")
        assert objects.ask("GET", "a", at="info", key=anon).status_code == 404
        objects.publish()
        assert objects.ask("GET", "a", key=anon).content == b"hello"
        assert objects.ask("GET", "a", at="info", key=anon).status_code == 200
        for method, path in (("PUT", "a"), ("POST", "new"), ("DELETE", "a"), ("GET", "")):
            assert reason(objects.ask(method, path, key=anon)) == (403, "WRONG_ROLE")
        for method, path in (("GET", ""), ("GET", "/" + objects.bucket), ("DELETE", "/" + objects.bucket)):
            answer = objects.rest.request(method, "/storage/v1/bucket" + path, key=anon)
            assert reason(answer) == (403, "WRONG_ROLE")
        objects.publish(False)
        assert objects.ask("GET", "a", key=anon).status_code == 404
        assert objects.rest.request("GET", f"/storage/v1/object/{objects.bucket}/a").status_code == 401

    def test_projects_do_not_see_each_other(self, objects: Objects, new_project: Callable[..., Rest]) -> None:
        objects.put("a", b"secret")
        objects.publish()
        other = new_project()
        theirs = Objects(other, objects.bucket)
        for key in (other.service_key, other.anon_key):
            assert theirs.ask("GET", "a", key=key).status_code == 404
            named = theirs.ask("GET", "a", key=key, params={"project_id": objects.rest.project_id})
            assert named.status_code in (403, 404)
        assert theirs.ask("DELETE", "a").status_code == 404
        assert theirs.put("a", b"mine").status_code == 200
        assert objects.ask("GET", "a").content == b"secret"
        assert theirs.ask("GET", "a").content == b"mine"

    def test_a_deleted_project_leaves_nothing_on_the_disk(
        self, running_stack: Stack, new_project: Callable[..., Rest]
    ) -> None:
        project = new_project()
        objects = Objects(project, "files")
        assert objects.put("a", b"gone with it").status_code == 200
        folder = running_stack.home / "storage" / project.project_id
        assert len(list(folder.iterdir())) == 1
        path = f"/v1/projects/{project.project_id}"
        assert project.request("DELETE", path, key=project.admin_key).status_code == 200
        assert objects.ask("GET", "a").status_code == 401
        assert list(folder.glob("*")) == [] or not folder.exists()


HOSTILE = [
    "a//b",
    "a/",
    "a/%2E%2E%2Fb",
    "a%2Fb",
    "%2fetc%2fpasswd",
    "a%00b",
    "a%0Ab",
    "a%5Cb",
    "%FF%FE",
    "%C0%AE%C0%AE/%C0%AF",
    "a%ED%A0%80",
    "e%CC%81",
    "%E2%80%AEgnp.exe",
    "a/%2e%2e%252f/%2F",
    "%F4%90%80%80",
    "x" * 1025,
    "%C3%A9" * 513,
]


@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: repr(path)[:30])
@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
def test_a_path_of_two_spellings_is_refused(objects: Objects, method: str, path: str) -> None:
    answer = objects.rest.client.send(raw(objects, method, path))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_argument"), answer.text
    assert "no message of this method" not in answer.text
    bucket = objects.rest.request("GET", f"/storage/v1/bucket/{objects.bucket}", key=objects.rest.service_key)
    assert bucket.status_code == 404


def raw(objects: Objects, method: str, path: str) -> httpx.Request:
    """A request whose path is sent as it is."""
    headers = {"apikey": objects.rest.service_key}
    request = objects.rest.client.build_request(method, "/", headers=headers, content=b"x" if method == "PUT" else None)
    request.url = request.url.copy_with(raw_path=f"/storage/v1/object/{objects.bucket}/{path}".encode())
    return request


@pytest.mark.parametrize("path", ["../../../etc/passwd", "a/../../b", "./a/./b", "%2e%2e/%2e%2e/x"])
def test_what_climbs_out_never_becomes_a_name(objects: Objects, path: str) -> None:
    """A proxy resolves such segments, as browsers do; what comes of it is another path, or a name without them."""
    answer = objects.rest.client.send(raw(objects, "PUT", path))
    assert answer.status_code in (200, 400, 404)
    if answer.status_code == 200:
        assert ".." not in answer.json()["path"]


def test_names_that_look_odd_are_names(objects: Objects) -> None:
    for path in (
        "%25",
        "a%2520b",
        "%3F%23%26",
        "...",
        "a/.../b",
        ".git/config",
        "%F0%9F%98%80",
        "CON",
        "a:b*c|d",
        "%2e%2e.",
    ):
        answer = objects.rest.client.send(raw(objects, "PUT", path))
        assert answer.status_code == 200, (path, answer.text)
        got = objects.rest.client.send(raw(objects, "GET", path))
        assert (got.status_code, got.content) == (200, b"x"), path
    listed = [one["path"] for one in objects.ask("GET").json()["objects"]]
    assert set(listed) == {"%", "a%20b", "?#&", "...", "a/.../b", ".git/config", "😀", "CON", "a:b*c|d"}


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({"content-type": "nonsense"}, "content_type"),
        ({"content-type": "text/plain; " + "x" * 300}, "content_type"),
        ({"x-metadata": "%%%"}, "x-metadata"),
        ({"x-metadata": base64.b64encode(b"[1]").decode()}, "metadata"),
        ({"x-metadata": base64.b64encode(b"{").decode()}, "metadata"),
        ({"x-metadata": '{"a": ' + "[" * 20 + "]" * 20 + "}"}, "metadata"),
        ({"x-metadata": base64.b64encode(b'{"a": "' + b"x" * 5000 + b'"}').decode()}, "metadata"),
        ({"x-metadata": "A" * 20_000}, "x-metadata"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_said_wrongly_of_an_object_is_named(objects: Objects, headers: dict[str, str], field: str) -> None:
    answer = objects.ask("PUT", "a", content=b"x", headers=headers)
    assert reason(answer) == (400, "INVALID_FIELD"), answer.text
    assert field in answer.json()["error"]["message"]
    assert objects.ask("GET", "a").status_code == 404


def test_a_form_is_not_taken_for_a_file(objects: Objects) -> None:
    answer = objects.ask("POST", "a", files={"file": b"x"})
    assert reason(answer) == (400, "FORM_NOT_TAKEN")


async def test_events_follow(objects: Objects, jetstream: JetStreamContext) -> None:
    last = (await jetstream.stream_info(stream.NAME)).state.last_seq
    stored = objects.put("dir/é", b"12", content_type="text/plain", x_metadata='{"n": 1}').json()
    objects.ask("DELETE", "dir/é")
    path, seen = f"{objects.bucket}/dir/é", []

    async def both() -> list[Event] | None:
        nonlocal last
        while last < (await jetstream.stream_info(stream.NAME)).state.last_seq:
            last += 1
            message = await jetstream.get_msg(stream.NAME, last)
            event = stream.event_of(message.subject or "", message.data or b"")
            if event.subject == path:
                seen.append(event)
        return seen if len(seen) == 2 else None

    upload, delete = await eventually(both)
    assert (upload.type, delete.type, upload.source) == ("storage.upload", "storage.delete", "storage")
    assert upload.data.value == {
        **{name: stored[name] for name in ("bucket", "path", "size", "content_type", "checksum")},
        "metadata": {"n": 1},
    }
    assert delete.data.value == upload.data.value


def test_a_trigger_runs_on_what_is_uploaded(new_project: Callable[..., Rest]) -> None:
    rest = new_project()
    source = """export default async (event, ctx) => {
      const {bucket, path, size} = event.data;
      const found = await atlas.storage.get(bucket, path);
      const metadata = {type: ctx.event.type, size};
      await atlas.storage.put("derived", path, (await found.text()).toUpperCase(), {metadata});
    }"""
    function_id = rest.deployed(source, slug="derive")
    wanted = {
        "event_type": "storage.upload",
        "target_type": "function",
        "function_id": function_id,
        "conditions": [{"field": "bucket", "op": "eq", "value": "incoming"}],
    }
    made = rest.manage("POST", "/triggers", json=wanted)
    assert made.status_code == 200, made.text
    for number in range(5):
        assert Objects(rest, "incoming").put(f"{number}.txt", b"text %d" % number).status_code == 200
        assert Objects(rest, "ignored").put(f"{number}.txt").status_code == 200
    derived = Objects(rest, "derived")

    def all_of_them() -> Any:
        listed = derived.ask("GET")
        return listed.status_code == 200 and len(listed.json()["objects"]) == 5 and listed.json()["objects"]

    for number, stored in enumerate(waited_for(all_of_them)):
        assert (stored["path"], stored["metadata"]) == (f"{number}.txt", {"type": "storage.upload", "size": 6})
        assert derived.ask("GET", stored["path"]).text == f"TEXT {number}"


def test_contents_can_be_in_jetstream(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack(ATLAS_STORAGE_BACKEND="jetstream").start()
    content = os.urandom(MIB)
    with connected(stack) as rest:
        objects = Objects(rest, "files")
        assert objects.put("a", content).status_code == 200
        assert objects.ask("GET", "a").content == content
    stack.stop()
    stack.start()
    with connected(stack) as rest:
        objects = Objects(rest, "files")
        part = objects.ask("GET", "a", headers={"range": "bytes=500000-600000"})
        assert (part.status_code, part.content) == (206, content[500_000:600_001])
    assert not (stack.home / "storage").exists()


FUNCTION = """export default async ({bucket, content}) => {
  const {storage} = atlas;
  const put = await storage.put(bucket, "f/é.txt", content, {metadata: {by: "function"}});
  const got = await storage.get(bucket, "f/é.txt");
  const part = await storage.get(bucket, "f/é.txt", {offset: 1, length: 2});
  const listed = await storage.list(bucket, {prefix: "f/"});
  const gone = [await storage.delete(bucket, "f/é.txt"), await storage.delete(bucket, "f/é.txt")];
  gone.push(await storage.get(bucket, "f/é.txt"));
  let refused; try { await storage.put(bucket, "../x", "x") } catch (e) { refused = e.code }
  await storage.put(bucket, "kept", new Uint8Array([1, 2, 3]));
  const same = JSON.stringify(got) === JSON.stringify(put);
  return {put, same, text: await got.text(), part: await part.text(), listed, gone, refused};
}"""


@pytest.mark.parametrize("runtime", ["quickjs", "node", "deno"])
def test_functions_store_objects(patient: Rest, runtime: str) -> None:
    objects = Objects(patient, "files")
    body = {"bucket": objects.bucket, "content": "héllo"}
    result = objects.rest.run(FUNCTION, body, slug=f"storage-{runtime}", runtime=runtime)
    assert result["put"]["contentType"] == "text/plain;charset=UTF-8"
    assert (result["put"]["size"], result["put"]["metadata"]) == (6, {"by": "function"})
    assert (result["same"], result["text"], result["part"]) == (True, "héllo", "é")
    assert result["listed"] == {"objects": [result["put"]], "cursor": None}
    assert (result["gone"], result["refused"]) == ([True, False, None], "invalid_argument")
    assert objects.ask("GET", "kept").content == b"\1\2\3"


class TestGrpc:
    async def test_an_object_comes_and_goes(self, objects: Objects, channel: grpc.aio.Channel) -> None:
        stub, key = StorageServiceStub(channel), (("apikey", objects.rest.service_key),)
        request = pb.PutObjectRequest(bucket=objects.bucket, path="a%2Fb", content=b"0123456789", create_only=True)
        request.metadata.update({"n": 1.5})
        stored = await stub.PutObject(request, metadata=key)
        assert (stored.path, stored.size, dict(stored.metadata)) == ("a%2Fb", 10, {"n": 1.5})
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.PutObject(request, metadata=key)
        assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
        got = await stub.GetObject(pb.GetObjectRequest(bucket=objects.bucket, path="a%2Fb"), metadata=key)
        assert (got.object, got.content) == (stored, b"0123456789")
        part = pb.GetObjectRequest(bucket=objects.bucket, path="a%2Fb", offset=8, length=5)
        assert (await stub.GetObject(part, metadata=key)).content == b"89"
        for wrong in (
            pb.GetObjectRequest(bucket=objects.bucket, path="a", offset=-1),
            pb.GetObjectRequest(bucket="B", path="a"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetObject(wrong, metadata=key)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert objects.rest.client.send(raw(objects, "GET", "a%252Fb")).content == b"0123456789"
        await stub.DeleteObject(pb.DeleteObjectRequest(bucket=objects.bucket, path="a%2Fb"), metadata=key)
        assert len((await stub.ListObjects(pb.ListObjectsRequest(bucket=objects.bucket), metadata=key)).objects) == 0

    async def test_an_anon_key_reads_public_objects_alone(self, objects: Objects, channel: grpc.aio.Channel) -> None:
        stub, key = StorageServiceStub(channel), (("apikey", objects.rest.anon_key),)
        objects.put("a")
        request = pb.GetObjectRequest(bucket=objects.bucket, path="a")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetObject(request, metadata=key)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        objects.publish()
        assert (await stub.GetObject(request, metadata=key)).content == b"hello"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListObjects(pb.ListObjectsRequest(bucket=objects.bucket), metadata=key)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
