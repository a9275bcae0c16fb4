"""Pages of objects in the order of their paths: an object that comes or goes meanwhile moves no other.

A page token is the path of the last object shown, bound to its list by a checksum. It is opaque, not secret.

    base64url of:  8 bytes SHA-256(list name · path) · path in UTF-8
"""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from server import paging
from server.errors import InvalidArgument
from server.storage.names import parse_path
from server.storage.records import ObjectPage, StoredObject

_CHECK_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Request:
    """A checked page request: fetch up to `size + 1` objects behind `after` and let `page` cut them."""

    name: str
    size: int
    after: str

    def page(self, items: Sequence[StoredObject]) -> ObjectPage:
        shown = items[: self.size]
        return ObjectPage(shown, _token(self.name, shown[-1].path) if len(items) > len(shown) else "")


def request(name: str, page_size: int, page_token: str) -> Request:
    """InvalidArgument for a size outside 0..200 (0 is 50) and for a token of another list or of nobody."""
    size = paging.request(name, page_size, "").size
    return Request(name, size, _path(name, page_token) if page_token else "")


def _token(name: str, path: str) -> str:
    raw = path.encode()
    return base64.urlsafe_b64encode(_check(name, raw) + raw).decode().rstrip("=")


def _path(name: str, token: str) -> str:
    bad = InvalidArgument("page_token", "page_token is not one that this list gave out; start again without it")
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise bad from None
    check, path = raw[:_CHECK_BYTES], raw[_CHECK_BYTES:]
    if check != _check(name, path):
        raise bad
    try:
        return parse_path("page_token", path.decode())  # nothing keeps anybody from making one
    except (UnicodeDecodeError, InvalidArgument):
        raise bad from None


def _check(name: str, path: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + path).digest()[:_CHECK_BYTES]
