"""AtlasError to gRPC status with google.rpc details. Envoy turns the same details into the REST error envelope."""

from typing import Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from server.errors import AtlasError, Code, InvalidArgument

DOMAIN: Final = "functions.atlas"
DETAILS_KEY: Final = "grpc-status-details-bin"

# Trailers of one answer must fit into 8 KiB, percent-encoded message and base64 details together.
MAX_MESSAGE_CHARS: Final = 1000
MAX_METADATA_CHARS: Final = 2000
MAX_FIELD_CHARS: Final = 200

STATUS: Final[dict[Code, grpc.StatusCode]] = {
    "invalid_argument": grpc.StatusCode.INVALID_ARGUMENT,
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "permission_denied": grpc.StatusCode.PERMISSION_DENIED,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "already_exists": grpc.StatusCode.ALREADY_EXISTS,
    "failed_precondition": grpc.StatusCode.FAILED_PRECONDITION,
    "aborted": grpc.StatusCode.ABORTED,
    "resource_exhausted": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "unimplemented": grpc.StatusCode.UNIMPLEMENTED,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "deadline_exceeded": grpc.StatusCode.DEADLINE_EXCEEDED,
    "cancelled": grpc.StatusCode.CANCELLED,
    "unknown": grpc.StatusCode.UNKNOWN,
    "internal": grpc.StatusCode.INTERNAL,
}


def status_of(error: AtlasError) -> tuple[grpc.StatusCode, str, bytes]:
    """The code, the message and the serialized google.rpc.Status of an error."""
    code = STATUS[error.code]
    message = _cut(error.message, MAX_MESSAGE_CHARS)
    number: int = code.value[0]
    details = [_pack(_info(error))]
    if isinstance(error, InvalidArgument) and error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(error.field, MAX_FIELD_CHARS), description=message
        )
        details.append(_pack(error_details_pb2.BadRequest(field_violations=[violation])))
    if error.retry_after_ms is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(error.retry_after_ms)
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    return code, message, status_pb2.Status(code=number, message=message, details=details).SerializeToString()


def _info(error: AtlasError) -> error_details_pb2.ErrorInfo:
    left = MAX_METADATA_CHARS
    metadata: dict[str, str] = {}
    for name, value in sorted(error.metadata.items(), key=lambda item: len(item[1])):
        metadata[name] = _cut(value, left)
        left = max(0, left - len(metadata[name]))
    return error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)


def _cut(text: str, chars: int) -> str:
    """At most `chars` bytes of UTF-8, so that the bound holds on the wire."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= chars:
        return raw.decode()
    return raw[: max(0, chars - 3)].decode("utf-8", "ignore") + ("…" if chars >= 3 else "")


def _pack(
    message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
