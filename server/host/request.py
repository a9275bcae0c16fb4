"""A request that user code asks for, checked, and what becomes of it on a redirect. Pure."""

import base64
import binascii
import re
from dataclasses import dataclass, replace
from typing import Final, Literal, cast, get_args

from yarl import URL

from engines.contract import HostError
from server.host import arguments
from server.telemetry.correlation import TRACEPARENT, TraceParent

MAX_URL_CHARS: Final = 8 * 1024
MAX_HEADERS: Final = 100
MAX_HEADER_BYTES: Final = 32 * 1024  # all names and values together
MAX_BODY_BYTES: Final = 5 * 1024 * 1024
MAX_TIMEOUT_MS: Final = 60_000
DEFAULT_TIMEOUT_MS: Final = 10_000
MAIL_PORTS: Final = frozenset((25, 465, 587))

FORBIDDEN_METHODS: Final = frozenset(("CONNECT", "TRACE", "TRACK"))
IGNORED_HEADERS: Final = frozenset(
    (
        *("connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding"),
        *("upgrade", "via", "http2-settings"),
    )
)
"""They belong to the connection, which is ours; as browsers do, we drop them silently, proxy-* with them."""

CREDENTIALS: Final = frozenset(("authorization", "cookie"))
NAME: Final = "atlas.fetch"

RedirectMode = Literal["follow", "manual", "error"]
Headers = tuple[tuple[str, str], ...]

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,200}")
_BAD_IN_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]|[^\x00-\xff]")
_OPTIONS: Final = frozenset(("method", "headers", "body_base64", "timeout_ms", "redirect"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    method: str
    url: URL
    headers: Headers = ()  # names in lower case
    body: bytes | None = None
    timeout_ms: float = DEFAULT_TIMEOUT_MS
    redirect: RedirectMode = "follow"


def parse(url: object, options: object) -> Request:
    """The request, or HostError("invalid_argument") that names field and rule."""
    stated = arguments.options(NAME, "options", options, _OPTIONS)
    given = {name: value for name, value in stated.items() if value is not None}
    method = arguments.string(NAME, "method", given.get("method", "GET")).upper()
    if not _TOKEN.fullmatch(method) or method in FORBIDDEN_METHODS:
        raise arguments.invalid(NAME, f"method {method[:20]!r} is not allowed")
    body = _body(given.get("body_base64"))
    if body and method in ("GET", "HEAD"):
        raise arguments.invalid(NAME, f"a {method} request cannot have a body")
    mode = given.get("redirect", "follow")
    if mode not in get_args(RedirectMode):
        raise arguments.invalid(NAME, "redirect must be follow, manual or error")
    timeout_ms = arguments.number(NAME, "timeout_ms", given.get("timeout_ms", DEFAULT_TIMEOUT_MS))
    if not 1 <= timeout_ms <= MAX_TIMEOUT_MS:
        raise arguments.invalid(NAME, f"timeout_ms is {timeout_ms:g}; it must be between 1 and {MAX_TIMEOUT_MS}")
    return Request(
        method=method,
        url=parse_url(arguments.string(NAME, "url", url)),
        headers=_headers(given.get("headers")),
        body=body or None,
        timeout_ms=timeout_ms,
        redirect=cast(RedirectMode, mode),
    )


def parse_url(text: str, base: URL | None = None) -> URL:
    """An absolute http or https URL without credentials, to a port that is no mail server's."""
    if len(text) > MAX_URL_CHARS:
        raise arguments.invalid(NAME, f"the URL has {len(text)} characters, at most {MAX_URL_CHARS} are allowed")
    if re.search(r"[\x00-\x20\x7f\\]", text.strip(" ")):
        raise arguments.invalid(NAME, "the URL has a space, backslash or control character; encode it")
    try:
        url = URL(text.strip(" "))
        url = (base.join(url) if base else url).with_fragment(None)
        host, port = url.host, url.port
    except ValueError:
        raise arguments.invalid(NAME, "the URL cannot be parsed") from None
    if url.scheme not in ("http", "https"):
        raise arguments.invalid(NAME, "the URL must begin with http:// or https://")
    if not host or port is None or not 1 <= port <= 65535:
        raise arguments.invalid(NAME, "the URL has no valid host and port")
    if "%" in host:
        raise arguments.invalid(NAME, "the URL's host has a zone or an encoded character")
    if url.user is not None or url.password is not None:
        raise arguments.invalid(NAME, "the URL must not contain credentials; use the authorization header")
    if port in MAIL_PORTS:
        raise HostError("fetch_blocked", f"{NAME}: port {port} is blocked; use a mail provider's HTTP API")
    return url


def redirected(request: Request, status: int, location: str) -> Request:
    """The next request, by the rules of the Fetch standard: POST becomes GET on 301, 302; all but HEAD on 303."""
    url = parse_url(location, request.url)
    becomes_get = (status in (301, 302) and request.method == "POST") or (
        status == 303 and request.method not in ("GET", "HEAD")
    )
    headers = request.headers
    if becomes_get:
        headers = tuple(pair for pair in headers if not pair[0].startswith("content-"))
    if _origin(url) != _origin(request.url):
        headers = tuple(pair for pair in headers if pair[0] not in CREDENTIALS)
    following = replace(request, url=url, headers=headers)
    return replace(following, method="GET", body=None) if becomes_get else following


def traced(request: Request, place: TraceParent) -> Request:
    """The request with `traceparent`, unless it has one of its own."""
    if any(name == TRACEPARENT for name, _ in request.headers):
        return request
    return replace(request, headers=(*request.headers, (TRACEPARENT, str(place))))


def _origin(url: URL) -> tuple[str, str | None, int | None]:
    return url.scheme, url.host, url.port  # 443 is 443 whether it was written or not


def _body(value: object) -> bytes | None:
    if value is None:
        return None
    text = arguments.string(NAME, "body", value)
    try:
        body = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise arguments.invalid(NAME, "body is not base64") from None
    if len(body) > MAX_BODY_BYTES:
        raise HostError(
            "fetch_body_limit", f"{NAME}: the request body has {len(body)} bytes, {MAX_BODY_BYTES} are allowed"
        )
    return body


def _headers(value: object) -> Headers:
    pairs = arguments.array(NAME, "headers", [] if value is None else value)
    if len(pairs) > MAX_HEADERS:
        raise arguments.invalid(NAME, f"{len(pairs)} headers, at most {MAX_HEADERS} are allowed")
    found: list[tuple[str, str]] = []
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise arguments.invalid(NAME, "each header must be a [name, value] pair of strings")
        name, text = pair[0].lower(), pair[1].strip(" \t")
        if not _TOKEN.fullmatch(name):
            raise arguments.invalid(NAME, f"header name {name[:40]!r} is not allowed")
        if _BAD_IN_VALUE.search(text):
            raise arguments.invalid(NAME, f"header {name!r} has a line break, a control or a character beyond U+00FF")
        if name not in IGNORED_HEADERS and not name.startswith("proxy-"):
            found.append((name, text))
    size = sum(len(name) + len(text) for name, text in found)
    if size > MAX_HEADER_BYTES:
        raise arguments.invalid(NAME, f"the headers have {size} bytes, at most {MAX_HEADER_BYTES} are allowed")
    return tuple(found)
