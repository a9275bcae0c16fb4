"""http: one HTTP request, under the rules of atlas.fetch: public addresses only, at most 5 MiB, 60 s and 5 redirects.

    config  {"url", "method"?: GET, "headers"?: {name: value}, "body"?, "fail_on_status"?: true}; templates everywhere
            but in names. A body that is a string is sent as text, any other as JSON.
    output  {"status", "headers": {name: value}, "body"}; the body as `server.workflows.nodes.function.body_of` has it

A request other than GET and HEAD has an `idempotency-key`, the same at every attempt, unless it has one of its own.
"""

import base64
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Final, Protocol

import orjson

from engines.contract import HostError
from server.errors import InvalidArgument
from server.fields import shown
from server.host.request import FORBIDDEN_METHODS, MAX_HEADERS, parse_url
from server.workflows import fields
from server.workflows.nodes.function import body_of
from server.workflows.nodes.step import Attempt, Output, StepFailed
from server.workflows.templates import compiled, dumped

TIMEOUT_S: Final = 30.0
MAX_TIMEOUT_S: Final = 60.0
TURN_S: Final = 5.0
"""How long an attempt waits for its turn among the project's requests, before its time begins."""

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
FIRST_FAILURE: Final = 400
RETRIED: Final = frozenset((408, 425, 429))
"""Statuses below 500 after which another attempt may end otherwise."""

_FIELDS: Final = ("url", "method", "headers", "body", "fail_on_status")
_FINAL: Final = frozenset(("invalid_argument", "fetch_blocked", "fetch_body_limit", "fetch_redirect"))


class Fetches(Protocol):
    """`server.host.fetch.Fetcher`."""

    def turn(self, project_id: str, *, within_s: float) -> AbstractAsyncContextManager[None]: ...

    async def fetch(
        self, project_id: str, url: object, options: object, *, timeout_ms: float, in_turn: bool
    ) -> bytes: ...


def parse(config: object, field: str) -> Any:
    given = fields.members(config, field, _FIELDS, required=("url",), of="the configuration of an http node")
    url = fields.templated(given["url"], f"{field}.url")
    if fields.is_fixed(url):
        try:
            parse_url(url)
        except HostError as why:
            told = why.message.partition(": ")[2]
            raise InvalidArgument(f"{field}.url", f"{field}.url is {shown(url)}; {told}") from None
    method = fields.text(given.get("method", "GET"), f"{field}.method").upper()
    assert not FORBIDDEN_METHODS & set(METHODS)
    fields.choice(method, f"{field}.method", METHODS)
    headers = given.get("headers", {})
    if not isinstance(headers, dict) or len(headers) > MAX_HEADERS:
        raise InvalidArgument(f"{field}.headers", f"{field}.headers must be an object of at most {MAX_HEADERS} strings")
    if "body" in given and method in ("GET", "HEAD"):
        raise InvalidArgument(f"{field}.body", f"{field}.body is there, and a {method} request cannot have one")
    found = {
        "url": url,
        "method": method,
        "headers": {name: fields.templated(value, f"{field}.headers.{name[:40]}") for name, value in headers.items()},
        "fail_on_status": fields.flag(given.get("fail_on_status", True), f"{field}.fail_on_status"),
    }
    return found | ({"body": compiled(given["body"], f"{field}.body")} if "body" in given else {})


class HttpNode:
    def __init__(self, fetcher: Fetches) -> None:
        self._fetcher = fetcher

    @asynccontextmanager
    async def turn(self, attempt: Attempt) -> AsyncIterator[None]:
        async with AsyncExitStack() as held:
            try:
                await held.enter_async_context(self._fetcher.turn(attempt.project_id, within_s=TURN_S))
            except TimeoutError:
                raise StepFailed(
                    "HTTP_NO_ROOM",
                    f"The project's other requests left no room for this one within {TURN_S:g} s",
                    again=True,
                    no_room=True,
                ) from None
            yield

    async def run(self, attempt: Attempt) -> Output:
        config = attempt.input
        if not isinstance(config["url"], str):
            raise StepFailed("HTTP_INVALID_ARGUMENT", "The url is no string once its template is filled in")
        try:
            answer = await self._fetcher.fetch(
                attempt.project_id, config["url"], _options(attempt), timeout_ms=MAX_TIMEOUT_S * 1000, in_turn=True
            )
        except HostError as why:
            reason = "HTTP_" + why.code.removeprefix("fetch_").upper()
            raise StepFailed(reason, why.message, again=why.code not in _FINAL) from why
        return _output(config, orjson.loads(answer))


def _options(attempt: Attempt) -> dict[str, object]:
    config = attempt.input
    headers = {name.lower(): _header(name, value) for name, value in config["headers"].items()}
    options: dict[str, object] = {"method": config["method"], "timeout_ms": MAX_TIMEOUT_S * 1000}
    if config["method"] not in ("GET", "HEAD"):
        headers.setdefault("idempotency-key", attempt.name)
    if "body" in config:
        body = config["body"]
        kind = "text/plain; charset=utf-8" if isinstance(body, str) else "application/json"
        headers.setdefault("content-type", kind)
        sent = body.encode("utf-8", "replace") if isinstance(body, str) else dumped(body)
        options["body_base64"] = base64.b64encode(sent).decode()
    return options | {"headers": [[name, value] for name, value in headers.items()]}


def _header(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, dict | list):
        raise StepFailed("HTTP_INVALID_ARGUMENT", f"The header {shown(name)} is no text once its template is filled in")
    return dumped(value).decode()


def _output(config: Any, answer: Any) -> Output:
    status = answer["status"]
    if status >= FIRST_FAILURE and config["fail_on_status"]:
        again = status >= 500 or status in RETRIED
        raise StepFailed("HTTP_STATUS", f"The server answered with the status {status}", again=again)
    headers = dict(answer["headers"])
    found = {"status": status, **body_of(headers, base64.b64decode(answer["body_base64"]))}
    return Output(json=dumped(found))
