"""function: runs a function of the project.

config  {"function": SLUG} or {"function_id": UUID}, and "input"?: any JSON with templates; the event when absent
output  what the function returned; of a Response, {"status", "headers", "body"}
"""

import base64
from collections.abc import Mapping
from typing import Any, Final, Protocol

from engines.contract import Response
from server.errors import AtlasError, InvalidArgument, NotFound, Unavailable
from server.events.json_text import JsonError, read
from server.fields import parse_id, shown
from server.functions.catalog import SLUG
from server.invocations.invoke import Body, Call, Finished, Request
from server.workflows import fields
from server.workflows.nodes.step import Attempt, Output, StepFailed
from server.workflows.templates import compiled, dumped

TIMEOUT_S: Final = 300.0
TRIGGER: Final = "workflow"
"""What a run's record says of who asked for it."""

_FIELDS: Final = ("function", "function_id", "input")
_FINAL: Final = frozenset(
    ("FUNCTION_LOAD_FAILED", "FUEL_LIMIT", "CANCELLED", "NEVER_SETTLES", "RESULT_SIZE_LIMIT", "STACK_LIMIT")
)
"""Reasons of failures that would come again, or were meant."""


class Invokes(Protocol):
    """`server.invocations.invoke.Invoker`."""

    async def invoke(self, call: Call) -> Finished: ...


class Slugs(Protocol):
    """What functions there are: `server.workflows.targets.Targets`."""

    async def slug(self, project_id: str, function_id: str) -> str: ...


def parse(config: object, field: str) -> Any:
    given = fields.members(config, field, _FIELDS, of="the configuration of a function node")
    if ("function" in given) is ("function_id" in given):
        raise InvalidArgument(field, f"{field} must have either function, a slug, or function_id")
    found: dict[str, Any] = {"input": compiled(given.get("input", "{{trigger}}"), f"{field}.input")}
    if "function" in given:
        slug = fields.text(given["function"], f"{field}.function")
        if not SLUG.fullmatch(slug):
            raise InvalidArgument(f"{field}.function", f"{field}.function is {shown(slug)}; it must be a slug")
        return found | {"function": slug}
    return found | {
        "function_id": parse_id(f"{field}.function_id", fields.text(given["function_id"], f"{field}.function_id"))
    }


class FunctionNode:
    def __init__(self, invoker: Invokes, slugs: Slugs) -> None:
        self._invoker = invoker
        self._slugs = slugs

    async def run(self, attempt: Attempt) -> Output:
        try:
            finished = await self._invoker.invoke(await self._call(attempt))
        except Unavailable as why:
            raise StepFailed(why.reason, why.message, again=True, no_room=True) from why
        except NotFound as why:
            raise StepFailed(why.reason, why.message) from why
        except AtlasError as why:
            raise StepFailed(why.reason, why.message, again=why.reason not in _FINAL) from why
        response = finished.result.response
        return Output(json=finished.result.value if response is None else dumped(_told(response)))

    async def _call(self, attempt: Attempt) -> Call:
        config = attempt.input
        slug = config.get("function") or await self._slugs.slug(attempt.project_id, config["function_id"])
        return Call(
            project_id=attempt.project_id,
            tier=attempt.tier,
            slug=slug,
            body=Body(kind="json", data=dumped(config["input"])),
            request=Request(),
            trigger=TRIGGER,
            run_id=attempt.invocation_id,
        )


def _told(response: Response) -> dict[str, object]:
    return {"status": response.status, **body_of(dict(response.headers), response.body)}


def body_of(headers: Mapping[str, str], body: bytes) -> dict[str, object]:
    """Headers and body of a response: JSON as what it means, other text as a string, bytes as {"base64"}."""
    found: object
    if "json" in headers.get("content-type", "").partition(";")[0]:
        try:
            return {"headers": headers, "body": read(body).value}
        except JsonError:
            pass
    try:
        found = body.decode()
    except UnicodeDecodeError:
        found = {"base64": base64.b64encode(body).decode()}
    return {"headers": headers, "body": found}
