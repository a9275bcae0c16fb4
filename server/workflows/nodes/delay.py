"""delay: waits, at no cost but a row; restarts do not matter.

config  {"seconds": 0 to 30 days} or {"until": RFC 3339}, perhaps as a template
output  {"until"}
"""

from datetime import datetime, timedelta
from typing import Any, Final

import orjson

from server.errors import InvalidArgument
from server.events.envelope import parse_time, spelled
from server.workflows import fields
from server.workflows.nodes.step import Attempt, Output, StepFailed, Wait

TIMEOUT_S: Final = 10.0
MAX_DELAY_S: Final = 30 * 24 * 3600


def parse(config: object, field: str) -> Any:
    given = fields.members(config, field, ("seconds", "until"), of="the configuration of a delay node")
    if ("seconds" in given) is ("until" in given):
        raise InvalidArgument(field, f"{field} must have either seconds or until")
    if "until" in given:
        until = fields.templated(given["until"], f"{field}.until")
        if fields.is_fixed(until):
            parse_time(f"{field}.until", until)
        return {"until": until}
    seconds = given["seconds"]
    if isinstance(seconds, str):
        seconds = fields.templated(seconds, f"{field}.seconds")
    if fields.is_fixed(seconds):
        fields.number(seconds, f"{field}.seconds", low=0, high=MAX_DELAY_S)
    return {"seconds": seconds}


class DelayNode:
    async def run(self, attempt: Attempt) -> Output | Wait:
        if attempt.wake_at is not None and attempt.wake_at <= attempt.now:
            return Output(json=orjson.dumps({"until": spelled(attempt.wake_at)}))
        return Wait(attempt.wake_at or _until(attempt.input, attempt.now))


def _until(config: Any, now: datetime) -> datetime:
    """When it ends; a time that is past is now. StepFailed for what a template made of it."""
    try:
        if "until" in config:
            wanted = parse_time("until", fields.text(config["until"], "until"))
            fields.number((wanted - now).total_seconds(), "The seconds until then", low=-1e12, high=MAX_DELAY_S)
            return max(wanted, now)
        return now + timedelta(seconds=fields.number(config["seconds"], "seconds", low=0, high=MAX_DELAY_S))
    except InvalidArgument as why:
        raise StepFailed("DELAY_INVALID", why.message) from None
