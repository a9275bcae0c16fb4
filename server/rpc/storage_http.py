"""The HTTP side of stored objects: what a request's path and headers ask for, and the headers of an answer. Pure."""

import base64
import binascii
import re
from collections.abc import Mapping
from email.utils import format_datetime
from typing import Final

import orjson

from server.errors import InvalidArgument
from server.rpc.http import STATUS_HEADER
from server.rpc.status import DOMAIN
from server.storage.names import MAX_METADATA_BYTES, path_of_url
from server.storage.records import Slice, StoredObject

Headers = Mapping[str, str]
Metadata = tuple[tuple[str, str], ...]

METADATA: Final = "x-metadata"
UPSERT: Final = "x-upsert"
SAFETY: Final[Metadata] = (
    ("x-content-type-options", "nosniff"),
    ("content-security-policy", "default-src 'none'; style-src 'unsafe-inline'; sandbox"),
    ("cache-control", "private, no-cache"),
)
"""A content is its owner's text, not ours: a browser neither guesses its type nor runs what is in it, and asks again
before it shows a copy."""

LENGTH_HEADER: Final = "x-atlas-length"
"""Of an answer to HEAD: the `content-length` that Envoy makes of it, without a content."""

_ORIGINAL: Final = "x-envoy-original-path"
_METHOD: Final = "x-envoy-original-method"
_URL: Final = re.compile(r"/storage/v1/(?:object|info)/[^/]*/(.*)", re.DOTALL)
_RANGE: Final = re.compile(r"bytes\s*=\s*(\d{1,15})?\s*-\s*(\d{1,15})?", re.ASCII | re.IGNORECASE)


class NotModified(Exception):
    """The caller has the object as it is."""

    def __init__(self, stored: StoredObject) -> None:
        super().__init__()
        self.stored = stored


class OutOfRange(Exception):
    """Nothing of the object lies in the range asked for."""

    def __init__(self, stored: StoredObject) -> None:
        super().__init__()
        self.stored = stored


def path_of(headers: Headers, in_message: str) -> str:
    """The object's path: of a REST call as its URL spells it, since Envoy decodes `%2F` and `%252F` to the same."""
    url, _, _ = headers.get(_ORIGINAL, "").partition("?")
    spelled = _URL.fullmatch(url)
    return in_message if spelled is None else path_of_url("path", spelled[1])


def metadata_of(headers: Headers) -> bytes:
    """`x-metadata` as JSON text: it is base64 of that, or, beginning with a brace, that itself."""
    sent = headers.get(METADATA, "").strip()
    if sent.startswith("{"):
        return sent.encode("latin-1", "replace")
    if len(sent) > 2 * MAX_METADATA_BYTES:
        raise InvalidArgument(METADATA, f"{METADATA} has more than {MAX_METADATA_BYTES} bytes")
    try:
        return base64.b64decode(sent, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument(METADATA, f"{METADATA} must be base64 of a JSON object, or the object itself") from None


def is_head(headers: Headers) -> bool:
    return headers.get(_METHOD, "").upper() == "HEAD"


def require_modified(headers: Headers, stored: StoredObject) -> None:
    """NotModified when the caller has the object as it is."""
    known = headers.get("if-none-match", "")
    if known and (known.strip() == "*" or stored.etag in re.findall(r'"[^"]*"', known)):
        raise NotModified(stored)


def may_replace(headers: Headers) -> bool:
    """Whether a put may replace an object: PUT always, POST with `x-upsert: true`."""
    if headers.get(_METHOD, "POST").upper() == "PUT":
        return True
    sent = headers.get(UPSERT, "false").strip().lower()
    if sent not in ("true", "false"):
        raise InvalidArgument(UPSERT, f"{UPSERT} must be true or false")
    return sent == "true"


def part_of(headers: Headers, stored: StoredObject) -> Slice | None:
    """What of the object to answer; None is all. NotModified, OutOfRange.

    Only one range, and only while `If-Range` is the object's etag; anything else is answered whole, as RFC 9110 allows.
    """
    require_modified(headers, stored)
    found = _RANGE.fullmatch(headers.get("range", "").strip())
    if found is None or headers.get("if-range", stored.etag).strip() != stored.etag:
        return None
    first, last = (None if text is None else int(text) for text in found.groups())
    size = stored.size_bytes
    if first is None:
        if last is None:
            return None
        first, last = max(0, size - last), size - 1 if last else -1
    elif last is None:
        last = size - 1
    elif last < first:
        return None
    if first >= size or last < first:
        raise OutOfRange(stored)
    return Slice(first, min(last, size - 1) - first + 1)


def answer_headers(stored: StoredObject, part: Slice | None = None, *, status: int | None = None) -> Metadata:
    """Initial metadata of an answer with the object, or the part of it. `status` when it is neither 200 nor 206."""
    told = [
        *SAFETY,
        ("accept-ranges", "bytes"),
        ("etag", stored.etag),
        ("last-modified", format_datetime(stored.updated_at, usegmt=True)),
        ("repr-digest", f"sha-256=:{base64.b64encode(bytes.fromhex(stored.checksum)).decode()}:"),
    ]
    if stored.metadata.value:
        told.append((METADATA, base64.b64encode(stored.metadata.text.encode()).decode()))
    if part is not None:
        status = 206
        told.append(("content-range", f"bytes {part.offset}-{part.offset + part.length - 1}/{stored.size_bytes}"))
    if status is not None:
        told.append((STATUS_HEADER, str(status)))
    return tuple(told)


def out_of_range(stored: StoredObject) -> tuple[Metadata, bytes]:
    """Initial metadata and body of a 416, which no gRPC code stands for."""
    size = str(stored.size_bytes)
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "RANGE_NOT_SATISFIABLE",
        "domain": DOMAIN,
        "metadata": {"size": size},
    }
    message = f"The object has {size} bytes; nothing of it lies in the range asked for"
    body = orjson.dumps({"error": {"code": "out_of_range", "message": message, "details": [info]}})
    return (("content-range", f"bytes */{size}"), (STATUS_HEADER, "416")), body
