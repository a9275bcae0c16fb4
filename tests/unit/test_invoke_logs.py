"""A run that wrote thousands of lines does not keep the loop from others while they are logged."""

import asyncio
import logging
from typing import Any, cast

from engines.contract import LogLine, Outcome, Result
from server.functions.invoke import LINES_AT_ONCE, Body, Invoker, Request
from server.settings import Settings


class Chatterbox:
    """A catalog, an engine and a host in one, whose runs end with many lines."""

    runtime = "quickjs"
    slug = "chatter"
    version = 1
    project_id = "p"
    source_map = None

    @property
    def function(self) -> "Chatterbox":
        return self

    program = function

    async def resolve(self, _project_id: str, _slug: str) -> "Chatterbox":
        return self

    async def invoke(self, *_: object) -> Result:
        lines = tuple(LogLine(level="log", text=str(number), at_ms=0) for number in range(20 * LINES_AT_ONCE))
        return Result(outcome=Outcome.OK, logs=lines, logs_truncated=True)

    def for_invocation(self, *_: object) -> None:
        return None


async def test_others_have_their_turn_between_lines(caplog: Any) -> None:
    caplog.set_level(logging.INFO, "atlas")
    all_in_one = cast(Any, Chatterbox())
    invoker = Invoker(catalog=all_in_one, engines={"quickjs": all_in_one}, hosts=all_in_one, settings=Settings())
    body = Body(kind="json", data=b"null")
    run = asyncio.create_task(invoker.invoke("p", None, "chatter", body, Request()))
    turns = 0
    while not run.done():
        turns += 1
        await asyncio.sleep(0)
    assert (await run).outcome is Outcome.OK
    assert turns >= 20
    *said, last = [record.getMessage() for record in caplog.records]
    assert said == [str(number) for number in range(20 * LINES_AT_ONCE)]
    assert "the rest was dropped" in last
