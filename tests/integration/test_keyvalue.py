"""atlas.kv against a real Valkey."""

import asyncio
import time
from collections.abc import AsyncIterator

import orjson
import pytest

from engines.contract import HostError
from server.host.keyvalue import MAX_KEY_BYTES, MAX_VALUE_BYTES, KeyValue

A, B = "11111111-0000-4000-8000-000000000000", "11111111-0000-4000-8000-000000000001"


@pytest.fixture
async def store(valkey_url: str) -> AsyncIterator[KeyValue]:
    found = KeyValue(valkey_url)
    yield found
    for project in (A, B):
        await found.clear(project)
    await found.close()


@pytest.mark.parametrize("value", [None, True, 0, -1.5, "", "ü\u0000", [], {"a": [1, {"b": None}]}])
async def test_a_value_comes_back_as_it_was(store: KeyValue, value: object) -> None:
    await store.set(A, "k", value, None)
    assert orjson.loads(await store.get(A, "k")) == value


async def test_absent_set_replaced_deleted(store: KeyValue) -> None:
    assert await store.get(A, "k") == b"null"
    assert await store.delete(A, "k") is False
    await store.set(A, "k", 1, None)
    await store.set(A, "k", 2, None)
    assert await store.get(A, "k") == b"2"
    assert await store.delete(A, "k") is True
    assert await store.get(A, "k") == b"null"


async def test_projects_do_not_see_each_other(store: KeyValue) -> None:
    await store.set(A, "k", "mine", None)
    for key in ("k", f"../{A}:kv:k", f"proj:{A}:kv:k", "*", f"kv:k\r\nGET proj:{A}:kv:k"):
        assert await store.get(B, key) == b"null"
        assert await store.delete(B, key) is False
    await store.clear(B)
    assert await store.get(A, "k") == b'"mine"'


async def test_a_time_to_live(store: KeyValue) -> None:
    await store.set(A, "short", 1, 0.05)
    await store.set(A, "kept", 1, 0.05)
    await store.set(A, "kept", 2, None)
    deadline = time.monotonic() + 10
    while await store.get(A, "short") != b"null":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
    assert await store.get(A, "kept") == b"2"


@pytest.mark.parametrize(
    ("key", "part"),
    [
        (5, "key must be a string, got number"),
        (None, "key must be a string, got null"),
        (["k"], "key must be a string, got array"),
        (True, "key must be a string, got boolean"),
        ("", "key has 0 bytes"),
        ("ä" * (MAX_KEY_BYTES // 2 + 1), f"key has {MAX_KEY_BYTES + 2} bytes"),
    ],
)
async def test_keys_that_are_refused(store: KeyValue, key: object, part: str) -> None:
    for call in (store.get(A, key), store.set(A, key, 1, None), store.delete(A, key)):
        with pytest.raises(HostError) as caught:
            await call
        assert caught.value.code == "invalid_argument"
        assert part in caught.value.message


@pytest.mark.parametrize("ttl_s", [0, -1, 0.0001, 1e12, float("inf"), float("nan")])
async def test_times_to_live_that_are_refused(store: KeyValue, ttl_s: float) -> None:
    with pytest.raises(HostError, match="ttl_s is"):
        await store.set(A, "k", 1, ttl_s)
    assert await store.get(A, "k") == b"null"


async def test_the_largest_value_and_one_byte_more(store: KeyValue) -> None:
    largest = "x" * (MAX_VALUE_BYTES - 2)
    await store.set(A, "k", largest, None)
    with pytest.raises(HostError, match=f"{MAX_VALUE_BYTES} are allowed"):
        await store.set(A, "k", largest + "x", None)
    assert len(await store.get(A, "k")) == MAX_VALUE_BYTES


async def test_clear_deletes_thousands(store: KeyValue) -> None:
    await asyncio.gather(*(store.set(A, f"k{n}", n, None) for n in range(1200)))
    await store.clear(A)
    assert await store.get(A, "k7") == await store.get(A, "k1199") == b"null"


async def test_a_store_that_is_away_is_unavailable_without_internals() -> None:
    store = KeyValue("unix:///nonexistent/valkey.sock?password=hunter2")
    with pytest.raises(HostError) as caught:
        await store.get(A, "k")
    assert caught.value.code == "unavailable"
    assert "hunter2" not in caught.value.message
    assert "sock" not in caught.value.message
    await store.close()
