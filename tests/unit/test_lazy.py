"""An engine that starts with its first use: once, for whoever waits, and again after it could not."""

import asyncio
from typing import Any, cast

import pytest

from engines import lazy
from engines.contract import Engine, Invocation, Limits, Outcome, Program, Result
from engines.lazy import Lazy, NotStarted

PROGRAM = Program(project_id="p", function_id="f", version=1, code=b"")
LIMITS = Limits(wall_ms=1, cpu_ms=1, memory_bytes=1, fetch_calls=0)
INVOCATION = Invocation(id="i", input=b"null")


class Inner:
    """Starts when it is let, fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.may_start = asyncio.Event()
        self.starts = self.closes = self.retired = 0

    async def start(self) -> None:
        self.starts += 1
        await self.may_start.wait()
        if self.failures:
            self.failures -= 1
            raise FileNotFoundError("no such engine")

    async def invoke(self, program: Program, invocation: Invocation, limits: Limits, host: object) -> Result:
        return Result(outcome=Outcome.OK)

    async def check(self, program: Program, limits: Limits) -> Result:
        return Result(outcome=Outcome.OK)

    def retire(self, project_id: str, function_id: str | None = None) -> None:
        self.retired += 1

    async def close(self) -> None:
        self.closes += 1

    def report(self) -> dict[str, object]:
        return {"state": "started"}


def around(inner: Inner) -> Lazy:
    return Lazy(cast(Engine, inner))


async def call(subject: Lazy) -> Result:
    return await subject.invoke(PROGRAM, INVOCATION, LIMITS, cast(Any, None))


async def test_one_that_nobody_uses_costs_nothing() -> None:
    inner = Inner()
    subject = around(inner)
    await subject.start()
    subject.retire("p")
    assert subject.report() == {"state": "not started"}
    await subject.close()
    assert (inner.starts, inner.retired, inner.closes) == (0, 0, 0)


async def test_callers_share_one_start_and_one_who_goes_away_does_not_end_it() -> None:
    inner = Inner()
    subject = around(inner)
    calls = [asyncio.create_task(call(subject)) for _ in range(3)]
    calls.append(asyncio.create_task(subject.check(PROGRAM, LIMITS)))
    await asyncio.sleep(0)
    calls[0].cancel()
    inner.may_start.set()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(ended[0], asyncio.CancelledError)
    assert [told.outcome for told in ended[1:] if isinstance(told, Result)] == [Outcome.OK] * 3
    assert inner.starts == 1
    assert subject.report() == {"state": "started"}
    subject.retire("p")
    await subject.close()
    assert (inner.retired, inner.closes) == (1, 1)


async def test_a_failed_start_is_told_to_every_caller_and_tried_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 100.0
    monkeypatch.setattr("engines.lazy.time.monotonic", lambda: now_s)
    inner = Inner(failures=2)
    inner.may_start.set()
    subject = around(inner)
    for told in await asyncio.gather(call(subject), call(subject), return_exceptions=True):
        assert isinstance(told, NotStarted)
        assert "no such engine" in str(told)
    assert inner.starts == 1
    with pytest.raises(NotStarted):
        await call(subject)
    assert inner.starts == 1
    assert subject.report() == {"state": "not started", "failure": "no such engine"}
    now_s += lazy.BACKOFF_S[0]
    with pytest.raises(NotStarted):
        await call(subject)
    assert inner.starts == 2
    now_s += lazy.BACKOFF_S[0]
    with pytest.raises(NotStarted):
        await call(subject)
    assert inner.starts == 2
    now_s += lazy.BACKOFF_S[0]
    assert (await call(subject)).outcome is Outcome.OK
    await subject.close()


async def test_closing_ends_a_start() -> None:
    inner = Inner()
    subject = around(inner)
    waiting = asyncio.create_task(call(subject))
    await asyncio.sleep(0)
    await subject.close()
    with pytest.raises(RuntimeError, match="closed"):
        await waiting
    with pytest.raises(RuntimeError, match="closed"):
        await call(subject)
    assert inner.closes == 0
