"""A run of a function that is `exactly_once`: its answer is committed with all that it did in the database.

    an earlier attempt was committed ──▶ its answer; the function is not called
    it ends well ──▶ committed with its answer ──▶ its answer
                 └─▶ refused: the function failed with why, as if it had thrown it
    it ends in any other way ──▶ rolled back

Ending well is what makes a delivery done: a value, or a Response below 400.
"""

import base64
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from engines.contract import HostError, LogLine, Outcome, Response, Result, ScriptError
from server.errors import Unavailable
from server.functions.outcomes import FAILED_STATUS
from server.host.run_transaction import RunTransaction

BY_HAND: Final = frozenset(("http", "grpc"))
"""What `Call.trigger` says of runs that are never repeated."""

DONE: Final = LogLine(
    level="info", text="An earlier attempt has done this: its answer is given again, and nothing is changed", at_ms=0
)
RETRY_AFTER_MS: Final = 1_000

_VALUE: Final = '{"value":'


async def run_once(transaction: RunTransaction, run: Callable[[], Awaitable[Result]]) -> Result:
    """Its result, once it is settled what of it is kept. Unavailable, before it is run, when the database is away."""
    try:
        if (told := await _told(transaction)) is not None:
            return _again(told, Result(outcome=Outcome.OK))
        result = await run()
        if transaction.earlier is None and _ended_well(result):
            result = await _committed(transaction, result)
        return result if transaction.earlier is None else _again(transaction.earlier, result)
    finally:
        await transaction.close()


async def _told(transaction: RunTransaction) -> bytes | None:
    try:
        return await transaction.told()
    except HostError as why:
        raise Unavailable(
            f"Whether this was done before cannot be known now. {why.message}",
            reason="TENANT_DATABASE_UNAVAILABLE",
            retry_after_ms=RETRY_AFTER_MS,
        ) from why


async def _committed(transaction: RunTransaction, result: Result) -> Result:
    try:
        await transaction.commit(_packed(result))
    except HostError as why:
        error = ScriptError(name="AtlasError", message=why.message, code=why.code)
        return replace(result, outcome=Outcome.EXCEPTION, value=b"null", response=None, error=error)
    return result


def _ended_well(result: Result) -> bool:
    response = result.response
    return result.outcome is Outcome.OK and (response is None or response.status < FAILED_STATUS)


def _packed(result: Result) -> str:
    """JSON text of what it answered."""
    response = result.response
    if response is None:
        return f"{_VALUE}{result.value.decode()}}}"
    body = base64.b64encode(response.body).decode()
    return json.dumps({"status": response.status, "headers": response.headers, "body": body})


def _again(told: bytes, result: Result) -> Result:
    """With the answer that was packed in place of its own."""
    value, response = b"null", None
    if told.startswith(_VALUE.encode()):
        value = told[len(_VALUE) : -1]
    else:
        given = json.loads(told)
        headers = tuple((name, value) for name, value in given["headers"])
        response = Response(status=given["status"], headers=headers, body=base64.b64decode(given["body"]))
    logs = (*result.logs, DONE)
    return replace(result, outcome=Outcome.OK, value=value, response=response, error=None, limit=None, logs=logs)
