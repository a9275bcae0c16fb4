"""Errors that a caller is meant to see, one class a status.

Every one carries a message for people (what happened, which value, which limit, what to do), a stable `reason` for
programs, and `metadata` that repeats every value of the message. Anything else that is raised is a fault of ours and
reaches the caller as "internal" without its text.

    AtlasError
    ├─ InvalidArgument      400  bad input; `field` names it
    ├─ Unauthenticated      401  no key, or an unknown one
    ├─ PermissionDenied     403  a key that may not do this
    ├─ NotFound             404
    ├─ AlreadyExists        409
    ├─ FailedPrecondition   400  right in itself, but not in the state that things are in
    ├─ Aborted              409  somebody else is at it; try again
    ├─ ResourceExhausted    429  a limit of the run or of the project
    ├─ Unimplemented        501
    ├─ Unavailable          503  try again after `retry_after_ms`
    ├─ DeadlineExceeded     504
    └─ FunctionFailed       500  the user's code threw; nothing of ours is wrong
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

Code = Literal[
    "invalid_argument",
    "unauthenticated",
    "permission_denied",
    "not_found",
    "already_exists",
    "failed_precondition",
    "aborted",
    "resource_exhausted",
    "unimplemented",
    "unavailable",
    "deadline_exceeded",
    "cancelled",
    "unknown",
    "internal",
]


class AtlasError(Exception):
    code: ClassVar[Code] = "internal"

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        metadata: Mapping[str, str] | None = None,
        field: str | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.field = field
        self.retry_after_ms = retry_after_ms


class InvalidArgument(AtlasError):
    """Bad input: `field` is the name the caller used, `message` says value and rule. Nothing was changed."""

    code = "invalid_argument"

    def __init__(self, field: str | None, message: str, *, reason: str = "INVALID_FIELD", **metadata: str) -> None:
        super().__init__(message, reason=reason, field=field, metadata=metadata)


class Unauthenticated(AtlasError):
    code = "unauthenticated"


class PermissionDenied(AtlasError):
    code = "permission_denied"


class NotFound(AtlasError):
    code = "not_found"


class AlreadyExists(AtlasError):
    code = "already_exists"


class FailedPrecondition(AtlasError):
    code = "failed_precondition"


class Aborted(AtlasError):
    code = "aborted"


class ResourceExhausted(AtlasError):
    code = "resource_exhausted"


class Unimplemented(AtlasError):
    code = "unimplemented"


class Unavailable(AtlasError):
    code = "unavailable"


class DeadlineExceeded(AtlasError):
    code = "deadline_exceeded"


class Cancelled(AtlasError):
    code = "cancelled"


class FunctionFailed(AtlasError):
    code = "unknown"


class Internal(AtlasError):
    code = "internal"
