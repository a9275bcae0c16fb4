"""The HTTP side of an invocation: what Envoy tells of the request, and what a function's answer becomes.

Envoy's transcoder hands the body over as google.api.HttpBody and everything else as metadata:
`x-envoy-original-method`, `x-envoy-original-path` (with the query) and the request's headers. A native gRPC client that
calls InvokeHttp has none of these; then the method is POST and the path is the message's `rest`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import parse_qsl, unquote

import orjson

from engines.contract import Metrics, Response
from engines.json_text import LARGE_BYTES, is_json
from server.errors import FunctionFailed, InvalidArgument
from server.invocations.invoke import Body, Request

STATUS_HEADER: Final = "x-atlas-status"
"""Initial metadata with the HTTP status a function chose; Envoy's Lua filter applies and removes it."""

INVOKE_PREFIX: Final = "/functions/v1/invoke/"
MAX_RESPONSE_HEADERS: Final = 64
"""Envoy refuses an answer with more than 100, ours and gRPC's among them."""

MAX_RESPONSE_HEADERS_BYTES: Final = 32 * 1024

_OURS: Final = ("x-envoy-", "x-atlas-", "atlas-", "grpc-", ":")
_HOP_BY_HOP: Final = frozenset(
    ("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "content-length")
)
FORM: Final = "application/x-www-form-urlencoded"
_TEXT_TYPES: Final = frozenset((FORM, "application/xml", "application/javascript", "application/graphql"))


def request_of(headers: Mapping[str, str], rest: str, content_type: str) -> Request:
    """`ctx.request` of a call."""
    original = headers.get("x-envoy-original-path")
    path, _, query = (original or "").partition("?")
    if original is None:
        path = f"/{rest}" if rest else ""
    else:
        _, slash, suffix = path.removeprefix(INVOKE_PREFIX).partition("/")
        path = unquote(slash + suffix)
    seen = shown(headers)
    if content_type:
        seen["content-type"] = content_type
    return Request(
        method=headers.get("x-envoy-original-method", "POST"),
        path=path,
        query=dict(parse_qsl(query, keep_blank_values=True)) if query else {},
        headers=seen,
    )


def shown(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers a function sees. The one that carried the API key is not its business, nor what Envoy tells us."""
    key_header = "apikey" if headers.get("apikey") else "authorization"
    return {
        name: value
        for name, value in headers.items()
        if name != key_header and name not in _HOP_BY_HOP and not name.startswith(_OURS)
    }


def wants_async(headers: Mapping[str, str]) -> bool:
    """Whether the caller prefers not to wait: `Prefer: respond-async`, among other preferences perhaps (RFC 7240)."""
    preferences = headers.get("prefer", "")
    return bool(preferences) and any(
        preference.partition(";")[0].strip().lower() == "respond-async"
        for preference in _QUOTED.sub("", preferences).split(",")
    )


def idempotency_key(headers: Mapping[str, str]) -> str | None:
    """The `Idempotency-Key` if there is one. In double quotes, as the IETF's draft has it, it is the text between."""
    sent = headers.get("idempotency-key")
    if sent is None:
        return None
    key = sent.strip()
    return key[1:-1] if len(key) >= 2 and key[0] == key[-1] == '"' else key


async def body_of(content_type: str, data: bytes) -> Body:
    """The function's input: JSON when it says so or says nothing, text for text types, else bytes.

    An empty body is null. A form that is really a JSON object or array is JSON: `curl -d '{…}'` without a header says
    form, and no encoded form begins with a brace. InvalidArgument for a body that is not the JSON or UTF-8 it claims.
    """
    if not data:
        return Body(kind="json", data=b"null")
    media_type, _, _ = content_type.lower().partition(";")
    media_type = media_type.strip()
    if media_type in ("", "application/json") or media_type.endswith("+json"):
        await _require_json(data)
        return Body(kind="json", data=data)
    if media_type == FORM and data[:1] in (b"{", b"[") and await _is_json(data):
        return Body(kind="json", data=data)
    if media_type.startswith("text/") or media_type in _TEXT_TYPES or media_type.endswith("+xml"):
        try:
            data.decode()
        except UnicodeDecodeError as why:
            raise InvalidArgument(
                "body", f"The request body is {media_type} but not UTF-8: byte {why.start} is invalid"
            ) from None
        return Body(kind="text", data=data)
    return Body(kind="bytes", data=data)


async def _require_json(data: bytes) -> None:
    if len(data) > LARGE_BYTES:
        if not await is_json(data):
            raise InvalidArgument("body", f"The request body of {len(data)} bytes is not valid JSON")
        return
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError as why:
        raise InvalidArgument(
            "body", f"The request body is not valid JSON: {why.msg} at line {why.lineno} column {why.colno}"
        ) from None


async def _is_json(data: bytes) -> bool:
    try:
        await _require_json(data)
    except InvalidArgument:
        return False
    return True


def answer(value: bytes, metrics: Metrics) -> bytes:
    """`{"result": …, "metrics": …}` around the function's own JSON text, byte for byte."""
    return b'{"result":' + value + b',"metrics":' + orjson.dumps(metrics_of(metrics)) + b"}"


def metrics_of(metrics: Metrics) -> dict[str, float | int]:
    told: dict[str, float | int] = {"wall_ms": round(metrics.wall_ms, 3), "memory_bytes": metrics.memory_bytes}
    if metrics.fuel_consumed is not None:
        told["fuel_consumed"] = metrics.fuel_consumed
    return told


def response_metadata(response: Response) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The content type, and the initial metadata that carries status and headers to Envoy.

    Headers that belong to the connection or to us are dropped, as every edge does. FunctionFailed for a header that
    HTTP cannot carry, or when all of them are over 32 KiB or more than 64.
    """
    _require_moderate(response.headers)
    content_type = ""
    metadata = [(STATUS_HEADER, str(response.status))]
    for name, value in response.headers:
        if name == "content-type":
            content_type = value
        elif name in _HOP_BY_HOP or name.startswith(_OURS) or name.endswith("-bin"):
            continue
        else:
            metadata.append((name, value))
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise FunctionFailed(
                f'The function returned a Response whose header "{name[:60]}" has characters outside printable ASCII',
                reason="RESPONSE_HEADER_INVALID",
                metadata={"header": name[:60]},
            )
    return content_type, tuple(metadata)


def _require_moderate(headers: Sequence[tuple[str, str]]) -> None:
    size = sum(len(name) + len(value) for name, value in headers)
    if len(headers) <= MAX_RESPONSE_HEADERS and size <= MAX_RESPONSE_HEADERS_BYTES:
        return
    used, allowed, of = size, MAX_RESPONSE_HEADERS_BYTES, "bytes of headers"
    if len(headers) > MAX_RESPONSE_HEADERS:
        used, allowed, of = len(headers), MAX_RESPONSE_HEADERS, "headers"
    raise FunctionFailed(
        f"The function returned a Response with {used} {of}, allowed are {allowed}",
        reason="RESPONSE_HEADERS_TOO_LARGE",
        metadata={"used": str(used), "allowed": str(allowed)},
    )


_QUOTED: Final = re.compile(r'"(?:\\.|[^"\\])*"?')  # the last quote may be missing: so it is linear
_NAME: Final = re.compile(r"[a-z0-9._-]+")
_VALUE: Final = re.compile(r"[ -~]*")
