"""What the frames of a sandbox child mean, on the supervisor's side: bytes for it, typed events from it.

The child runs hostile code and may have been taken over by it, so `parse` checks every field it returns. Text of the
user's own (errors, logs) is cut to size; everything else that breaks a rule raises FrameError.
"""

import json
from dataclasses import dataclass
from typing import Final, Literal, NoReturn, cast

import orjson

from engines.contract import Invocation, Limits, LogLine, Outcome, Program, Response, ScriptError
from engines.frames import LENGTH, MAX_CALLS_IN_FLIGHT, Frame, FrameError, Type, encode
from engines.json_text import LARGE_BYTES
from engines.told import LEVELS, MAX_HEADERS, MAX_LOG_LINES, MAX_TOLD_BYTES, MOST, is_header, is_status
from engines.value import value

NAME_CHARS: Final = 100
MESSAGE_CHARS: Final = 8 * 1024
STACK_CHARS: Final = 16 * 1024
TOO_DEEP: Final = ScriptError(name="RangeError", message="The result is nested more than 1024 levels deep")
NO_JSON: Final = ScriptError(
    name="RangeError", message="The result is no JSON, or nested more than about 1000 levels deep"
)
"""Of a large value. Which of the two is not worth the time: a forged one reaches nobody but callers of its forger."""

CHILD_OUTCOMES: Final = frozenset(
    {
        Outcome.EXCEPTION,
        Outcome.LOAD_FAILED,
        Outcome.NEVER_SETTLES,
        Outcome.WALL_LIMIT,
        Outcome.CPU_LIMIT,
        Outcome.MEMORY_LIMIT,
        Outcome.FUEL_LIMIT,
        Outcome.STACK_LIMIT,
        Outcome.RESULT_LIMIT,
        Outcome.CANCELLED,
    }
)
"""What a child may say of itself. The rest is for the supervisor to find out."""

_Level = Literal["debug", "info", "log", "warn", "error"]


@dataclass(frozen=True, slots=True)
class Ready:
    memory_bytes: int
    boot_us: float


@dataclass(frozen=True, slots=True)
class HostCalls:
    calls: list[tuple[int, str, bytes]]  # call number, op, args as JSON text


@value()
class Meta:
    wall_us: float
    cpu_us: float
    memory_bytes: int
    logs: tuple[LogLine, ...]
    truncated: bool
    fuel: int | None = None


@value()
class Returned:
    meta: Meta
    value: bytes
    response: Response | None


@dataclass(frozen=True, slots=True)
class Failed:
    meta: Meta
    outcome: Outcome
    error: ScriptError | None
    used: float | None


Event = Ready | HostCalls | Returned | Failed


def bind(program: Program, limits: Limits) -> bytes:
    head = orjson.dumps(
        {
            "memory_bytes": limits.memory_bytes,
            "log_bytes": limits.log_bytes,
            "result_bytes": limits.result_bytes,
            "isolation": program.isolation,
        }
    )
    return encode(Type.BIND, payload=b"".join((LENGTH.pack(len(head)), head, program.code)))


def invoke(inv: int, invocation: Invocation, limits: Limits) -> bytes:
    bounds = (limits.cpu_ms, limits.wall_ms, limits.fuel)
    head = b'{"cpu_ms":%d,"wall_ms":%d,"fuel":%d,"kind":"%s"}' % (*bounds, invocation.input_kind.encode())
    context = invocation.context
    payload = b"".join((LENGTH.pack(len(head)), head, LENGTH.pack(len(context)), context, invocation.input))
    return encode(Type.INVOKE, inv, 0, payload)


def answer(inv: int, call: int, value: bytes) -> bytes:
    return encode(Type.HOSTRES, inv, call, b"\x01" + value)


def refusal(inv: int, call: int, code: str, message: str) -> bytes:
    return encode(
        Type.HOSTRES,
        inv,
        call,
        b"\x00" + orjson.dumps({"code": code, "message": _well_formed(message[:MESSAGE_CHARS])}),
    )


def cancel(inv: int) -> bytes:
    return encode(Type.CANCEL, inv)


def parse(frame: Frame) -> Event:
    """The event in a frame of a child. Raises FrameError when any rule of the table in engines/frames.py is broken."""
    try:
        return _parse(frame)
    except RecursionError as why:
        raise FrameError("JSON nested too deeply") from why


def _parse(frame: Frame) -> Event:
    kind, _, call, payload = frame
    if call:
        raise FrameError("a call number where none belongs")
    match kind:
        case Type.RESULT:
            return _returned(payload)
        case Type.HOSTCALL:
            return _host_calls(_json(payload))
        case Type.ERROR:
            return _failed(_told(payload))
        case Type.READY:
            told = _told(payload)
            return Ready(int(_number(told, "memory_bytes")), _number(told, "boot_us"))
    raise FrameError(f"{kind.name} from a child")


def _returned(payload: bytes) -> Returned | Failed:
    """A value above LARGE_BYTES is left to the supervisor: judging it takes too long here, see engines.json_text."""
    if len(payload) < LENGTH.size:
        raise FrameError("RESULT without a length")
    (length,) = LENGTH.unpack_from(payload)
    start = LENGTH.size + length
    if start > len(payload):
        raise FrameError("RESULT shorter than its length")
    told = _told(payload[LENGTH.size : start])
    meta, body = _meta(told), payload[start:]
    kind = told.get("kind")
    if kind == "json" and len(body) > LARGE_BYTES:
        return Returned(meta, body, None)
    if kind == "json":
        try:
            _json(body)
        except RecursionError:
            return Failed(meta, Outcome.EXCEPTION, TOO_DEEP, None)
        return Returned(meta, body, None)
    if kind == "response":
        return Returned(meta, b"null", _response(told, body))
    raise FrameError("RESULT of an unknown kind")


def _response(told: dict[str, object], body: bytes) -> Response:
    status, pairs = told.get("status"), told.get("headers")
    if not is_status(status):
        raise FrameError("a status outside 200..599")
    if not isinstance(pairs, list) or len(pairs) > MAX_HEADERS:
        raise FrameError("headers that are no array, or too many")
    return Response(status=cast(int, status), headers=tuple(_header(pair) for pair in pairs), body=body)


def _header(pair: object) -> tuple[str, str]:
    match pair:
        case [str(name), str(value)] if is_header(name, value):
            return name, value
    raise FrameError("a malformed header")


def _failed(told: dict[str, object]) -> Failed:
    try:
        outcome = Outcome(cast(str, told.get("outcome")))
    except ValueError as why:
        raise FrameError("an unknown outcome") from why
    if outcome not in CHILD_OUTCOMES:
        raise FrameError(f"a child that says {outcome}")
    error = told.get("error")
    return Failed(
        meta=_meta(told),
        outcome=outcome,
        error=None if error is None else _script_error(_object(error)),
        used=_number(told, "used") if "used" in told else None,
    )


def _script_error(told: dict[str, object]) -> ScriptError:
    code = told.get("code")
    return ScriptError(
        name=_text(told.get("name"), NAME_CHARS),
        message=_text(told.get("message"), MESSAGE_CHARS),
        stack=_text(told.get("stack", ""), STACK_CHARS),
        code=None if code is None else _text(code, NAME_CHARS),
    )


def _host_calls(told: object) -> HostCalls:
    if not isinstance(told, list) or not 0 < len(told) <= MAX_CALLS_IN_FLIGHT:
        raise FrameError("HOSTCALL without calls, or with too many")
    calls = []
    for item in told:
        match item:
            case [int(call), str(op), str(args)] if 0 <= call < 2**32 and len(op) <= NAME_CHARS:
                calls.append((call, _well_formed(op), args.encode("utf-8", "replace")))
            case _:
                raise FrameError("a malformed host call")
    return HostCalls(calls)


_NO_LOGS: Final[tuple[LogLine, ...]] = ()


def _meta(told: dict[str, object]) -> Meta:
    lines = told.get("logs")
    if not isinstance(lines, list) or len(lines) > MAX_LOG_LINES:
        raise FrameError("logs that are no array, or too many")
    return Meta(
        _number(told, "wall_us"),
        _number(told, "cpu_us"),
        int(_number(told, "memory_bytes")),
        tuple(map(_log_line, lines)) if lines else _NO_LOGS,
        told.get("truncated") is True,
        int(_number(told, "fuel")) if "fuel" in told else None,
    )


def _log_line(line: object) -> LogLine:
    match line:
        case [str(level), str(text), int(at_us) | float(at_us)] if level in LEVELS and 0 <= at_us <= MOST:
            kept = cast(_Level, level)
            return LogLine(level=kept, text=_well_formed(text), at_ms=at_us / 1000)
    raise FrameError("a malformed log line")


def _number(told: dict[str, object], name: str) -> float:
    value = told.get(name)
    if (type(value) is int or type(value) is float) and 0 <= value <= MOST:
        return value
    raise FrameError(f"{name} is no number, or out of range")


def _text(value: object, most_chars: int) -> str:
    if not isinstance(value, str):
        raise FrameError("an error field that is no string")
    return _well_formed(value[:most_chars])


def _well_formed(text: str) -> str:
    """The text with lone surrogates, which JavaScript strings may hold and UTF-8 may not, replaced."""
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()


def _told(text: bytes) -> dict[str, object]:
    if len(text) > MAX_TOLD_BYTES:
        raise FrameError(f"{len(text)} bytes where at most {MAX_TOLD_BYTES} are told")
    return _object(_json(text))


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise FrameError("no JSON object")
    return value


def _json(text: bytes) -> object:
    """The value. Raises RecursionError when it is nested too deeply and FrameError for anything else that is wrong.

    orjson is the judge of nearly everything. It refuses escaped lone surrogates, which `JSON.stringify` writes and
    RFC 8259 allows; the standard library takes them.
    """
    try:
        return cast(object, orjson.loads(text))
    except ValueError as why:
        if "depth limit" in str(why):
            raise RecursionError from why
    try:
        return cast(object, json.loads(text.decode(), parse_constant=_no_such_constant))
    except ValueError as why:
        raise FrameError("malformed JSON") from why


def _no_such_constant(name: str) -> NoReturn:
    raise FrameError(f"malformed JSON: {name}")
