"""`atlas.storage` as an engine calls it: JSON text in, JSON text out, hostile arguments."""

import base64
from collections.abc import AsyncIterator
from uuid import uuid4

import orjson
import pytest

from engines.contract import Host, HostError, Limits
from server.events.envelope import Cause
from server.host.api import HostApi, InvocationHost
from server.host.database import Database
from server.host.fetch import Fetcher
from server.host.keyvalue import KeyValue
from server.host.objects import MAX_BODY_BYTES
from server.host.origin import origin_of
from server.postgres.changes import Changes
from server.postgres.control import Pool
from tests.fix_functions import add_project
from tests.fix_storage import Store

LIMITS = Limits(wall_ms=10_000, cpu_ms=1_000, memory_bytes=1, fetch_calls=2)


@pytest.fixture
async def api(database: Database, valkey_url: str, disk_store: Store) -> AsyncIterator[HostApi]:
    found = HostApi(database, KeyValue(valkey_url), Fetcher(), storage=disk_store.storage)
    yield found
    await found.keyvalue.close()
    await found.fetcher.close()


@pytest.fixture
def host(api: HostApi, project_id: str) -> InvocationHost:
    return api.for_invocation(project_id, LIMITS)


async def call(host: Host, op: str, *args: object) -> object:
    return orjson.loads(await host.call(op, orjson.dumps(args)))


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


async def test_every_operation(host: InvocationHost) -> None:
    options = {"content_type": "text/plain", "metadata": {"n": 1}, "overwrite": False}
    put = await call(host, "storage.put", "b", "p", encoded(b"hello"), options)
    assert isinstance(put, dict)
    assert (put["size"], put["content_type"], put["metadata"]) == (5, "text/plain", {"n": 1})
    assert await call(host, "storage.get", "b", "p") == {**put, "body_base64": encoded(b"hello")}
    part = await call(host, "storage.get", "b", "p", {"offset": 1, "length": 2})
    assert part == {**put, "body_base64": encoded(b"el")}
    assert await call(host, "storage.list", "b") == {"objects": [put], "cursor": None}
    await call(host, "storage.put", "b", "q", "")
    page = await call(host, "storage.list", "b", {"limit": 1, "prefix": ""})
    assert isinstance(page, dict)
    assert page["objects"] == [put]
    following = await call(host, "storage.list", "b", {"cursor": page["cursor"]})
    assert isinstance(following, dict)
    assert [one["path"] for one in following["objects"]] == ["q"]
    assert await call(host, "storage.delete", "b", "p") is True
    assert await call(host, "storage.delete", "b", "p") is False
    assert await call(host, "storage.get", "b", "p") is None
    assert await call(host, "storage.get", "nothing", "p") is None


async def test_events_of_what_a_function_stores_tell_the_run_that_did_it(
    api: HostApi, project_id: str, disk_store: Store
) -> None:
    run_id, trigger_id = str(uuid4()), str(uuid4())
    told = {"id": "e-1", "trigger_id": trigger_id, "cause": {"run_id": str(uuid4()), "depth": 2}}
    host = api.for_invocation(project_id, LIMITS, origin=origin_of(run_id, orjson.dumps(told)))
    await call(host, "storage.put", "b", "p", encoded(b"hello"))
    await call(host, "storage.delete", "b", "p")
    cause = Cause(run_id=run_id, trigger_id=trigger_id, depth=3)
    assert [(event.type, event.cause) for event in await disk_store.events()] == [
        ("storage.upload", cause),
        ("storage.delete", cause),
    ]


@pytest.mark.parametrize(
    ("op", "args", "part"),
    [
        ("storage.put", b'["b","p"]', "takes 3 to 4 arguments, got 2"),
        ("storage.put", b'[1,"p",""]', "atlas.storage.put: bucket must be a string, got number"),
        ("storage.put", b'["b",{},""]', "path must be a string, got object"),
        ("storage.put", b'["b","p",null]', "body must be a string, got null"),
        ("storage.put", b'["b","p","?"]', "body is not base64"),
        ("storage.put", b'["b","p","",[]]', "options must be an object, got array"),
        ("storage.put", b'["b","p","",{"upsert":true}]', "unknown field 'upsert'"),
        ("storage.put", b'["b","p","",{"overwrite":1}]', "overwrite must be a boolean, got number"),
        ("storage.put", b'["b","p","",{"content_type":5}]', "content_type must be a string, got number"),
        ("storage.put", b'["b","p","",{"content_type":"x"}]', "must be a media type"),
        ("storage.put", b'["b","p","",{"metadata":[1]}]', "metadata must be a JSON object"),
        ("storage.put", b'["B","p",""]', "lower-case letters"),
        ("storage.put", b'["b","../p",""]', 'none of its segments may be ".."'),
        ("storage.get", b'["b"]', "takes 2 to 3 arguments, got 1"),
        ("storage.get", b'["b","a//b"]', "empty"),
        ("storage.get", b'["b","p",{"offset":-1}]', "offset is -1"),
        ("storage.get", b'["b","p",{"length":1.5}]', "length is 1.5"),
        ("storage.get", b'["b","p",{"offset":1e300}]', "offset is 1e+300"),
        ("storage.list", b'["b",{"limit":0}]', "limit is 0"),
        ("storage.list", b'["b",{"limit":201}]', "page_size is 201"),
        ("storage.list", b'["b",{"cursor":"x"}]', "page_token is not one"),
        ("storage.list", b'["b",{"prefix":"\\u0000"}]', "U+0000"),
        ("storage.delete", b'["b"]', "takes 2 arguments, got 1"),
    ],
)
async def test_hostile_arguments(host: InvocationHost, disk_store: Store, op: str, args: bytes, part: str) -> None:
    await disk_store.put(host._project_id, bucket="b")
    with pytest.raises(HostError) as caught:
        await host.call(op, args)
    assert part in caught.value.message
    assert caught.value.code == "invalid_argument"


async def test_refusals_have_a_code(host: InvocationHost, disk_store: Store, project_id: str) -> None:
    await disk_store.put(project_id, "p", bucket="b")
    large = await disk_store.put(project_id, "large", b"x" * (MAX_BODY_BYTES + 1), bucket="b")
    cases: list[tuple[str, str, list[object]]] = [
        ("object_exists", "storage.put", ["b", "p", "", {"overwrite": False}]),
        ("bucket_not_found", "storage.list", ["nothing"]),
        ("storage_body_limit", "storage.put", ["b", "p", encoded(b"x" * (MAX_BODY_BYTES + 1))]),
        ("storage_body_limit", "storage.get", ["b", "large"]),
        ("storage_full", "storage.put", ["b", "more", encoded(b"x" * 2 * 1024**2)]),
    ]
    for number in range(2):
        await disk_store.put(project_id, f"filling{number}", b"x" * (MAX_BODY_BYTES - 10), bucket="b")
    for code, op, args in cases:
        with pytest.raises(HostError) as caught:
            await call(host, op, *args)
        assert (caught.value.code, caught.value.message.partition(":")[0]) == (code, f"atlas.{op}")
    half = await call(host, "storage.get", "b", "large", {"offset": MAX_BODY_BYTES})
    assert isinstance(half, dict)
    assert (half["size"], half["body_base64"]) == (large.size_bytes, encoded(b"x"))


async def test_no_function_reaches_anothers_objects(
    api: HostApi, host: InvocationHost, disk_store: Store, pool: Pool
) -> None:
    theirs = await add_project(pool)
    await disk_store.put(theirs, "p", b"secret", bucket="b")
    assert await call(host, "storage.get", "b", "p") is None
    assert await call(host, "storage.delete", "b", "p") is False
    for bucket in (f"../{theirs}/b", f"{theirs}/b", theirs.replace("-", "/")):
        with pytest.raises(HostError):
            await call(host, "storage.get", bucket, "p")
    await call(host, "storage.put", "b", "p", encoded(b"mine"))
    assert (await disk_store.storage.get(theirs, "b", "p")).content == b"secret"


async def test_without_a_store_there_are_no_such_operations(
    database: Database, valkey_url: str, changes: Changes, project_id: str
) -> None:
    api = HostApi(database, KeyValue(valkey_url), Fetcher())
    with pytest.raises(HostError) as caught:
        await call(api.for_invocation(project_id, LIMITS), "storage.get", "b", "p")
    assert caught.value.code == "unknown_op"
    await api.keyvalue.close()
    await api.fetcher.close()
