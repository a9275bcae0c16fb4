"""Names of buckets and objects, and what is said of them: one spelling, and a clear refusal of any other."""

import json

import pytest

from server.errors import InvalidArgument
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
from server.storage.records import Slice

PATHS = [
    "a",
    "a/b",
    "é/ü",
    "...",
    "a..b",
    ".hidden",
    "a b",
    "%2F",
    "a%",
    "😀",
    "👩‍👩‍👧",
    "x" * 1024,
    "a:b",
    "'\"<>|?*",
    "C:",
]


@pytest.mark.parametrize("path", PATHS)
def test_paths(path: str) -> None:
    assert parse_path("path", path) == path


BAD_PATHS = {
    "": "missing",
    "/": "empty",
    "/a": "empty",
    "a/": "empty",
    "a//b": "empty",
    ".": '"."',
    "a/./b": '"."',
    "../a": '".."',
    "a/..": '".."',
    "a\0b": r"U\+0000 at position 1",
    "a\nb": r"U\+000A",
    "a\x7fb": r"U\+007F",
    "a\x85b": r"U\+0085",
    "a\u2028b": r"U\+2028",
    "a\\b": r"U\+005C",
    "a\u202eb": r"U\+202E",
    "a\ud800b": "half of a surrogate pair",
    "e\u0301": "form C",
    "x" * 1025: "1025 bytes",
    "é" * 513: "1026 bytes",
}


@pytest.mark.parametrize("path", BAD_PATHS, ids=lambda path: repr(path)[:30])
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(InvalidArgument, match=BAD_PATHS[path]) as caught:
        parse_path("path", path)
    assert caught.value.field == "path"
    json.dumps(caught.value.metadata, ensure_ascii=False).encode()
    caught.value.message.encode()


def test_a_prefix_may_end_anywhere() -> None:
    for prefix in ("", "a", "a/", "a//", ".", "../"):
        assert parse_prefix("prefix", prefix) == prefix
    for prefix in ("a\0", "x" * 1025, "\ud800"):
        with pytest.raises(InvalidArgument):
            parse_prefix("prefix", prefix)


def test_what_is_behind_a_prefix() -> None:
    assert after_prefix("") is None
    assert after_prefix("a/") == "a0"
    assert after_prefix("a\U0010ffff") == "b"
    assert after_prefix("\U0010ffff") is None
    assert after_prefix("\ud7ff") == "\ue000"


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("a/b", "a/b"),
        ("%61", "a"),
        ("a%20b", "a b"),
        ("a%25b", "a%b"),
        ("%252F", "%2F"),
        ("%C3%A9", "é"),
        ("a+b", "a+b"),
    ],
)
def test_urls_are_decoded_once(raw: str, path: str) -> None:
    assert path_of_url("path", raw) == path


@pytest.mark.parametrize("raw", ["a%2Fb", "a%2fb", "%", "a%2", "a%zz", "%FF", "%C3", "%ED%A0%80", "%C0%AF"])
def test_urls_with_two_readings(raw: str) -> None:
    with pytest.raises(InvalidArgument):
        path_of_url("path", raw)


@pytest.mark.parametrize("name", ["a", "0", "a-b_c", "x" * 63])
def test_buckets(name: str) -> None:
    assert parse_bucket("bucket", name) == name


@pytest.mark.parametrize("name", ["", "A", "-a", "_a", "a.b", "a/b", "..", "x" * 64, "é", "a\n", "a "])
def test_buckets_that_are_none(name: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_bucket("bucket", name)


def test_content_types() -> None:
    assert parse_content_type("content_type", " ") == "application/octet-stream"
    for text in ("image/png", "text/html; charset=UTF-8", "application/vnd.x+json;v=1"):
        assert parse_content_type("content_type", text) == text
    for text in ("png", "a/b/c", "a/", "text/html\r\nx: y", "text/plain; é", "text/" + "x" * 251):
        with pytest.raises(InvalidArgument):
            parse_content_type("content_type", text)
    with pytest.raises(InvalidArgument) as caught:
        parse_content_type("content_type", "Multipart/Form-Data; boundary=x")
    assert caught.value.reason == "FORM_NOT_TAKEN"


def test_metadata() -> None:
    assert parse_metadata("metadata", b"").value == {}
    assert parse_metadata("metadata", b'{"a": 1.10}').text == '{"a": 1.10}'
    assert parse_metadata("metadata", b'{"a":' + b"[" * 7 + b"]" * 7 + b"}").value
    too_deep = b'{"a":' + b"[" * 8 + b"]" * 8 + b"}"
    for raw in (
        b"1",
        b"[]",
        b'{"a":[' + b"1," * 99 + b"1]}",
        b"{",
        b"\xff",
        b'{"a":"\\ud800"}',
        b'{"a":"' + b"x" * 4096 + b'"}',
        too_deep,
    ):
        with pytest.raises(InvalidArgument):
            parse_metadata("metadata", raw)


def test_slices_within_a_content() -> None:
    assert Slice(0, 10).within(4) == Slice(0, 4)
    assert Slice(3, 10).within(4) == Slice(3, 1)
    assert Slice(9, 10).within(4) == Slice(4, 0)


def test_a_token_belongs_to_its_list() -> None:
    token = tokens._token("ours", "a/é")
    assert tokens.request("ours", 0, token) == tokens.Request("ours", 50, "a/é")
    forged = [tokens._token("ours", path) for path in ("a\0", "", "a//b", "x" * 2000)]
    for name, text in (
        *(("ours", text) for text in forged),
        ("theirs", token),
        ("ours", token[:-2]),
        ("ours", "x"),
        ("ours", "é"),
        ("ours", "A" * 3000),
    ):
        with pytest.raises(InvalidArgument):
            tokens.request(name, 0, text)
