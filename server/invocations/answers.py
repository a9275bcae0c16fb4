"""What a run answered, as it is stored for who asks later: a line of JSON, then the bytes of the value or the body.

Text in the line may be anything a function said, lone surrogates included.
"""

import json
from dataclasses import asdict
from typing import Any, Final

from engines.contract import Outcome, Response, Result
from server import errors
from server.errors import AtlasError, InvalidArgument
from server.invocations.invoke import Finished
from server.runs.record import metrics_of

_ERRORS: Final[dict[str, type[AtlasError]]] = {
    error.__name__: error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, AtlasError)
}


Answer = Finished | AtlasError


def pack(answer: Answer) -> bytes:
    """Console lines are left out: they are in the run's record."""
    if isinstance(answer, AtlasError):
        head: dict[str, Any] = {
            "error": type(answer).__name__,
            "message": answer.message,
            "reason": answer.reason,
            "metadata": answer.metadata,
            "field": answer.field,
            "retry_after_ms": answer.retry_after_ms,
        }
        return _joined(head, b"")
    result = answer.result
    head = {"run_id": answer.run_id, "metrics": asdict(result.metrics)}
    if result.response is None:
        return _joined(head, result.value)
    return _joined(head | {"status": result.response.status, "headers": result.response.headers}, result.response.body)


def unpack(packed: bytes) -> Answer:
    """What `pack` was given. Only for bytes that `pack` made."""
    line, _, body = packed.partition(b"\n")
    head = json.loads(line)
    if "error" in head:
        return _error(head)
    metrics = metrics_of(head["metrics"])
    if "status" not in head:
        return Finished(head["run_id"], Result(outcome=Outcome.OK, value=body, metrics=metrics))
    headers = tuple((name, value) for name, value in head["headers"])
    response = Response(status=head["status"], headers=headers, body=body)
    return Finished(head["run_id"], Result(outcome=Outcome.OK, response=response, metrics=metrics))


def _error(head: dict[str, Any]) -> AtlasError:
    kind = _ERRORS[head["error"]]
    if issubclass(kind, InvalidArgument):
        return kind(head["field"], head["message"], reason=head["reason"], **head["metadata"])
    error = kind(head["message"], reason=head["reason"], metadata=head["metadata"], field=head["field"])
    error.retry_after_ms = head["retry_after_ms"]
    return error


def _joined(head: dict[str, Any], body: bytes) -> bytes:
    return json.dumps(head).encode() + b"\n" + body
