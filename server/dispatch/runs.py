"""What runs in this process, each attempt in a task of its own: begun, told how it ended, and its slot given back.

start ──▶ function: Invoker, workflow: Workflows ──▶ decide ──▶ Outcomes, which writes it
     └──▶ at the end of the process: given back, and told as lost, but for the retry policy it was no attempt
"""

import asyncio
import random
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, Protocol

import orjson

from engines.contract import Outcome
from engines.value import value
from server.clock import Clock, SystemClock
from server.dispatch import decisions
from server.dispatch.decisions import Ended, decide, may_begin
from server.dispatch.ledger import LOST, End
from server.dispatch.loops import Loops
from server.dispatch.outcomes import Outcomes
from server.dispatch.room import Room
from server.errors import AtlasError, InvalidArgument, NotFound
from server.events.envelope import Event, decode, encode, spelled
from server.fields import storable
from server.invocations.invoke import Body, Call, Finished, Request
from server.log import logger
from server.telemetry.metrics import Metrics
from server.tiers import Tier
from server.triggers.cache import Armed

log = logger("dispatch")

MAX_MESSAGE_CHARS: Final = 2_000
"""Of an error as the ledger keeps it; the whole of it is in the record of the run."""

REQUEST: Final = Request()


class Invokes(Protocol):
    """`server.invocations.invoke.Invoker`."""

    async def invoke(self, call: Call) -> Finished: ...


class StartsWorkflows(Protocol):
    """`server.workflows`."""

    async def start(
        self, *, project_id: str, workflow_id: str, run_id: str, trigger_id: str | None, event: bytes
    ) -> None:
        """Idempotent by `run_id`; NotFound when there is no such workflow."""
        ...


@value(kw_only=True)
class Attempt:
    """What is to run now. `attempts` counts this one; `body` is None when the event is not kept any more; its age
    counts from `since`, and its lag from `came_at`, when the event came."""

    delivery_id: str
    run_id: str
    armed: Armed
    tier: Tier | None
    body: bytes | None
    event: Event | None = None  # of the body, when that was read already
    attempts: int = 1
    refusals: int = 0
    since: datetime
    came_at: datetime


class Runs:
    def __init__(
        self,
        invoker: Invokes,
        workflows: StartsWorkflows | None,
        outcomes: Outcomes,
        room: Room,
        *,
        loops: Loops | None = None,
        metrics: Metrics | None = None,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._invoker = invoker
        self._workflows = workflows
        self._outcomes = outcomes
        self._room = room
        self._loops = loops
        self._metrics = metrics or Metrics()
        self._clock = clock or SystemClock()
        self._chance = chance
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._freed: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<Runs {len(self._tasks)} running>"

    def when_freed(self, woken: Callable[[], None]) -> None:
        """Call it whenever a slot is free again."""
        self._freed.append(woken)

    def start(self, attempt: Attempt) -> None:
        """Its slot is taken and its row is running; both are seen to from here on."""
        task = asyncio.create_task(self._run(attempt), name="delivery")
        self._tasks[task] = attempt.run_id
        task.add_done_callback(self._tasks.pop)

    def known(self) -> set[str]:
        """The runs that are begun here and not yet written to have ended."""
        return {*self._tasks.values(), *self._outcomes.unwritten()}

    async def close(self, drain_s: float) -> None:
        """Let runs end for so long, then end them and give them back."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=drain_s)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _run(self, attempt: Attempt) -> None:
        trigger = attempt.armed.trigger
        began = self._clock.now()
        began_s = self._clock.monotonic_s()
        try:
            self._outcomes.add(await self._attempted(attempt, began))
        except asyncio.CancelledError:
            self._outcomes.add(_cut(attempt, began, self._clock.now()))
            raise
        except Exception as why:  # not even a fault of ours may leave a row running for ever
            log.exception("dispatch.fault", f"A delivery failed with a fault of ours: {why!r}", id=attempt.delivery_id)
            self._outcomes.add(self._ended(attempt, began, decisions.fault()))
        finally:
            self._room.used(trigger.id, self._clock.monotonic_s() - began_s)
            self._room.give_back(trigger.id)
            for woken in self._freed:
                woken()

    async def _attempted(self, attempt: Attempt, began: datetime) -> End:
        policy = attempt.armed.trigger.retry
        if attempt.body is None:
            return self._ended(attempt, began, _gone())
        age_s = (began - attempt.since).total_seconds()
        if not may_begin(policy, attempts=attempt.attempts, age_s=age_s):
            self._metrics.deliveries("dead").add()
            return _unattempted(attempt)
        if attempt.attempts == 1 and not attempt.refusals:
            self._metrics.delivery_lag_s().observe(max(0.0, (began - attempt.came_at).total_seconds()))
        try:
            event = attempt.event or decode(attempt.body)
            if self._loops is not None and self._loops.is_too_deep(event):
                ended = await self._loops.stopped(event, attempt.armed.trigger.id)
            elif attempt.armed.trigger.bridge is None:
                ended = await self._target(attempt, attempt.body, event)
            elif (seen := attempt.armed.trigger.bridge.event(event)) is None:
                ended = Ended(
                    Outcome.LOAD_FAILED, "EVENT_UNREADABLE", "The change is no event of users to its trigger now"
                )
            else:
                ended = await self._target(attempt, encode(seen), seen)
        except InvalidArgument as why:
            ended = Ended(Outcome.LOAD_FAILED, "EVENT_UNREADABLE", why.message)
        except AtlasError as why:
            ended = decisions.ended(why)
        except Exception:
            log.exception("dispatch.fault", "A delivery failed with a fault of ours", id=attempt.delivery_id)
            ended = decisions.fault()
        return self._ended(attempt, began, ended)

    async def _target(self, attempt: Attempt, body: bytes, event: Event) -> Ended:
        """How the attempt ended, or the AtlasError that it ended with."""
        armed = attempt.armed
        trigger = armed.trigger
        if trigger.workflow_id is not None:
            if self._workflows is None:
                raise NotFound("Workflows are not served here", reason="WORKFLOW_NOT_FOUND")
            await self._workflows.start(
                project_id=trigger.project_id,
                workflow_id=trigger.workflow_id,
                run_id=attempt.delivery_id,
                trigger_id=trigger.id,
                event=body,
            )
            return decisions.OK
        if armed.slug is None:
            raise NotFound("The function of this trigger was deleted", reason="FUNCTION_NOT_FOUND")
        call = Call(
            project_id=trigger.project_id,
            tier=attempt.tier,
            slug=armed.slug,
            function_id=trigger.function_id,
            body=Body(kind="json", data=body),
            request=REQUEST,
            trigger=trigger.id,
            event=_told(attempt, event),
            request_id=event.id,
            run_id=attempt.run_id,
        )
        return decisions.ended(await self._invoker.invoke(call))

    def _ended(self, attempt: Attempt, began: datetime, ended: Ended) -> End:
        now = self._clock.now()
        verdict = decide(
            ended,
            attempt.armed.trigger.retry,
            attempts=attempt.attempts,
            refusals=attempt.refusals,
            age_s=(now - attempt.since).total_seconds(),
            chance=self._chance(),
        )
        self._metrics.deliveries(_counted(verdict.state, ended)).add()
        entry = _entry(attempt, began, now, ended.outcome.value)
        error = None
        if ended.reason:
            error = {"reason": ended.reason, "message": _kept(ended.message)}
            entry |= error
        return End(
            id=attempt.delivery_id,
            run_id=attempt.run_id,
            state=verdict.state,
            delay_s=verdict.delay_s,
            attempts=verdict.attempts,
            refusals=verdict.refusals,
            outcome=ended.outcome.value,
            error=None if error is None else orjson.dumps(error).decode(),
            entry=None if ended.refused and verdict.state == "queued" else orjson.dumps(entry).decode(),
        )


def _unattempted(attempt: Attempt) -> End:
    """Dead, without having begun."""
    return End(
        attempt.delivery_id, attempt.run_id, "dead", 0.0, attempt.attempts - 1, attempt.refusals, None, None, None
    )


def _cut(attempt: Attempt, began: datetime, now: datetime) -> End:
    """By the end of the process: what it has done stays done, so it is told; but it does not count."""
    error = {"reason": "WORKER_STOPPED", "message": "The worker stopped before this ended"}
    return End(
        id=attempt.delivery_id,
        run_id=attempt.run_id,
        state="queued",
        delay_s=0.0,
        attempts=attempt.attempts - 1,
        refusals=attempt.refusals,
        outcome=LOST,
        error=orjson.dumps(error).decode(),
        entry=orjson.dumps(_entry(attempt, began, now, LOST) | error).decode(),
    )


def _entry(attempt: Attempt, began: datetime, ended: datetime, outcome: str) -> dict[str, Any]:
    """Of the history."""
    return {
        "attempt": attempt.attempts,
        "run_id": attempt.run_id,
        "began_at": began,
        "ended_at": ended,
        "outcome": outcome,
    }


def _told(attempt: Attempt, event: Event) -> bytes:
    """What the function sees as `ctx.event`."""
    told: dict[str, Any] = {
        "id": event.id,
        "type": event.type,
        "time": spelled(event.time),
        "source": event.source,
        "trigger_id": attempt.armed.trigger.id,
        "delivery_id": attempt.delivery_id,
        "attempt": attempt.attempts,
    }
    if event.subject is not None:
        told["subject"] = event.subject
    if event.cause is not None:
        cause = {"run_id": event.cause.run_id, "trigger_id": event.cause.trigger_id, "depth": event.cause.depth}
        told["cause"] = {name: value for name, value in cause.items() if value is not None}
    return orjson.dumps(told)


def _gone() -> Ended:
    return Ended(Outcome.LOAD_FAILED, "EVENT_GONE", "The event is not kept any more")


def _counted(state: str, ended: Ended) -> str:
    return state if state != "queued" else "refused" if ended.refused else "retried"


def _kept(message: str) -> str:
    """As Postgres takes it."""
    return storable(message[:MAX_MESSAGE_CHARS])
