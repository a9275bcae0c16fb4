"""HEAD on stored objects: the headers of GET, and not a byte of content."""

import base64
import socket
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest

from tests.fix_clients import Rest
from tests.fix_up import Stack

TOLD = ("content-length", "content-type", "etag", "last-modified", "x-metadata", "repr-digest")


@pytest.fixture
def bucket(rest: Rest) -> str:
    return f"/storage/v1/object/h{uuid4().hex[:12]}"


def test_it_answers_what_get_does_without_the_content(rest: Rest, bucket: str) -> None:
    def head(path: str, key: str = rest.service_key, **headers: str) -> httpx.Response:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = rest.request("HEAD", f"{bucket}/{path}", key=key, headers=sent)
        assert answer.content == b""
        assert "x-atlas-length" not in answer.headers
        return answer

    sent = {"content-type": "text/plain", "x-metadata": base64.b64encode(b'{"n": 1}').decode()}
    put = rest.request("PUT", f"{bucket}/a/b c.txt", key=rest.service_key, content=b"x" * 5_000, headers=sent)
    assert put.status_code == 200, put.text
    got = rest.request("GET", f"{bucket}/a/b c.txt", key=rest.service_key)
    for told in (head("a/b c.txt"), head("a/b c.txt", range="bytes=0-9")):
        assert told.status_code == 200
        assert [told.headers[name] for name in TOLD] == [got.headers[name] for name in TOLD]
    assert head("a/b c.txt", if_none_match=got.headers["etag"]).status_code == 304
    assert head("a/b c.txt", key=rest.anon_key).status_code == 404
    assert rest.request("PUT", f"{bucket}/empty", key=rest.service_key, content=b"").status_code == 200
    assert head("empty").headers["content-length"] == "0"
    refused = {"none": 404, "a//b": 400, "": 400}
    assert {path: head(path).status_code for path in refused} == refused
    assert head("empty", key="none").status_code == 401
    nowhere = rest.request("HEAD", "/nowhere", key=rest.service_key)
    assert (nowhere.status_code, nowhere.content) == (404, b"")


def test_not_a_byte_follows_the_headers(running_stack: Stack, rest: Rest, bucket: str) -> None:
    """As the wire has it: a client library would not see what is too much."""
    put = rest.request("PUT", f"{bucket}/a", key=rest.service_key, content=b"x" * 5_000)
    assert put.status_code == 200, put.text
    address = urlsplit(running_stack.url)
    for path, status, length in (("a", b"200 OK", b"5000"), ("none", b"404 Not Found", b"")):
        request = f"HEAD {bucket}/{path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\napikey: {rest.service_key}\r\n\r\n"
        with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
            connection.sendall(request.encode())
            answer = b"".join(iter(lambda: connection.recv(65_536), b""))
        headers, _, rest_of_it = answer.partition(b"\r\n\r\n")
        assert headers.startswith(b"HTTP/1.1 " + status)
        assert rest_of_it == b""
        assert b"transfer-encoding" not in headers
        assert b"content-length: " + length in headers
