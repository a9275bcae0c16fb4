"""Runs programs in jailed children: the pool decides, this module does it.

    invoke ─▶ Pool ─▶ Spawn, Bind, Start, Kill, Reject ─▶ Zygote and ChildLink ─▶ what happened ─▶ Pool ─▶ …

Everything happens on the event loop of `start`, in callbacks; an invocation without host calls costs one Future and no
Task. Children that show signs of an attack (a forbidden system call, a forged frame) are reported and their function
version is refused for QUARANTINE_MS.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from typing import Final

from engines.child_link import ChildLink, now_ms
from engines.children import (
    BUSY,
    Action,
    Bind,
    Child,
    Key,
    Kill,
    Proceed,
    Reject,
    Send,
    Shape,
    Spawn,
    Start,
    State,
)
from engines.contract import Host, Invocation, Limits, Outcome, Program, Result, ScriptError
from engines.frames import MAX_PAYLOAD_BYTES
from engines.json_text import LARGE_BYTES, is_json
from engines.keeper import Keeper, Launch
from engines.kind import Kind
from engines.messages import NO_JSON
from engines.pool import Pool
from engines.queue import PATIENCE_MS
from engines.run import Run
from engines.weight import Weight, weigh
from engines.zygote import Exit, SpawnFailed, Zygote, ZygoteError

log = logging.getLogger(__name__)

QUARANTINE_MS: Final = 10_000.0
SPAWN_TIMEOUT_S: Final = 5.0
MAX_INPUT_BYTES: Final = MAX_PAYLOAD_BYTES - 1024
TICK_S: Final = 0.1
TICKS_A_SWEEP: Final = 10
STDERR_CHARS: Final = 2_000


class Supervisor:
    """An Engine whose children are forked by a zygote of `module`. Make one per process, on its main thread."""

    def __init__(
        self,
        module: str,
        *,
        spares: int,
        max_children: int,
        max_children_per_project: int,
        queue_ms: int,
        unsafe: bool = False,
        launch: Launch = Zygote.launch,
        kind: Kind | None = None,
        cores: int | None = None,
    ) -> None:
        """`cores`: children of one function that are kept busy before requests are sent ahead to them (where the kind
        takes that); as many as the machine has for us when None."""
        self._kind = kind = kind or Kind()
        self._keeper = Keeper(module, launch, unsafe=unsafe, died=self._zygote_died, returned=self._zygote_returned)
        self._pool = Pool(
            spares=spares,
            max_children=max_children,
            max_children_per_project=max_children_per_project,
            queue_ms=queue_ms,
            spare_shape=None if kind.is_sized else (),
            cores=(cores or len(os.sched_getaffinity(0))) if kind.takes_ahead else None,
        )
        self._links: dict[Child, ChildLink] = {}
        self._quarantined: dict[Key, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._crashes = 0
        self._checks = 0
        self._ticks = 0
        self._ticking: asyncio.TimerHandle | None = None
        self._waking: asyncio.TimerHandle | None = None
        self._emptied = asyncio.Event()
        self._closing = False
        self._loop: asyncio.AbstractEventLoop

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._pool!r} restarts={self._keeper.restarts}>"

    async def start(self) -> None:
        """Launch the zygote, prove the jail, fork the spares. Raises ZygoteError or JailLeaks."""
        self._loop = asyncio.get_running_loop()
        await self._keeper.start()
        self._do(self._pool.wake(now_ms()))
        self._tick()

    async def invoke(self, program: Program, invocation: Invocation, limits: Limits, host: Host) -> Result:
        """See the contract. Raises ValueError when input and context, or the code, have over MAX_INPUT_BYTES."""
        if len(invocation.input) + len(invocation.context) > MAX_INPUT_BYTES:
            raise ValueError(f"input and context have more than {MAX_INPUT_BYTES} bytes")
        now = now_ms()
        key = (
            program.project_id,
            program.function_id,
            program.version,
            program.isolation,
            limits.memory_bytes,
            limits.log_bytes,
            limits.result_bytes,
        )
        run = Run(key, program, invocation, limits, host, now, self._loop.create_future(), self._shape(limits))
        return await self._result(run, now)

    async def check(self, program: Program, limits: Limits) -> Result:
        self._checks += 1
        now = now_ms()
        key = (program.project_id, program.function_id, program.version, "check", self._checks)
        run = Run(key, program, None, limits, None, now, self._loop.create_future(), self._shape(limits))
        return await self._result(run, now)

    def retire(self, project_id: str, function_id: str | None = None) -> None:
        self._do(self._pool.retire(project_id, function_id))

    async def close(self) -> None:
        self._closing = True
        if self._ticking is None:  # never started
            return
        for timer in (self._ticking, self._waking):
            if timer is not None:
                timer.cancel()
        self._do(self._pool.close())
        while self._pool.children:
            self._emptied.clear()
            await self._emptied.wait()
        for task in list(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._keeper.close()

    def report(self) -> dict[str, object]:
        return {
            "module": self._keeper.module,
            "layers": dict(self._keeper.zygote.layers),
            "children": self._pool.counts(),
            "zygote_restarts": self._keeper.restarts,
            "crashes": self._crashes,
            "quarantined": len(self._quarantined),
        }

    def pids(self) -> list[int]:
        """Of the live children, as this process sees them, for /proc."""
        return [link.worker.pid for link in self._links.values()]

    # One run

    def _shape(self, limits: Limits) -> Shape:
        return (limits.memory_bytes,) if self._kind.is_sized else ()

    async def _result(self, run: Run, now: float) -> Result:
        if self._closing:
            raise RuntimeError("the engine is closed")
        if len(run.program.code) > MAX_INPUT_BYTES:
            raise ValueError(f"the code has more than {MAX_INPUT_BYTES} bytes")
        if self._quarantined and self._quarantined.get(run.program.key, 0.0) > now:
            error = ScriptError(name="Quarantined", message="This version attacked its sandbox a moment ago")
            return run.stopped(Outcome.CRASHED, now, error=error)
        self._submit(run, now)
        try:
            result = await run.future
        except asyncio.CancelledError:
            await self._abandon(run)
            raise
        if len(result.value) > LARGE_BYTES and not await is_json(result.value):
            return replace(result, outcome=Outcome.EXCEPTION, value=b"null", error=NO_JSON)
        return result

    def _submit(self, run: Run, now: float) -> None:
        self._do(self._pool.submit(run, now))
        if run.waiting:
            self._wake_soon()

    async def _abandon(self, run: Run) -> None:
        """The caller went away: end the run, and come back when it has ended."""
        if run.settled:
            return
        run.future = self._loop.create_future()
        link = next((link for link in self._links.values() if link.run is run), None)
        if link is None:
            run.verdict = Outcome.CANCELLED
            self._pool.give_up(run)
            return
        link.stop(Outcome.CANCELLED)
        while not run.future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(run.future)

    # What the pool wants done

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Start(child, Run() as run):
                    self._links[child].start(run)
                case Send(child, Run() as run):
                    self._links[child].send_ahead(run)
                case Proceed(child, Run() as run):
                    self._links[child].proceed(run)
                case Bind(child, Run() as run):
                    self._links[child].bind(run)
                case Spawn(child):
                    self._in_background(self._fork(child))
                case Kill(child, why):
                    log.debug("Ending %r: %s", child, why)
                    self._links[child].worker.kill()
                case Reject(Run() as run):
                    run.end(self._refusal(run))

    def _refusal(self, run: Run) -> Result:
        if self._closing:
            error = ScriptError(name="SandboxCrashed", message="The engine is closing")
            return run.stopped(Outcome.CRASHED, now_ms(), error=error)
        return run.refused(now_ms(), self._pool.queue.queue_ms)

    async def _fork(self, child: Child) -> None:
        try:
            ours, theirs = socket.socketpair()
        except OSError as why:
            return self._barren(child, why)
        zygote = self._keeper.zygote
        try:
            async with asyncio.timeout(SPAWN_TIMEOUT_S):
                worker = await zygote.spawn(theirs, memory_bytes=sum(child.shape))
        except TimeoutError as why:
            ours.close()
            self._in_background(zygote.close())  # its keeper launches another
            return self._barren(child, why)
        except (SpawnFailed, ZygoteError) as why:
            ours.close()
            return self._barren(child, why)
        link = ChildLink(child, worker, self, self._kind)
        self._links[child] = link
        await self._loop.create_unix_connection(lambda: link, sock=ours)
        if child.state is State.FORKING:  # and has not died meanwhile
            self._do(self._pool.forked(child, now_ms()))
        if self._closing:
            self._do(self._pool.close())
        return None

    def _barren(self, child: Child, why: Exception) -> None:
        log.warning("No sandbox: %r", why, extra={"action": "spawn_failed"})
        self._do(self._pool.fork_failed(child, now_ms()))
        self._emptied.set()

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._background_ended)

    def _background_ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()):
            log.error("A fault in the supervisor", exc_info=fault, extra={"action": "supervisor_fault"})

    # What happens to children

    def loaded(self, link: ChildLink) -> None:
        self._do(self._pool.loaded(link.child, now_ms()))

    def released(self, link: ChildLink) -> None:
        actions = self._pool.released(link.child, now_ms())
        if actions:
            self._do(actions)

    def doomed(self, link: ChildLink, why: str) -> None:
        self._do([self._pool.kill(link.child, why)])
        if self._pool.queue:
            self._wake_soon()

    def again(self, run: Run) -> None:
        if self._closing:
            run.end(self._refusal(run))
        else:
            self._submit(run, now_ms())

    def suspicious(self, link: ChildLink, what: str) -> None:
        child = link.child
        log.error("A sandbox attacks: %s, %r", what, child, extra={"action": "sandbox_attack"})
        if child.key is not None:
            self._quarantined[child.key[:3]] = now_ms() + QUARANTINE_MS

    def reaped(self, link: ChildLink, exit_: Exit) -> None:
        child = link.child
        del self._links[child]
        if exit_.signal is signal.SIGSYS:
            self.suspicious(link, "forbidden system call")
        if link.hung_up:
            self._crashes += 1
            said = self._keeper.zygote.stderr()[:STDERR_CHARS] if not self._keeper.zygote.died.done() else ""
            log.error("A sandbox died: %r %r %s", child, exit_, said, extra={"action": "sandbox_died"})
        stillborn = link.hung_up and child.key is None
        self._do((self._pool.fork_failed if stillborn else self._pool.reaped)(child, now_ms()))
        self._emptied.set()

    # Time

    def _wake_soon(self) -> None:
        """Somebody waits."""
        if self._waking is None and not self._closing:
            self._waking = self._loop.call_later(PATIENCE_MS / 1000, self._wake)

    def _wake(self) -> None:
        self._waking = None
        self._do(self._pool.wake(now_ms()))
        if self._pool.queue:
            self._wake_soon()

    def _tick(self) -> None:
        """Weigh those that may have grown, and see to what is due now and then."""
        self._ticking = self._loop.call_later(TICK_S, self._tick)
        self._ticks += 1
        sweep = self._ticks % TICKS_A_SWEEP == 0
        for link in list(self._links.values()):
            if not self._kind.keeps_cpu_limit:
                link.look_at_clock()
            if link.child.state in BUSY or (sweep and link.calls_when_weighed != link.child.calls):
                self._weigh(link)
        now = now_ms()
        if sweep:
            self._quarantined = {key: until for key, until in self._quarantined.items() if until > now}
        self._do(self._pool.wake(now))

    def _weigh(self, link: ChildLink) -> None:
        link.calls_when_weighed = link.child.calls
        match weigh(link.worker.pid, link.memory_bytes, self._kind.base_bytes):
            case Weight.FAR_OVER:
                link.condemn(Outcome.MEMORY_LIMIT, "resident memory")
            case Weight.GROWN:
                link.child.worn = "grown"
                if link.child.state is State.IDLE:
                    self.doomed(link, "grown")

    def _zygote_died(self) -> None:
        self._pool.can_spawn = False
        for link in list(self._links.values()):
            if link.child.state in (State.BLANK, State.IDLE):  # dying, too: nobody shall start on them
                self.doomed(link, "zygote died")

    def _zygote_returned(self) -> None:
        self._pool.can_spawn = True
        self._do(self._pool.wake(now_ms()))
