"""The record of one run, and its form on the wire: a JSON object with the names below.

    Run ──finished(run, result)──▶ RunRecord ──encode──▶ bytes ──decode──▶ RunRecord

Texts come from user code: lone surrogates, which JSON in UTF-8 cannot hold, become question marks.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal
from uuid import UUID

import orjson

from engines.contract import LogLine, Metrics, Outcome, Result
from engines.value import value
from server.fields import well_formed

State = Literal["queued", "running", "finished"]

MAX_BYTES: Final = 768 * 1024
"""Of an encoded record. 64 KiB of console text are at most six times that as JSON, and a line takes 40 bytes."""

MAX_TEXT_CHARS: Final = 8_000
"""Of any text of a record that is cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunError:
    """Stable `reason` as in google.rpc.ErrorInfo; places of `stack` are of the deployed source."""

    reason: str
    message: str
    stack: str = ""


@value(kw_only=True)
class Run:
    """What is known of a run when it starts. `trigger` is `http`, `grpc`, `async` or the UUID of a trigger."""

    id: str
    project_id: str
    function_id: str
    slug: str
    version: int  # 0 of a run that has not started
    runtime: str
    trigger: str
    created_at: datetime  # when it was accepted, in UTC
    request_id: str = ""
    trace_id: str = ""


@value(kw_only=True)
class RunRecord:
    """A run and how it ended, or that it has not: then `outcome` is empty and the rest as it is by default."""

    run: Run
    state: State = "finished"
    outcome: str = ""
    error: RunError | None = None
    metrics: Metrics = field(default_factory=Metrics)
    finished_at: datetime | None = None
    logs: tuple[LogLine, ...] = ()
    logs_truncated: bool = False


def finished(run: Run, result: Result, error: RunError | None = None, *, at: datetime) -> RunRecord:
    """The record of a run that ended in `result`; `error` is what its caller was told."""
    return RunRecord(
        run=run,
        outcome=result.outcome.value,
        error=error,
        metrics=result.metrics,
        finished_at=at,
        logs=result.logs,
        logs_truncated=result.logs_truncated,
    )


def cancelled(run: Run, *, at: datetime) -> RunRecord:
    """The record of a run that somebody ended."""
    error = RunError(reason="CANCELLED", message="The run was cancelled")
    return RunRecord(run=run, outcome=Outcome.CANCELLED.value, error=error, finished_at=at)


def encode(record: RunRecord) -> bytes:
    """At most MAX_BYTES of JSON in UTF-8: of one that is larger, texts are cut and console lines left out."""
    try:
        encoded = orjson.dumps(record)
    except orjson.JSONEncodeError:
        record = _well_formed(record)
        encoded = orjson.dumps(record)
    return encoded if len(encoded) <= MAX_BYTES else orjson.dumps(_cut(_well_formed(record)))


def storable(record: RunRecord) -> RunRecord:
    """The record as its readers will see it: what `encode` changes is changed."""
    return decode(orjson.loads(encode(record)))


def decode(value: object) -> RunRecord:
    """The record of an object that `orjson.loads` made. ValueError when it is none; nothing in it is trusted."""
    try:
        return _record(value)
    except (TypeError, KeyError, AttributeError, OverflowError) as why:
        raise ValueError(f"not the record of a run: {why!r}") from None


def batch(records: Iterable[bytes]) -> bytes:
    """One message of encoded records."""
    return b"[" + b",".join(records) + b"]"


def decode_batch(data: bytes) -> list[RunRecord]:
    """ValueError for anything that `batch` does not make."""
    values = orjson.loads(data)
    if not isinstance(values, list):
        raise ValueError("not a list of records")
    return [decode(value) for value in values]


def _record(value: Any) -> RunRecord:
    run, error = value["run"], value["error"]
    if value["state"] not in ("queued", "running", "finished"):
        raise ValueError(f"no state of a run: {value['state']!r}")
    if value["outcome"]:
        Outcome(value["outcome"])
    return RunRecord(
        run=Run(
            id=str(UUID(run["id"])),
            project_id=str(UUID(run["project_id"])),
            function_id=str(UUID(run["function_id"])),
            version=_whole(run["version"]),
            created_at=_moment(run["created_at"]),
            **{name: _text(run[name]) for name in ("slug", "runtime", "trigger", "request_id", "trace_id")},
        ),
        state=value["state"],
        outcome=value["outcome"],
        error=None if error is None else RunError(**{name: _text(error[name]) for name in error}),
        metrics=metrics_of(value["metrics"]),
        finished_at=None if value["finished_at"] is None else _moment(value["finished_at"]),
        logs=tuple(log_lines(value["logs"])),
        logs_truncated=value["logs_truncated"] is True,
    )


def log_lines(values: Iterable[Any]) -> Iterable[LogLine]:
    """Console lines of their JSON objects."""
    return (LogLine(level=line["level"], text=_text(line["text"]), at_ms=float(line["at_ms"])) for line in values)


def metrics_of(value: Any) -> Metrics:
    fuel = value["fuel_consumed"]
    return Metrics(
        wall_ms=float(value["wall_ms"]),
        cpu_ms=float(value["cpu_ms"]),
        memory_bytes=_whole(value["memory_bytes"]),
        queue_ms=float(value["queue_ms"]),
        boot_ms=float(value["boot_ms"]),
        host_calls=_whole(value["host_calls"]),
        fuel_consumed=None if fuel is None else _whole(fuel),
    )


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"not a whole number: {value!r}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"not a text: {value!r}")
    return value


def _moment(value: str) -> datetime:
    return datetime.fromisoformat(value).astimezone(UTC)


def _well_formed(record: RunRecord) -> RunRecord:
    logs = tuple(replace(line, text=well_formed(line.text)) for line in record.logs)
    return replace(_with_texts(record, well_formed), logs=logs)


def _cut(record: RunRecord) -> RunRecord:
    """Small for certain: of the console nothing, of every other text its beginning."""
    small = _with_texts(record, lambda text: text[:MAX_TEXT_CHARS])
    return replace(small, logs=(), logs_truncated=record.logs_truncated or bool(record.logs))


def _with_texts(record: RunRecord, change: Callable[[str], str]) -> RunRecord:
    """The record with every text that comes from outside changed."""
    run, error = record.run, record.error
    run = replace(
        run,
        slug=change(run.slug),
        trigger=change(run.trigger),
        request_id=change(run.request_id),
        trace_id=change(run.trace_id),
    )
    if error is not None:
        error = replace(error, message=change(error.message), stack=change(error.stack))
    return replace(record, run=run, error=error)
