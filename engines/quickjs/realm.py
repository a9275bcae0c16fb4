"""One QuickJS context with its prelude: what it is told and what it answers, without any wire.

No Python function is ever put into the context: JavaScript queues what it wants and Python asks. So nothing calls out
of a running script, and the engine's own time limit can interrupt every loop. The limit starts anew at each entry,
hence `CpuBudget`: what is left of the budget is set before each entry that may run user code.
"""

import binascii
import os
from collections.abc import Sequence
from time import perf_counter_ns, process_time_ns

import _quickjs

STACK_BYTES = 256 * 1024
_JOBS_PER_SEGMENT = 256
_SEGMENT_NS = 2_000_000
_SAMPLE_AT_MOST = 50  # memory() may take one part in so many of the time


class OutOfBudget(Exception):
    """The CPU budget is used up."""


class Exhausted(Exception):
    """The memory limit was hit, and the context is of no further use."""


class CpuBudget:
    """CPU time of this process, counted from now, against `limit_ms`."""

    def __init__(self, limit_ms: float) -> None:
        self._start_ns = process_time_ns()
        self.limit_ms = limit_ms

    def used_us(self) -> int:
        return (process_time_ns() - self._start_ns) // 1000

    def left_s(self) -> float:
        """Seconds left; raises OutOfBudget when there are none."""
        left_ns = self.limit_ms * 1_000_000 - (process_time_ns() - self._start_ns)
        if left_ns <= 0:
            raise OutOfBudget
        return left_ns / 1e9


class Realm:
    """A context of its own: globals, heap, timers. Blank until `load`; then good for any number of `start`.

    Every method that may run user code raises OutOfBudget or Exhausted; after either the realm must be dropped.
    """

    def __init__(self, eager: str, units: dict[str, str]) -> None:
        self._context = context = _quickjs.Context()
        context.set_max_stack_size(STACK_BYTES)
        door = context.eval(eager)
        for name, source in units.items():
            door(name, source)
        self._configure, self._load = door("configure"), door("load")
        self._start, self._report, self._settle, self._tick = (
            door("start"),
            door("report"),
            door("settle"),
            door("tick"),
        )
        self._takers = {name: door(f"take{name}") for name in ("Calls", "Digests", "Logs", "Body")}
        self._budget = CpuBudget(float("inf"))
        self._memory_bytes = 0
        self._next_sample_ns = 0

    def load(self, code: str, budget: CpuBudget, *, memory_bytes: int, log_bytes: int, result_bytes: int) -> str | None:
        """Evaluate the module; its syntax error or missing import as text, else None: ask `report` how it went."""
        context = self._context
        self._budget = budget
        context.set_memory_limit(memory_bytes)
        self._call(self._configure, context.parse_json(f'[{log_bytes},{result_bytes},"{_seed()}"]'))
        context.set_time_limit(budget.left_s())
        try:
            context.module(code)
        except _quickjs.JSException as error:
            self._classify(error)
            return str(error)
        except ValueError:
            return "SyntaxError: the module holds a NUL character"
        self._call(self._load)
        return None

    def start(self, kind: str, context_json: str, input_json: str, budget: CpuBudget) -> str:
        """Begin one invocation; its status, as bridge.js tells it."""
        self._budget = budget
        return self._text(self._start, self._parse(f'[{context_json},"{kind}","{_seed()}",{input_json}]'))

    def settle(self, answers: Sequence[str]) -> None:
        """Hand over answers to calls and digests, each the JSON text [call, ok, value]."""
        for answer in answers:
            self._call(self._settle, self._parse(answer))

    def tick(self) -> None:
        self._call(self._tick)

    def report(self) -> str:
        return self._text(self._report)

    def take(self, what: str) -> str:
        """What is queued: Calls, Digests or Logs as JSON text, or the Body of a Response."""
        return self._text(self._takers[what])

    def last_logs(self) -> str:
        """The logs of a realm that ran out of something."""
        self._context.set_memory_limit(-1)
        self._context.set_time_limit(-1)
        try:
            logs = self._takers["Logs"]()
        except (_quickjs.JSException, MemoryError):
            logs = None
        return logs if isinstance(logs, str) else '[],"truncated":true'

    def drain(self) -> bool:
        """Run jobs until none is left; whether there was any."""
        execute, set_time_limit, budget = self._context.execute_pending_job, self._context.set_time_limit, self._budget
        worked = False
        while True:
            set_time_limit(budget.left_s())
            until_ns = perf_counter_ns() + _SEGMENT_NS
            try:
                for _ in range(_JOBS_PER_SEGMENT):
                    if not execute():
                        if worked:
                            budget.left_s()
                        return worked
                    worked = True
                    if perf_counter_ns() > until_ns:
                        break
            except _quickjs.JSException as error:
                self._classify(error)
                raise Exhausted from error

    def memory_bytes(self) -> int:
        """Bytes of the heap. Counting walks the heap, so a recent count may be given again."""
        start_ns = perf_counter_ns()
        if start_ns >= self._next_sample_ns:
            self.count_memory()
            end_ns = perf_counter_ns()
            self._next_sample_ns = end_ns + _SAMPLE_AT_MOST * (end_ns - start_ns)
        return self._memory_bytes

    def count_memory(self) -> int:
        """Bytes of the heap, walked now."""
        self._memory_bytes = self._context.memory()["malloc_size"]
        return self._memory_bytes

    def _parse(self, text: str) -> object:
        try:
            return self._context.parse_json(text)
        except ValueError:  # a NUL character, which JSON cannot hold
            return self._context.parse_json("[]")
        except _quickjs.JSException as error:
            self._classify(error)
            return self._context.parse_json("[]")

    def _call(self, function: "_quickjs.Object", *args: object) -> object:
        self._context.set_time_limit(self._budget.left_s())
        try:
            value = function(*args)
        except (_quickjs.JSException, MemoryError) as error:
            self._classify(error)
            raise Exhausted from error
        return value

    def _text(self, function: "_quickjs.Object", *args: object) -> str:
        text = self._call(function, *args)
        if not isinstance(text, str):  # there was no memory left to make it
            raise Exhausted
        return text

    def _classify(self, error: BaseException) -> None:
        said = str(error)
        if said.startswith("InternalError: interrupted"):
            raise OutOfBudget from error
        self._budget.left_s()
        if isinstance(error, MemoryError) or "out of memory" in said or said.startswith("null"):
            raise Exhausted from error


def _seed() -> str:
    return binascii.b2a_base64(os.urandom(32), newline=False).decode()
