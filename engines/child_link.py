"""The supervisor's end of one child: a state machine over one stream socket.

It binds, starts and stops runs, answers host calls, and keeps the wall clock. The child is hostile: the first frame
that breaks a rule is its last. A run ends in one of two ways only: the child has answered and is idle, or it is reaped.
"""

import asyncio
import math
import time
from functools import partial
from typing import Final, Protocol, cast

from engines import host_calls, messages, post_mortem
from engines.children import Child, State
from engines.contract import Outcome
from engines.cpu_clock import cpu_ms
from engines.frames import MAX_CALLS_IN_FLIGHT, Frame, FrameError, Reader
from engines.kind import Kind
from engines.messages import Failed, HostCalls, Ready, Returned
from engines.run import LOAD_CPU_MS, Run
from engines.zygote import Exit, Worker

GRACE_MS: Final = 50
"""From the verdict to SIGKILL: time for the engine's own interrupt, or for the answer to CANCEL, which keep it warm."""

_STOPPED: Final = frozenset({Outcome.CANCELLED, Outcome.WALL_LIMIT, Outcome.CPU_LIMIT})
"""Ends that leave a realm in the middle of what it did."""

_IDLE_CPU_MS: Final = 300.0
"""What a child may use between two runs: its collector's work, and none of what a run has left behind."""

QUICK_CPU_US: Final = 5_000
"""A run that used less was quick, however long the machine let it wait."""

_HARD_CPU_MS: Final = 1_800_000.0  # half of RLIMIT_CPU: recycled long before the kernel would end it in mid-run


class Owner(Protocol):
    """Who is told what happens to a child."""

    def loaded(self, link: "ChildLink") -> None: ...
    def released(self, link: "ChildLink") -> None: ...
    def doomed(self, link: "ChildLink", why: str) -> None: ...
    def reaped(self, link: "ChildLink", exit_: Exit) -> None: ...
    def again(self, run: Run) -> None: ...
    def suspicious(self, link: "ChildLink", what: str) -> None: ...


def now_ms() -> float:
    return time.monotonic() * 1000


class ChildLink(asyncio.Protocol):
    """Made when the worker is forked; `connection_made` completes it."""

    def __init__(self, child: Child, worker: Worker, owner: Owner, kind: Kind) -> None:
        self.child = child
        self.worker = worker
        self.run: Run | None = None
        self.cpu_ms = 0.0  # of all its runs
        self.memory_bytes = 0  # its limit, from `bind` on
        self.calls_when_weighed = 0
        self._owner = owner
        self._kind = kind
        self._cpu_before_ms = 0.0  # its process's, when the run was bound or started
        self._reader = Reader()
        self._inv = 0  # the run that it is at
        self._sent = 0  # the last one that it was sent
        self._deadline_ms = 0.0  # 0: none
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms = 0.0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._connected = True
        self._ended = False
        self.hung_up = False  # it ended of itself
        worker.exited.add_done_callback(self._on_exit)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send = self._transport.write

    # What the pool wants

    def bind(self, run: Run) -> None:
        """Load the run's program; the run starts when it is loaded."""
        now, limits = now_ms(), run.limits
        self.run = run
        self.memory_bytes = limits.memory_bytes
        forked_ms = max(0.0, min(now, self.child.ready_ms) - max(run.queued_ms, self.child.born_ms))
        run.queue_ms = now - run.queued_ms - forked_ms
        self._start_clock()
        self._arm(now + limits.wall_ms)
        self._send(messages.bind(run.program, limits))

    def start(self, run: Run) -> None:
        """Run it, on a child that has its program loaded."""
        self._begin(run)
        self.send_ahead(run)

    def send_ahead(self, run: Run) -> None:
        """To begin when the runs sent before it have ended; `proceed` says when."""
        assert run.invocation is not None
        self._sent += 1
        self._send(messages.invoke(self._sent, run.invocation, run.limits))

    def proceed(self, run: Run) -> None:
        """It was sent before; its time counts from now."""
        self._begin(run)
        if run.given_up:
            self._drain()

    def _begin(self, run: Run) -> None:
        now = now_ms()
        self.run = run
        self._inv += 1
        run.started_ms = now
        if not run.boot_ms:
            run.queue_ms = now - run.queued_ms
        self._start_clock()
        self._arm(now + run.limits.wall_ms)

    def stop(self, verdict: Outcome) -> None:
        """End the run. A child that waits for the host is asked and has GRACE_MS; one that computes is killed at once.

        At the wall clock both have that grace: the engine's own CPU limit may be about to act.
        """
        run = self.run
        assert run is not None
        if run.verdict is not None or self.child.state is State.KILLED:
            return
        run.verdict = verdict
        if run.calls or verdict is Outcome.WALL_LIMIT:
            self._drain()
        else:
            self._owner.doomed(self, verdict)

    def _drain(self) -> None:
        self.child.state = State.DRAINING
        self._send(messages.cancel(self._inv))
        self._arm(now_ms() + GRACE_MS)

    def condemn(self, verdict: Outcome, why: str) -> None:
        """End the run, if there is one, and the child with it."""
        if self.run is not None and self.run.verdict is None:
            self.run.verdict = verdict
        if self.child.state is not State.KILLED:
            self._owner.doomed(self, why)

    # What the child says

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                if self.child.state is State.KILLED:
                    return
                self._receive(frame)
        except FrameError as what:
            self._owner.suspicious(self, str(what))
            self.condemn(Outcome.CRASHED, "forged frame")

    def _receive(self, frame: Frame) -> None:
        run = self.run
        if run is None:
            raise FrameError("spoke out of turn")
        loading = not run.started_ms
        if frame[1] != (0 if loading else self._inv):
            raise FrameError(f"spoke of invocation {frame[1]}, not {self._inv}")
        event = messages.parse(frame)
        if isinstance(event, Returned | Failed) and not self._kind.may_say(event, run.limits):
            raise FrameError("fuel, stack or time that is not its own to count")
        match event:
            case Returned() if not loading:
                result = run.returned(event, now_ms())
            case Failed() if event.outcome is not Outcome.CANCELLED or run.verdict is not None:
                result = run.failed(event, now_ms())
            case HostCalls() if not loading:
                return self._host_calls(run, event)
            case Ready() if loading:
                return self._ready(run)
            case _:
                raise FrameError(f"{type(event).__name__} at the wrong time")
        self.cpu_ms += event.meta.cpu_us / 1000
        if run.verdict is not None:
            result = run.stopped(
                run.verdict,
                now_ms(),
                cpu_ms=result.metrics.cpu_ms,
                memory_bytes=result.metrics.memory_bytes,
                meta=event.meta,
            )
        if loading:
            run.result = result
            return self._owner.doomed(self, "not loaded")
        self._deadline_ms = 0.0
        self.run = None
        self.child.was_quick = not run.host_calls and event.meta.cpu_us < QUICK_CPU_US
        if worn := self._worn_by(run, result.outcome):
            self.child.worn = worn
        self._start_clock()
        run.end(result)
        self._owner.released(self)
        return None

    def _worn_by(self, run: Run, outcome: Outcome) -> str:
        """Why the child is not to be used again; "" if it may be."""
        if self.cpu_ms > _HARD_CPU_MS:
            return "cpu"
        if outcome is Outcome.MEMORY_LIMIT:  # its memory stays large and in pieces, and hides the next peak
            return "memory"
        if self._kind.renews_itself:
            return ""
        return outcome if outcome in _STOPPED else "fresh" if run.program.isolation == "fresh" else ""

    def _ready(self, run: Run) -> None:
        now = now_ms()
        run.boot_ms = now - run.queued_ms - run.queue_ms
        if run.invocation is None:
            run.result = run.stopped(run.verdict or Outcome.OK, now)
            self._owner.doomed(self, "checked")
        elif run.verdict is not None:
            self._owner.doomed(self, run.verdict)
        else:
            self.start(run)
            self._owner.loaded(self)

    # Host calls

    def _host_calls(self, run: Run, event: HostCalls) -> None:
        if len(run.calls) + len(event.calls) > MAX_CALLS_IN_FLIGHT:
            raise FrameError(f"more than {MAX_CALLS_IN_FLIGHT} host calls in flight")
        if run.verdict is not None:
            return
        for call, op, args in event.calls:
            if call in run.calls:
                raise FrameError(f"host call {call} twice")
            run.host_calls += 1
            if run.call_bytes + len(args) > host_calls.MAX_CALL_BYTES_IN_FLIGHT:
                self._send(host_calls.too_large(self._inv, call))
                continue
            run.call_bytes += len(args)
            task = self._loop.create_task(self._answer(run, self._inv, call, op, args))
            run.calls[call] = task
            task.add_done_callback(partial(run.call_ended, call, len(args)))
        if run.calls:
            self.child.state = State.WAIT_HOST

    async def _answer(self, run: Run, inv: int, call: int, op: str, args: bytes) -> None:
        frame = await host_calls.answer(run, inv, call, op, args)
        if self.run is not run or run.verdict is not None or self.child.state is State.KILLED:
            return
        if len(run.calls) == 1:
            self.child.state = State.RUNNING
        self._send(frame)
        if self._transport.get_write_buffer_size() > run.limits.memory_bytes:
            self.condemn(Outcome.MEMORY_LIMIT, "does not read")

    # The clock

    def _start_clock(self) -> None:
        if not self._kind.keeps_cpu_limit:
            self._cpu_before_ms = cpu_ms(self.worker.pid)

    def look_at_clock(self) -> None:
        """Of one that does not keep the processor time limit itself: end it if it is over it, or busy when idle."""
        run = self.run
        if run is None:
            allowed_ms = _IDLE_CPU_MS if self.child.state is State.IDLE else math.inf
        elif run.verdict is None:
            allowed_ms = run.limits.cpu_ms if run.started_ms else LOAD_CPU_MS
        else:
            return
        if cpu_ms(self.worker.pid) - self._cpu_before_ms > allowed_ms:
            self.condemn(Outcome.CPU_LIMIT, "processor time")

    def _arm(self, deadline_ms: float) -> None:
        """One timer a child, moved lazily: a run that ends in time costs no timer at all."""
        self._deadline_ms = deadline_ms
        if self._timer is not None:
            if self._timer_ms <= deadline_ms:
                return
            self._timer.cancel()
        self._timer_ms = deadline_ms
        self._timer = self._loop.call_later(max(0.0, deadline_ms - now_ms()) / 1000, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if not self._deadline_ms:
            return
        if now_ms() < self._deadline_ms:
            self._arm(self._deadline_ms)
        elif self.run is not None and self.run.verdict is None and self.run.result is None:
            self.stop(Outcome.WALL_LIMIT)
        elif self.child.state is not State.KILLED:
            self._owner.doomed(self, "wall clock")

    # The end

    def eof_received(self) -> None:
        """The process is gone, or pretends to be."""
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """All it ever said has been read. Its run ends when it is reaped as well."""
        self._connected = False
        if self.child.state is not State.KILLED:
            self.hung_up = True
            self._owner.doomed(self, "hung up")
        self._over()

    def _on_exit(self, exited: "asyncio.Future[Exit]") -> None:
        self._over()

    def _over(self) -> None:
        if self._connected or self._ended or not self.worker.exited.done():
            return
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        exit_ = self.worker.exited.result()
        run, self.run = self.run, None
        self._owner.reaped(self, exit_)
        if run is None:
            return
        if post_mortem.is_blameless(run, exit_, self._kind):
            run.tries += 1
            self._owner.again(run)
        elif run.result is not None:
            run.end(run.result)
        else:
            before_ms = self._cpu_before_ms or self.cpu_ms
            run.end(post_mortem.result(run, exit_, self._kind, cpu_before_ms=before_ms, now_ms=now_ms()))
