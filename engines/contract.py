"""What every engine promises to whoever runs code with it.

    Program     what to run: code, immutable, named by (project, function, version)
    Limits      what it may use
    Invocation  one call: the input and the context, as JSON text
    Host        what it may ask for while it runs (`atlas.*`), one object an invocation
    Result      how it ended: exactly one Outcome, a value or an error, metrics, logs

What user code does is a value: an `Engine` returns a Result for throws, limits, crashes and refusals alike, and raises
only for faults of its own and for cancellation (the run is killed before CancelledError leaves `invoke`).
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol

from engines.value import value


class Outcome(StrEnum):
    """How an invocation ended. Logs, metrics and RPC status codes are all derived from it."""

    OK = "ok"
    EXCEPTION = "exception"  # the function threw, or its promise was rejected
    LOAD_FAILED = "load_failed"  # the module's top level threw, or it has no default export function
    NEVER_SETTLES = "never_settles"  # the promise is pending and nothing is in flight that could settle it
    WALL_LIMIT = "wall_limit"
    CPU_LIMIT = "cpu_limit"
    MEMORY_LIMIT = "memory_limit"
    FETCH_LIMIT = "fetch_limit"
    FUEL_LIMIT = "fuel_limit"
    STACK_LIMIT = "stack_limit"  # recursion that the engine could not turn into an exception; Wasm only
    RESULT_LIMIT = "result_limit"  # the result is larger than `Limits.result_bytes`
    CRASHED = "crashed"  # the sandbox process died under it
    CANCELLED = "cancelled"  # the caller went away
    OVERLOADED = "overloaded"  # never started: no sandbox was free before the queue deadline


Isolation = Literal["warm", "fresh"]
BodyKind = Literal["json", "text", "bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Code as an engine loads it. Two programs with the same key are the same code, for ever."""

    project_id: str
    function_id: str
    version: int
    code: bytes  # one UTF-8 script made by engines.build; Wasm: a module, checked when it was deployed
    script: bytes = b""  # Wasm made from a script: that script, from which another engine build makes its own module
    isolation: Isolation = "warm"  # Wasm: always a new instance

    @property
    def key(self) -> tuple[str, str, int]:
        return (self.project_id, self.function_id, self.version)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one invocation may use. All are hard: passing one ends the run with its own Outcome."""

    wall_ms: int
    cpu_ms: int
    memory_bytes: int
    fetch_calls: int  # counted by the Host, which raises HostError("fetch_limit") past it
    fuel: int = 0  # Wasm only
    result_bytes: int = 5 * 1024 * 1024  # the result as JSON text, or a Response's body
    log_bytes: int = 64 * 1024  # kept; what comes later is dropped and `Result.logs_truncated` set


@value(kw_only=True)
class Invocation:
    """One call of the program's default export: `fn(input, ctx)`."""

    id: str
    input: bytes  # kind json: JSON text; text: UTF-8; bytes: anything (a Uint8Array in JavaScript)
    input_kind: BodyKind = "json"
    context: bytes = field(default=b"{}", repr=False)  # JSON text of `ctx`, secrets included


class HostError(Exception):
    """A host call failed in a way the function may know: it becomes a JavaScript Error with `message` and `code`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Host(Protocol):
    """The capabilities of one invocation. It belongs to one project and counts what that invocation uses."""

    async def call(self, op: str, args: bytes) -> bytes:
        """Run one host call, e.g. op `db.query`, args a JSON array as text; answer JSON text.

        Calls of one invocation run concurrently. Raises HostError for what the function may know; any other exception
        is our own fault and reaches the function only as HostError("internal", …) without details. Cancelled when the
        run ends first. `op` and `args` are hostile: check everything.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptError:
    """What was thrown, as the engine saw it. Every field is the user's text, cut to a sane length."""

    name: str
    message: str
    stack: str = ""
    code: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitHit:
    """Which limit ended the run, what was used of it and what was allowed, both in `unit`."""

    limit: Literal["wall_clock", "cpu", "memory", "fetch_calls", "fuel", "stack", "result_size", "queue"]
    used: float
    allowed: float
    unit: Literal["ms", "bytes", "calls", "units"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A WHATWG Response that the function returned."""

    status: int  # 200..599
    headers: tuple[tuple[str, str], ...]  # names in lower case
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    level: Literal["debug", "info", "log", "warn", "error"]
    text: str
    at_ms: float  # since the run started


@value(kw_only=True)
class Metrics:
    wall_ms: float = 0.0  # start of the run in the sandbox to its result, host calls included
    cpu_ms: float = 0.0
    memory_bytes: int = 0  # engine heap after the run; sampled, so it may be of an earlier run of the same context
    queue_ms: float = 0.0  # waited for a free sandbox
    boot_ms: float = 0.0  # spent making or binding one; 0 when it was warm
    host_calls: int = 0
    fuel_consumed: int | None = None


@value(kw_only=True)
class Result:
    outcome: Outcome
    value: bytes = b"null"  # JSON text of what was returned, when outcome is OK and there is no response
    response: Response | None = None
    error: ScriptError | None = None  # for EXCEPTION, LOAD_FAILED, NEVER_SETTLES, and limits that surfaced as a throw
    limit: LimitHit | None = None  # for every *_LIMIT outcome and OVERLOADED
    metrics: Metrics = field(default_factory=Metrics)
    logs: tuple[LogLine, ...] = ()
    logs_truncated: bool = False


class Engine(Protocol):
    """Runs programs of one runtime. Safe for any number of concurrent `invoke` calls on one event loop."""

    async def start(self) -> None:
        """Ready to serve, or an exception that says what is missing. Call from the main thread."""
        ...

    async def invoke(self, program: Program, invocation: Invocation, limits: Limits, host: Host) -> Result:
        """Run once. Returns only when the run can no longer have an effect; cancelling kills the run first."""
        ...

    async def check(self, program: Program, limits: Limits) -> Result:
        """Load the program in a sandbox of its own without calling it: OK, LOAD_FAILED or a limit. For deploys."""
        ...

    def retire(self, project_id: str, function_id: str | None = None) -> None:
        """What is kept warm of the function, or of the whole project, is of no more use; what runs goes on."""
        ...

    async def close(self) -> None:
        """End every sandbox and wait until the last process is reaped. Running invocations end as CRASHED."""
        ...

    def report(self) -> dict[str, object]:
        """The isolation layers in force and the state of the pool, for logs and health; JSON-able."""
        ...
