"""Requests of user code: what is refused, what is dropped, what a redirect makes of them."""

import base64
import gzip

import pytest
from yarl import URL

from engines.contract import HostError
from server.host.fetch import gunzip
from server.host.request import MAX_BODY_BYTES, Request, parse, redirected

HEADERS = (("authorization", "Bearer x"), ("cookie", "a=b"), ("content-type", "text/plain"), ("x-own", "1"))


def refusal(url: object, options: object = None) -> HostError:
    with pytest.raises(HostError) as caught:
        parse(url, options)
    return caught.value


@pytest.mark.parametrize(
    "url",
    [
        None, 5, "", "example.com", "//example.com", "/path", "ftp://example.com", "file:///etc/passwd",
        "gopher://example.com", "unix:///run/x.sock", "http+unix://%2Frun/x", "javascript:alert(1)", "data:,x",
        "http://", "http:///x", "http://user@example.com", "http://user:pw@example.com", "http://:pw@example.com",
        "http://example.com:0", "http://example.com:65536", "http://example.com:x", "http://[::1", "http://[fe80::1%25eth0]/",
        "http://exa mple.com", "http://example.com/\r\nx: y", "http://example.com\\@127.0.0.1/", "http://" + "a" * 9000,
    ],
)  # fmt: skip
def test_urls_that_are_refused(url: object) -> None:
    assert refusal(url).code == "invalid_argument"


@pytest.mark.parametrize("port", [25, 465, 587])
def test_mail_ports(port: int) -> None:
    assert refusal(f"http://example.com:{port}/").code == "fetch_blocked"


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ([], "options must be an object, got array"),
        ({"metod": "GET"}, "unknown field 'metod'"),
        ({"method": "CONNECT"}, "method 'CONNECT'"),
        ({"method": "trace"}, "method 'TRACE'"),
        ({"method": "GET\r\nX: y"}, "is not allowed"),
        ({"method": 7}, "method must be a string, got number"),
        ({"body_base64": "eA=="}, "a GET request cannot have a body"),
        ({"method": "POST", "body_base64": "%%"}, "body is not base64"),
        ({"method": "POST", "body_base64": {}}, "body must be a string"),
        ({"timeout_ms": 0}, "timeout_ms is 0"),
        ({"timeout_ms": 1e9}, "timeout_ms is 1e+09"),
        ({"timeout_ms": "1"}, "timeout_ms must be a number"),
        ({"timeout_ms": True}, "timeout_ms must be a number, got boolean"),
        ({"redirect": "maybe"}, "redirect must be"),
        ({"redirect": []}, "redirect must be"),
        ({"headers": 0}, "headers must be an array, got number"),
        ({"headers": {"a": "b"}}, "headers must be an array"),
        ({"headers": [["a"]]}, "[name, value] pair"),
        ({"headers": [["a", 1]]}, "[name, value] pair"),
        ({"headers": [["a b", "x"]]}, "header name"),
        ({"headers": [["a:", "x"]]}, "header name"),
        ({"headers": [["", "x"]]}, "header name"),
        ({"headers": [["a", "x\r\nhost: y"]]}, "line break"),
        ({"headers": [["a", "x\0"]]}, "line break"),
        ({"headers": [["a", "\u0100"]]}, "beyond U+00FF"),
        ({"headers": [["a", "x"]] * 101}, "101 headers"),
        ({"headers": [["a", "x" * 40_000]]}, "bytes, at most"),
    ],
)
def test_options_that_are_refused(options: object, part: str) -> None:
    found = refusal("http://example.com", options)
    assert found.code == "invalid_argument"
    assert part in found.message


def test_a_body_beyond_the_limit() -> None:
    body = base64.b64encode(b"x" * (MAX_BODY_BYTES + 1)).decode()
    assert refusal("http://example.com", {"method": "POST", "body_base64": body}).code == "fetch_body_limit"


def test_headers_of_the_connection_are_dropped() -> None:
    names = [
        "Host",
        "Content-Length",
        "Transfer-Encoding",
        "Connection",
        "Proxy-Authorization",
        "TE",
        "Upgrade",
        "X-Own",
    ]
    request = parse("http://example.com", {"headers": [[name, "1"] for name in names]})
    assert request.headers == (("x-own", "1"),)


def moved(status: int, location: str, method: str = "POST") -> Request:
    body = b"x" if method not in ("GET", "HEAD") else None
    return redirected(
        Request(method=method, url=URL("https://a.example/x"), headers=HEADERS, body=body), status, location
    )


@pytest.mark.parametrize(
    ("status", "method", "becomes", "body"),
    [
        (301, "POST", "GET", None), (302, "POST", "GET", None), (303, "POST", "GET", None), (303, "PUT", "GET", None),
        (301, "PUT", "PUT", b"x"), (307, "POST", "POST", b"x"), (308, "DELETE", "DELETE", b"x"),
        (303, "HEAD", "HEAD", None), (301, "GET", "GET", None),
    ],
)  # fmt: skip
def test_method_and_body_after_a_redirect(status: int, method: str, becomes: str, body: bytes | None) -> None:
    following = moved(status, "/y", method)
    assert (following.method, following.body) == (becomes, body)
    assert ("content-type" in dict(following.headers)) == (method == becomes)


@pytest.mark.parametrize(
    ("location", "kept"),
    [("/y", True), ("https://a.example:443/y", True), ("http://a.example/y", False), ("https://b.example/", False),
     ("https://a.example:8443/", False), ("//b.example/", False)],
)  # fmt: skip
def test_credentials_stay_with_their_origin(location: str, kept: bool) -> None:
    names = dict(moved(307, location).headers)
    assert ("authorization" in names) == ("cookie" in names) == kept
    assert "x-own" in names


@pytest.mark.parametrize("location", ["file:///etc/passwd", "http://u:p@b.example/", "ftp://b.example/", "http://[::1"])
def test_redirects_to_what_a_request_could_not_ask_for(location: str) -> None:
    with pytest.raises(HostError):
        moved(302, location)


def test_gunzip_is_bounded() -> None:
    assert gunzip(gzip.compress(b"a") + gzip.compress(b"b")) == b"ab"
    for bad, code in [
        (gzip.compress(b"x" * 2_000_000), "fetch_body_limit"),
        (gzip.compress(b"x" * 600) * 3, "fetch_body_limit"),
        (gzip.compress(b"") * 100, "fetch_failed"),
        (gzip.compress(b"abc")[:-4], "fetch_failed"),
        (b"not gzip", "fetch_failed"),
    ]:
        with pytest.raises(HostError) as caught:
            gunzip(bad, max_bytes=1_000)
        assert caught.value.code == code
