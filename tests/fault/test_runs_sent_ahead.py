"""Runs that wait in the socket of a busy child: whatever becomes of the one before, each runs once, or for nobody."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from engines.ahead import STREAK
from engines.child_link import ChildLink
from engines.contract import Outcome, Result
from engines.frames import Type
from engines.quickjs.engine import QuickJS
from engines.run import Run
from tests.fix_fake_child import Wire, calls, engine_of, result
from tests.fix_sandbox import LIMITS, Scripted, Silence, children_of, program, run

SWITCH = program("""
export default async (input) => {
  if (input === 'ask') return atlas.kv.get('x');
  if (input === 'loop') for (;;);
  return input;
}
""")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that were sent ahead."""
    runs: list[Run] = []
    send = ChildLink.send_ahead

    def noted(link: ChildLink, one: Run) -> None:
        if link.run is not one:
            runs.append(one)
        send(link, one)

    monkeypatch.setattr(ChildLink, "send_ahead", noted)
    return runs


@pytest.fixture
async def engine() -> AsyncIterator[QuickJS]:
    """One child of a function is enough for it, and SWITCH was quick often."""
    subject = QuickJS(spares=1, max_children=8, max_children_per_project=6, queue_ms=3_000, cores=1)
    await subject.start()
    ahead, number = subject._pool._ahead, 0
    assert ahead is not None
    while max(ahead._quick.values(), default=0) < STREAK:  # a busy machine may make one of them slow
        assert await answer(subject, number) == number
        number += 1
    yield subject
    await subject.close()


async def answer(engine: QuickJS, argument: object) -> object:
    found = await run(engine, SWITCH, argument)
    assert found.outcome is Outcome.OK, found
    return json.loads(found.value)


def begun(engine: QuickJS, argument: object, **options: Any) -> "asyncio.Task[Result]":
    """A run of SWITCH. Those that are begun without awaiting anything in between meet the first one at work."""
    return asyncio.create_task(run(engine, SWITCH, argument, **options))


async def values(*runs: "asyncio.Task[Result]") -> list[object]:
    return [json.loads(found.value) for found in await asyncio.gather(*runs)]


async def test_each_of_many_at_once_is_told_its_own_answer(engine: QuickJS, sent: list[Run]) -> None:
    answers = await asyncio.gather(*(answer(engine, number) for number in range(200)))
    assert answers == [*range(200)]
    assert sent


async def test_those_behind_a_run_that_waits_for_the_host_do_not_wait_with_it(engine: QuickJS, sent: list[Run]) -> None:
    silent = Silence()
    slow, *others = begun(engine, "ask", host=silent), *(begun(engine, number) for number in range(3))
    assert (await values(*others), len(sent) >= 3, slow.done()) == ([0, 1, 2], True, False)
    slow.cancel()
    await asyncio.wait([slow])
    assert silent.calls == 1


async def test_those_behind_an_endless_loop_run_elsewhere(engine: QuickJS, sent: list[Run]) -> None:
    limits = replace(LIMITS, cpu_ms=400)
    slow, *others = begun(engine, "loop", limits=limits), *(begun(engine, number) for number in range(3))
    assert (await values(*others), len(sent) >= 3) == ([0, 1, 2], True)
    assert (await slow).outcome is Outcome.CPU_LIMIT
    assert await answer(engine, "well") == "well"


async def test_those_behind_a_run_whose_sandbox_is_killed_run_elsewhere(engine: QuickJS, sent: list[Run]) -> None:
    silent = Silence()
    first, *others = begun(engine, "ask", host=silent), *(begun(engine, number) for number in range(3))
    await silent.asked.wait()
    (pid,) = [pid for pid, state in children_of(engine).items() if state == "wait_host"]
    os.kill(pid, signal.SIGKILL)
    assert (await first).outcome is Outcome.CRASHED
    assert (await values(*others), len(sent) >= 3) == ([0, 1, 2], True)


async def test_a_run_whose_caller_went_away_before_its_turn_asks_nothing_of_the_host(
    engine: QuickJS, sent: list[Run]
) -> None:
    answering, never = asyncio.Event(), Silence()

    async def told(op: str, args: object) -> str:
        await answering.wait()
        return "told"

    first = begun(engine, "ask", host=Scripted(told))
    second = begun(engine, "ask", host=never)
    third = begun(engine, 3)
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    answering.set()
    assert await values(first, third) == ["told", 3]
    assert (never.calls, len(sent) >= 2) == (0, True)


async def test_closing_ends_what_is_ahead(engine: QuickJS, sent: list[Run]) -> None:
    silent = Silence()
    runs = [begun(engine, "ask", host=silent), begun(engine, "well")]
    await silent.asked.wait()
    await engine.close()
    assert [found.outcome for found in await asyncio.gather(*runs)] == [Outcome.CRASHED, Outcome.CRASHED]


def early(lie: Callable[[int], bytes]) -> Callable[[Wire], Awaitable[None]]:
    """A child that is honest until two runs are in its socket, and then says something of the second."""

    async def script(wire: Wire) -> None:
        inv = await wire.invoked()
        for _ in range(STREAK):
            await wire.raw(result(inv))
            inv = (await wire.until(Type.INVOKE))[1]
        behind = (await wire.until(Type.INVOKE))[1]
        assert behind == inv + 1
        await wire.raw(lie(behind))
        await asyncio.Event().wait()

    return script


@pytest.mark.parametrize("lie", [result, lambda inv: calls(inv, 0)], ids=["an answer", "a host call"])
async def test_a_child_that_speaks_of_a_run_before_its_turn_is_ended(lie: Callable[[int], bytes]) -> None:
    host = Silence()
    async with engine_of(early(lie), cores=1) as (engine, _):
        for _ in range(STREAK):
            assert (await run(engine, SWITCH)).outcome is Outcome.OK
        first, behind = await asyncio.gather(*(run(engine, SWITCH, host=host) for _ in range(2)))
    assert (first.outcome, behind.outcome, behind.value, host.calls) == (Outcome.CRASHED, Outcome.OK, b"1", 0)
