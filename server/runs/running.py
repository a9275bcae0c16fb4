"""What runs in this process, and how to end it.

A run is cancelled as `asyncio.timeout` cancels: the task that runs it is cancelled, and `guard` takes that back and
answers a Result. So whoever waits for the run is told CANCELLED, and its task goes on. A cancellation from elsewhere,
of a client that left, passes through.
"""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Final

from engines.contract import Outcome, Result
from server.clock import Clock, SystemClock
from server.runs.record import Run, RunRecord, cancelled, finished

CANCELLED: Final = Result(outcome=Outcome.CANCELLED)


@dataclass(slots=True, eq=False)
class _Entry:
    run: Run
    task: asyncio.Task[object]
    cancelling: int  # how often the task had been asked to end before
    asked: bool = False
    ended: asyncio.Future[RunRecord] | None = None


class Running:
    def __init__(self, *, clock: Clock | None = None) -> None:
        self._entries: dict[str, _Entry] = {}
        self._clock = clock or SystemClock()

    def __repr__(self) -> str:
        return f"<Running {len(self._entries)} runs>"

    def __len__(self) -> int:
        return len(self._entries)

    async def guard(self, run: Run, work: Awaitable[Result]) -> Result:
        """What `work` answers, or the outcome CANCELLED when `cancel` ended it. Costs about a microsecond.

        Raises what `work` raises. Cancelling `guard` cancels `work`.
        """
        task = asyncio.current_task()
        assert task is not None
        entry = self._entries[run.id] = _Entry(run, task, task.cancelling())
        result = CANCELLED
        try:
            result = await work
        except asyncio.CancelledError:
            if not entry.asked or task.uncancel() > entry.cancelling:
                raise
        else:
            if entry.asked:
                task.uncancel()
        finally:
            del self._entries[run.id]
            if entry.ended is not None and not entry.ended.done():
                entry.ended.set_result(self._ended(run, result))
        return result

    def get(self, project_id: str, run_id: str) -> RunRecord | None:
        """What is known of a run that runs here."""
        entry = self._entries.get(run_id)
        return RunRecord(run=entry.run, state="running") if entry and entry.run.project_id == project_id else None

    def list(self, project_id: str) -> list[RunRecord]:
        """The project's runs that run here, in no order."""
        runs = (entry.run for entry in self._entries.values())
        return [RunRecord(run=run, state="running") for run in runs if run.project_id == project_id]

    async def cancel(self, project_id: str, run_id: str) -> RunRecord | None:
        """End a run and answer when it has ended, with how it did; None when it does not run here."""
        entry = self._entries.get(run_id)
        if entry is None or entry.run.project_id != project_id:
            return None
        if entry.ended is None:
            entry.ended = asyncio.get_running_loop().create_future()
        if not entry.asked:
            entry.asked = True
            entry.task.cancel()
        return await asyncio.shield(entry.ended)

    def _ended(self, run: Run, result: Result) -> RunRecord:
        now = self._clock.now()
        return cancelled(run, at=now) if result.outcome is Outcome.CANCELLED else finished(run, result, at=now)
