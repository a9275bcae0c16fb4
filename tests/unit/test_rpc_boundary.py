"""No method is served of which access.py does not say who may call it."""

from typing import Any, cast

import grpc
import pytest

from server.rpc.access import Gate
from server.rpc.boundary import Boundary


class Registered:
    """Stands for the server: notes what is added."""

    def __init__(self) -> None:
        self.handlers: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(self, handlers: tuple[grpc.GenericRpcHandler, ...]) -> None:
        self.handlers += handlers


async def method(_request: object, _context: object) -> bytes:
    return b""


def boundary() -> tuple[Boundary, Registered]:
    server = Registered()
    return Boundary(cast(Any, server), cast(Gate, None)), server


def test_a_method_without_a_row_is_refused_when_the_server_starts() -> None:
    subject, server = boundary()
    with pytest.raises(KeyError, match=r"/atlas\.functions\.v1\.InvocationService/Peek"):
        subject.add_registered_method_handlers(
            "atlas.functions.v1.InvocationService", {"Peek": grpc.unary_unary_rpc_method_handler(method)}
        )
    assert not server.handlers


def test_a_method_with_a_row_is_served_guarded_and_never_bare() -> None:
    subject, server = boundary()
    handlers: dict[str, Any] = {"Invoke": grpc.unary_unary_rpc_method_handler(method)}
    subject.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bare", handlers)])
    subject.add_registered_method_handlers("atlas.functions.v1.InvocationService", handlers)
    (served,) = cast(Any, server.handlers)
    assert served.service_name() == "atlas.functions.v1.InvocationService"
    assert served._method_handlers["/atlas.functions.v1.InvocationService/Invoke"].unary_unary is not method
