"""The one interceptor: every call is admitted by the Gate, and every error leaves as a status we chose.

An AtlasError becomes its status with details; anything else is logged with a reference and reaches the caller as
INTERNAL with that reference and no text of its own.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl

import grpc

from server.errors import AtlasError, Internal
from server.log import logger
from server.rpc.access import METHODS, Access, Gate
from server.rpc.status import DETAILS_KEY, status_of

log = logger("rpc")

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"

OPEN_PREFIXES: Final = ("/grpc.health.v1.", "/grpc.reflection.")
"""Standard services for probes and debugging; they hold nothing of a tenant."""


def headers_of(context: Context) -> dict[str, str]:
    """Request headers with lower-case names; of a repeated one, the last. Binary metadata is left out."""
    return {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}


def project_ids_of(request: object, headers: Mapping[str, str]) -> list[str]:
    """The project ids a request names: in its decoded message, and in the query that Envoy may have left out of it."""
    _, _, query = headers.get("x-envoy-original-path", "").partition("?")
    named = [value for name, value in parse_qsl(query) if name in ("project_id", "projectId")]
    in_message = getattr(request, "project_id", None)
    return named if in_message is None else [in_message, *named]


class Boundary(grpc.aio.ServerInterceptor):
    def __init__(self, gate: Gate, unguarded: Iterable[str] = ()) -> None:
        """Methods of services that are not ours are refused, except those named in `unguarded`."""
        self._gate = gate
        self._open = (*OPEN_PREFIXES, *(f"/{service}/" for service in unguarded))
        self._guarded: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        method: str = handler_call_details.method
        if (guarded := self._guarded.get(method)) is not None:
            return guarded
        handler = await continuation(handler_call_details)
        if handler is None or method.startswith(self._open):
            return handler
        guarded = self._guarded[method] = self._guard(method, handler)
        return guarded

    def _guard(self, method: str, handler: Any) -> Handler:
        access = METHODS[method]
        names_project = access is not Access.ANY_KEY and access is not Access.PUBLIC
        inner = handler.unary_unary
        gate = self._gate

        async def call(request: Any, context: Context) -> Any:
            try:
                headers = headers_of(context)
                await gate.admit(access, headers, project_ids_of(request, headers) if names_project else ())
                return await inner(request, context)
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except AtlasError as error:
                await _abort(context, error)
            except Exception:
                reference = uuid.uuid4().hex[:12]
                log.exception("rpc.fault", f"{method} failed with a fault of ours", method=method, reference=reference)
                await _abort(context, _fault(reference))

        return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)


def _fault(reference: str) -> AtlasError:
    return Internal(
        f"Something failed on our side; the server's log says what under reference {reference}",
        reason="INTERNAL_FAULT",
        metadata={"reference": reference},
    )


async def _abort(context: Context, error: AtlasError) -> None:
    code, message, details = status_of(error)
    await context.abort(code, message, trailing_metadata=((DETAILS_KEY, details),))
