"""What a request's path and headers ask of a stored object, and what its answer says."""

import base64
from datetime import UTC, datetime

import pytest

from server.errors import InvalidArgument
from server.events.json_text import read
from server.rpc.storage_http import (
    NotModified,
    OutOfRange,
    answer_headers,
    may_replace,
    metadata_of,
    part_of,
    path_of,
)
from server.storage.records import Slice, StoredObject

STORED = StoredObject(
    bucket="b",
    path="p",
    size_bytes=10,
    content_type="text/plain",
    checksum="ab" * 32,
    metadata=read('{"n": "é"}'.encode()),
    created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    updated_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
)


def test_the_path_is_the_urls_when_there_is_one() -> None:
    assert path_of({}, "a%2Fb") == "a%2Fb"
    for url in ("/storage/v1/object/b/a%20b/c?x=/y", "/storage/v1/info/b/a%20b/c"):
        assert path_of({"x-envoy-original-path": url}, "other") == "a b/c"
    assert path_of({"x-envoy-original-path": "/storage/v1/object/b/a%252Fb"}, "a%2Fb") == "a%2Fb"
    with pytest.raises(InvalidArgument):
        path_of({"x-envoy-original-path": "/storage/v1/object/b/a%2Fb"}, "a%2Fb")


def test_metadata_is_base64_or_itself() -> None:
    assert metadata_of({}) == b""
    assert metadata_of({"x-metadata": base64.b64encode(b'{"a":1}').decode()}) == b'{"a":1}'
    assert metadata_of({"x-metadata": ' {"a":1}'}) == b'{"a":1}'
    for sent in ("?", "eyJ", "A" * 9000):
        with pytest.raises(InvalidArgument):
            metadata_of({"x-metadata": sent})


def test_who_may_replace() -> None:
    assert may_replace({"x-envoy-original-method": "PUT"})
    assert not may_replace({"x-envoy-original-method": "POST"})
    assert not may_replace({})
    assert may_replace({"x-upsert": " True"})
    with pytest.raises(InvalidArgument):
        may_replace({"x-upsert": "1"})


RANGES = {
    "": None,
    "bytes=0-": Slice(0, 10),
    "bytes=0-0": Slice(0, 1),
    "Bytes = 3 - 4": Slice(3, 2),
    "bytes=9-99": Slice(9, 1),
    "bytes=-1": Slice(9, 1),
    "bytes=-99": Slice(0, 10),
    "bytes=-": None,
    "bytes=5-4": None,
    "bytes=0-1,2-3": None,
    "bytes=٣-": None,
    "items=0-1": None,
    "bytes=-1-2": None,
}


@pytest.mark.parametrize("sent", RANGES)
def test_ranges(sent: str) -> None:
    assert part_of({"range": sent}, STORED) == RANGES[sent]


@pytest.mark.parametrize("sent", ["bytes=10-", "bytes=10-20", "bytes=-0"])
def test_ranges_behind_the_end(sent: str) -> None:
    with pytest.raises(OutOfRange):
        part_of({"range": sent}, STORED)


def test_conditions() -> None:
    for known in (STORED.etag, f"W/{STORED.etag}", f'"x", {STORED.etag}', "*"):
        with pytest.raises(NotModified):
            part_of({"if-none-match": known, "range": "bytes=99-"}, STORED)
    assert part_of({"if-none-match": '"x"', "range": "bytes=0-0", "if-range": STORED.etag}, STORED) == Slice(0, 1)
    assert part_of({"range": "bytes=0-0", "if-range": "Fri, 02 Jan 2026 03:04:05 GMT"}, STORED) is None


def test_headers_of_an_answer() -> None:
    told = dict(answer_headers(STORED, Slice(2, 3)))
    assert (told["x-atlas-status"], told["content-range"]) == ("206", "bytes 2-4/10")
    assert (told["etag"], told["last-modified"]) == (f'"{"ab" * 32}"', "Fri, 02 Jan 2026 03:04:05 GMT")
    assert base64.b64decode(told["x-metadata"]).decode() == '{"n": "é"}'
    assert all(value.isascii() for value in told.values())
    assert "x-atlas-status" not in dict(answer_headers(STORED))
