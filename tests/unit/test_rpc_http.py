"""What a function sees of an HTTP request, and what its Response becomes on the wire."""

import pytest

from engines.contract import BodyKind, Metrics, Response
from server.errors import FunctionFailed, InvalidArgument
from server.rpc.http import answer, body_of, idempotency_key, request_of, response_metadata, wants_async

ENVOY = {
    "x-envoy-original-method": "PUT",
    "x-envoy-original-path": "/functions/v1/invoke/hello/a%20b/c?x=1&y=&x=2",
    "authorization": "Bearer secret",
    "x-custom": "kept",
    "x-request-id": "r-1",
    "x-envoy-expected-rq-timeout-ms": "65000",
    "grpc-timeout": "64S",
    "te": "trailers",
}


def test_method_path_query_and_headers_come_from_envoy() -> None:
    seen = request_of(ENVOY, "a b/c", "application/json")
    assert (seen.method, seen.path, seen.query) == ("PUT", "/a b/c", {"x": "2", "y": ""})
    assert seen.headers == {"x-custom": "kept", "x-request-id": "r-1", "content-type": "application/json"}


def test_the_key_never_reaches_the_function_but_the_applications_token_does() -> None:
    seen = request_of({"apikey": "secret", "authorization": "Bearer application"}, "", "")
    assert seen.headers == {"authorization": "Bearer application"}


@pytest.mark.parametrize(
    ("original", "path"),
    [
        ("/functions/v1/invoke/hello", ""),
        ("/functions/v1/invoke/hello/", "/"),
        ("/functions/v1/invoke/hello?q=1/2", ""),
        ("/functions/v1/invoke/hello/a%2Fb", "/a/b"),
    ],
)
def test_the_path_is_what_follows_the_slug(original: str, path: str) -> None:
    assert request_of({"x-envoy-original-path": original}, "", "").path == path


def test_a_native_grpc_caller_has_post_and_the_messages_path() -> None:
    seen = request_of({}, "a/b", "")
    assert (seen.method, seen.path) == ("POST", "/a/b")


@pytest.mark.parametrize(
    ("content_type", "data", "kind", "text"),
    [
        ("application/json", b'{"a": 1}', "json", b'{"a": 1}'),
        ("application/vnd.api+json; charset=utf-8", b"[]", "json", b"[]"),
        ("", b"7", "json", b"7"),
        ("application/json", b"", "json", b"null"),
        ("text/plain", "é".encode(), "text", "é".encode()),
        ("application/x-www-form-urlencoded", b"a=1", "text", b"a=1"),
        ("application/x-www-form-urlencoded", b'{"a": 1}', "json", b'{"a": 1}'),
        ("application/x-www-form-urlencoded", b"{a=1", "text", b"{a=1"),
        ("image/svg+xml", b"<svg/>", "text", b"<svg/>"),
        ("application/octet-stream", b"\xff\x00", "bytes", b"\xff\x00"),
    ],
)
async def test_the_body_is_what_its_content_type_says(
    content_type: str, data: bytes, kind: BodyKind, text: bytes
) -> None:
    body = await body_of(content_type, data)
    assert (body.kind, body.data) == (kind, text)


@pytest.mark.parametrize(
    "data", [b"{", b'{"a": NaN}', b"\xff", b'{"a":1}x', b"[" * 100_000, b"[" + b"1," * 100_000 + b"]"]
)
async def test_bad_json_is_the_callers_error_and_says_where(data: bytes) -> None:
    with pytest.raises(InvalidArgument, match="not valid JSON") as caught:
        await body_of("application/json", data)
    assert caught.value.field == "body"


async def test_text_that_is_not_utf8_is_the_callers_error() -> None:
    with pytest.raises(InvalidArgument, match="byte 1"):
        await body_of("text/plain", b"a\xff")


def test_the_answer_keeps_the_functions_json_byte_for_byte() -> None:
    metrics = Metrics(wall_ms=1.23456, memory_bytes=2048)
    expected = b'{"result":{"big": 12345678901234567890},"metrics":{"wall_ms":1.235,"memory_bytes":2048}}'
    assert answer(b'{"big": 12345678901234567890}', metrics) == expected
    assert b'"fuel_consumed":9' in answer(b"1", Metrics(fuel_consumed=9))


def test_a_response_keeps_repeated_headers_and_loses_those_of_the_connection() -> None:
    headers = (
        ("content-type", "text/html"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("connection", "close"),
        ("content-length", "999"),
        ("x-atlas-status", "200"),
        ("grpc-status", "0"),
        ("trace-bin", "x"),
    )
    content_type, metadata = response_metadata(Response(status=418, headers=headers, body=b""))
    assert content_type == "text/html"
    assert metadata == (("x-atlas-status", "418"), ("set-cookie", "a=1"), ("set-cookie", "b=2"))


@pytest.mark.parametrize("header", [("x-a", "line\r\nbreak"), ("x-a", "naïve"), ("bad name", "v"), ("X-Upper", "v")])
def test_a_header_http_cannot_carry_is_the_functions_error(header: tuple[str, str]) -> None:
    with pytest.raises(FunctionFailed, match="header"):
        response_metadata(Response(status=200, headers=(header,), body=b""))


def test_headers_have_a_total_size() -> None:
    headers = tuple((f"x-{n}", "v" * 1000) for n in range(40))
    with pytest.raises(FunctionFailed, match="allowed are 32768"):
        response_metadata(Response(status=200, headers=headers, body=b""))


def test_headers_have_a_number_that_envoy_carries() -> None:
    headers = tuple((f"x-{n}", "v") for n in range(65))
    with pytest.raises(FunctionFailed, match="65 headers, allowed are 64"):
        response_metadata(Response(status=200, headers=headers, body=b""))


@pytest.mark.parametrize(
    ("prefer", "wanted"),
    [
        ("respond-async", True),
        ("Respond-Async; x=1", True),
        ('wait=10;why="a, b", respond-async', True),
        ("", False),
        ("respond-async=no", False),
        ("not-respond-async", False),
        ('why="a, respond-async, b"', False),
        (r'why="\", respond-async, \""', False),
        ('"' + r"\"" * 30_000 + ", respond-async", False),
    ],
)
def test_what_a_caller_prefers(prefer: str, wanted: bool) -> None:
    assert wants_async({"prefer": prefer}) is wanted


@pytest.mark.parametrize(
    ("sent", "key"), [(None, None), ("k", "k"), (' "k 1" ', "k 1"), ('"', '"'), ("", ""), ('""', "")]
)
def test_an_empty_idempotency_key_is_not_the_same_as_none(sent: str | None, key: str | None) -> None:
    assert idempotency_key({} if sent is None else {"idempotency-key": sent}) == key
