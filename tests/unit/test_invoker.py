"""What an Invoker makes of a run: places in terms of the deployed source, and logs that leave turns to others."""

import asyncio
import json
import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engines.contract import LogLine, Outcome, Result, ScriptError
from engines.sourcemap import MOST_PLACES, finish_map
from server.errors import FunctionFailed
from server.functions.invoke import LINES_AT_ONCE, Body, Call, Invoker, Request
from server.settings import Settings

SOURCE_MAP = finish_map(
    json.dumps({"version": 3, "sources": ["f.ts"], "names": [], "mappings": "AAEA"}).encode(), shift_lines=1
)
OK = Result(outcome=Outcome.OK)


def line(text: str) -> LogLine:
    return LogLine(level="error", text=text, at_ms=0)


async def invoke(result: Result, source_map: bytes | None = SOURCE_MAP) -> Result:
    """The Result of an Invoker whose engine answers with `result`."""

    async def resolve(project_id: str, slug: str) -> Any:
        function = SimpleNamespace(runtime="quickjs", slug=slug, version=1, project_id=project_id)
        return SimpleNamespace(program=None, function=function, source_map=source_map)

    async def answer(*args: object) -> Result:
        return result

    invoker = Invoker(
        catalog=cast(Any, SimpleNamespace(resolve=resolve)),
        engines={"quickjs": cast(Any, SimpleNamespace(invoke=answer))},
        hosts=cast(Any, SimpleNamespace(for_invocation=lambda *_: None)),
        settings=Settings(),
    )
    call = Call(project_id="p", tier="free", slug="f", body=Body(kind="json", data=b"null"), request=Request())
    return (await invoker.invoke(call)).result


async def test_logs_name_places_of_the_source() -> None:
    told = await invoke(replace(OK, logs=(line("plain"), line("Error: no\n    at f (<input>:2:1)"))))
    assert [line.text for line in told.logs] == ["plain", "Error: no\n    at f (f.ts:3:1)"]


async def test_stacks_name_places_of_the_source() -> None:
    error = ScriptError(name="Error", message="no", stack="    at f (<input>:2:1)")
    with pytest.raises(FunctionFailed, match="no") as raised:
        await invoke(Result(outcome=Outcome.EXCEPTION, error=error))
    assert "at f (f.ts:3:1)" in str(vars(raised.value))


async def test_without_a_map_everything_stays() -> None:
    logged = replace(OK, logs=(line("at <input>:2:1"),))
    assert await invoke(logged, None) == logged


async def test_no_more_places_are_translated_than_of_one_stack() -> None:
    crowd = line("<input>:2:1 " * (MOST_PLACES // 2))
    told = await invoke(replace(OK, logs=(crowd,) * 4))
    assert ["f.ts" in line.text for line in told.logs] == [True, True, False, False]


async def test_others_have_their_turn_between_lines(caplog: Any) -> None:
    """A run that wrote thousands of lines does not keep the loop from others while they are logged."""
    caplog.set_level(logging.INFO, "atlas")
    lines = tuple(line(str(number)) for number in range(20 * LINES_AT_ONCE))
    run = asyncio.create_task(invoke(replace(OK, logs=lines, logs_truncated=True), None))
    turns = 0
    while not run.done():
        turns += 1
        await asyncio.sleep(0)
    assert (await run).outcome is Outcome.OK
    assert turns >= 20
    *said, last = [record.getMessage() for record in caplog.records]
    assert said == [str(number) for number in range(20 * LINES_AT_ONCE)]
    assert "the rest was dropped" in last
