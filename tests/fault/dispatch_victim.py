"""A worker that kills itself at one step of a delivery: `python -m tests.fault.dispatch_victim URL NATS STEP NTH FILE`.

What its functions do is to append a line to the file: the id of the delivery and of the run.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines.contract import Outcome, Result
from server.dispatch import intake, ledger, runs
from server.dispatch.backfills import Backfills
from server.dispatch.consumer import Pull
from server.dispatch.dispatcher import Dispatcher
from server.events.bus import EventBus
from server.events.history import History
from server.invocations.invoke import Call, Finished
from server.postgres.changes import Changes
from server.postgres.control import open_pool
from server.triggers.cache import TriggerCache
from tests.fix_dispatch import SETTINGS

STEPS = ("fetched", "claimed", "started", "acknowledged", "ran", "recorded")
STEPS_OF_PAST = ("looked", "claimed", "moved")
"""Of events before a trigger: read; queued, but not committed; committed."""


class Appending:
    def __init__(self, file: Path, ran: Callable[[], None] = lambda: None) -> None:
        self._file = file
        self._ran = ran

    async def invoke(self, call: Call) -> Finished:
        with self._file.open("a") as lines:
            lines.write(f"{json.loads(call.event or b'')['delivery_id']} {call.run_id}\n")
        await asyncio.sleep(0.001)
        self._ran()
        return Finished(call.run_id, Result(outcome=Outcome.OK))


def fuse(wanted: str, nth: int) -> Callable[[str], None]:
    """Kills the process when it is told of the wanted step for the nth time."""
    left = nth

    def passed(step: str) -> None:
        nonlocal left
        if step == wanted:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return passed


def patch(owner: Any, name: str, passed: Callable[[], None]) -> None:
    """Tell of a step when that coroutine function has returned."""
    real = getattr(owner, name)

    async def then(*args: Any, **given: Any) -> Any:
        answer = await real(*args, **given)
        passed()
        return answer

    setattr(owner, name, then)


async def main(url: str, nats_url: str, step: str, nth: str, file: str) -> None:
    passed = fuse(step, int(nth))
    patch(Pull, "ack", lambda: passed("acknowledged"))
    patch(intake.Intake, "_read", lambda: passed("fetched"))
    patch(ledger, "insert", lambda: passed("claimed"))
    patch(ledger, "end", lambda: passed("recorded"))
    patch(History, "some", lambda: passed("looked"))
    patch(Backfills, "_queue", lambda: passed("moved"))
    real = runs.Runs.start
    runs.Runs.start = lambda *args: (real(*args), passed("started"))[0]  # type: ignore[method-assign]
    async with open_pool(url, max_size=6) as pool:
        changes, bus = Changes(url), EventBus(nats_url)
        triggers = TriggerCache(pool, changes)
        invoker = Appending(Path(file), lambda: passed("ran"))
        dispatcher = Dispatcher(
            bus=bus,
            settings=SETTINGS,
            pool=pool,
            changes=changes,
            triggers=triggers,
            invoker=invoker,
            slots=8,
            lease_s=1.0,
        )
        await bus.start()
        await changes.start()
        await triggers.start()
        await dispatcher.start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
