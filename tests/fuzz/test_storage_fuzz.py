"""Any text is a path with one spelling or InvalidArgument; any headers ask for something that there is."""

import contextlib
import unicodedata
from datetime import UTC, datetime
from urllib.parse import quote

from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import InvalidArgument
from server.events.json_text import read
from server.rpc.storage_http import NotModified, OutOfRange, answer_headers, metadata_of, part_of
from server.storage import tokens
from server.storage.names import (
    after_prefix,
    parse_bucket,
    parse_content_type,
    parse_metadata,
    parse_path,
    parse_prefix,
    path_of_url,
)
from server.storage.records import StoredObject

odd = st.sampled_from(
    ["..", ".", "/", "//", "%", "%2f", "%00", "\\", "\0", "\ud800", "\u202e", "e\u0301", "\U0010ffff"]
)
texts = st.lists(odd | st.text(max_size=4), max_size=6).map("".join)


@settings(max_examples=500)
@given(texts)
def test_a_path_has_one_spelling(text: str) -> None:
    try:
        path = parse_path("path", text)
    except InvalidArgument as why:
        why.message.encode()
        return
    assert path == text == unicodedata.normalize("NFC", text)
    assert not {"", ".", ".."} & set(path.split("/"))
    assert path_of_url("path", quote(path)) == path
    assert parse_prefix("prefix", path) == path


@settings(max_examples=500)
@given(texts)
def test_a_url_is_a_path_or_none(raw: str) -> None:
    with contextlib.suppress(InvalidArgument):
        path = parse_path("path", path_of_url("path", raw))
        assert path.count("/") == raw.count("/")


@given(st.text(max_size=5), st.text(max_size=5))
def test_what_has_a_prefix_lies_before_what_is_behind_it(prefix: str, rest: str) -> None:
    end = after_prefix(prefix)
    assert end is None or (prefix + rest).encode() < end.encode()
    assert end is None or (rest.encode() >= prefix.encode() and rest.encode() < end.encode()) == rest.startswith(prefix)


@given(texts, st.binary(max_size=40))
def test_nothing_else_is_raised(text: str, raw: bytes) -> None:
    for parse in (parse_bucket, parse_content_type):
        with contextlib.suppress(InvalidArgument):
            parse("field", text)
    with contextlib.suppress(InvalidArgument):
        parse_metadata("metadata", raw)
    with contextlib.suppress(InvalidArgument):
        parse_metadata("metadata", metadata_of({"x-metadata": text}))
    with contextlib.suppress(InvalidArgument):
        tokens.request("list", 0, text)


numbers = st.integers(0, 20).map(str) | st.just("")


@settings(max_examples=500)
@given(
    st.builds("bytes={}-{}".format, numbers, numbers) | texts,
    st.sampled_from(["", "*", '"x"']) | texts,
    st.integers(0, 12),
)
def test_a_range_lies_in_the_object(asked: str, known: str, size: int) -> None:
    stored = StoredObject(
        bucket="b",
        path="p",
        size_bytes=size,
        content_type="text/plain",
        checksum="ab" * 32,
        metadata=read(b"{}"),
        created_at=datetime.now(UTC),
        updated_at=datetime.now(UTC),
    )
    try:
        part = part_of({"range": asked, "if-none-match": known}, stored)
    except (NotModified, OutOfRange):
        return
    assert part is None or (0 <= part.offset < size and 0 < part.length <= size - part.offset)
    assert all(value.isascii() and value.isprintable() for _, value in answer_headers(stored, part))
