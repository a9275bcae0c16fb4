"""Every error class leaves with the status, reason and details that its caller relies on."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from server import errors
from server.errors import AtlasError, InvalidArgument
from server.rpc.status import status_of

CASES = [
    (errors.Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (errors.PermissionDenied, grpc.StatusCode.PERMISSION_DENIED),
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.AlreadyExists, grpc.StatusCode.ALREADY_EXISTS),
    (errors.ResourceExhausted, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.Unimplemented, grpc.StatusCode.UNIMPLEMENTED),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE),
    (errors.DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.Cancelled, grpc.StatusCode.CANCELLED),
    (errors.FunctionFailed, grpc.StatusCode.UNKNOWN),
    (errors.Internal, grpc.StatusCode.INTERNAL),
]


def details(error: AtlasError) -> tuple[status_pb2.Status, error_details_pb2.ErrorInfo]:
    _, _, raw = status_of(error)
    status = status_pb2.Status.FromString(raw)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return status, info


@pytest.mark.parametrize(("error_class", "code"), CASES)
def test_code_reason_and_metadata(error_class: type[AtlasError], code: grpc.StatusCode) -> None:
    error = error_class("what happened", reason="WHY", metadata={"limit": "5"})
    assert status_of(error)[:2] == (code, "what happened")
    status, info = details(error)
    assert (status.code, status.message) == (code.value[0], "what happened")
    assert (info.reason, info.domain, dict(info.metadata)) == ("WHY", "functions.atlas", {"limit": "5"})


def test_a_bad_field_is_named_as_a_violation() -> None:
    status, _ = details(InvalidArgument("slug", "Slug must be alphanumeric"))
    bad = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(bad)
    assert bad.field_violations[0].field == "slug"


def test_a_field_is_named_as_far_as_utf_8_can_hold_it_and_is_not_too_long() -> None:
    status, _ = details(InvalidArgument("\ud800" + "x" * 1000, "what is that"))
    bad = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(bad)
    assert bad.field_violations[0].field == "?" + "x" * 196 + "…"


def test_retry_info_carries_the_delay() -> None:
    status, _ = details(errors.Unavailable("busy", reason="OVERLOADED", retry_after_ms=1500))
    retry = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_a_huge_message_and_stack_still_fit_into_trailers() -> None:
    error = errors.FunctionFailed("é" * 50_000, reason="FUNCTION_EXCEPTION", metadata={"stack": "ü" * 50_000, "n": "1"})
    _, message, raw = status_of(error)
    assert len(message.encode()) <= 1000
    assert len(raw) < 5000
    assert details(error)[1].metadata["n"] == "1"
