"""The boundary around real gRPC methods with one answer and with a stream: status, clients that go, request ids."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.protobuf import wrappers_pb2
from google.rpc import error_details_pb2, status_pb2

from server.errors import NotFound, ResourceExhausted, Unavailable
from server.projects import Principal
from server.rpc import access, boundary
from server.rpc.access import Access, Gate
from server.rpc.boundary import Boundary
from server.rpc.status import DETAILS_KEY
from server.telemetry.metrics import Metrics

SERVICE = "atlas.test.v1.Tests"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ADMIN_KEY = "a" * 40
READMIT_S = 0.05
GOOD = (("apikey", "good"),)

Number = wrappers_pb2.Int64Value
Metadata = tuple[tuple[str, str], ...]


class Keys:
    """One key, which may be revoked; or the database is away."""

    def __init__(self) -> None:
        self.principal: Principal | None = Principal(project_id="p", role="service", tier=None, key_id="k")
        self.away = False
        self.asked = asyncio.Event()

    async def authenticate(self, secret: str) -> Principal | None:
        self.asked.set()
        if self.away:
            raise Unavailable("The database is away", reason="AWAY")
        return self.principal if secret == "good" else None


@dataclass
class Service:
    """Methods that do what the number asks."""

    ended: asyncio.Event = field(default_factory=asyncio.Event)
    made: int = 0
    caught: BaseException | None = None
    seen: dict[str, Any] = field(default_factory=dict)

    async def Count(self, request: Number, context: object) -> AsyncIterator[Number]:
        """`value` numbers; then an error that says which, if it is 404, or a fault if it is 500, or silence if 100."""
        self._see()
        try:
            for number in range(request.value % 100 if request.value >= 100 else request.value):
                self.made += 1
                yield Number(value=number)
            if request.value == 404:
                raise NotFound("There is nothing more", reason="NOTHING_MORE")
            if request.value == 503:
                raise RuntimeError("secret words")
            if request.value == 102:
                await asyncio.Event().wait()
        except BaseException as error:
            self.caught = error
            raise
        finally:
            await asyncio.sleep(0)
            self.ended.set()

    async def Flood(self, request: Number, context: object) -> AsyncIterator[wrappers_pb2.BytesValue]:
        try:
            while True:
                self.made += 1
                yield wrappers_pb2.BytesValue(value=bytes(request.value))
        finally:
            self.ended.set()

    async def Ask(self, request: Number, context: object) -> Number:
        self._see()
        if request.value == 429:
            raise ResourceExhausted("Too much", reason="TOO_MUCH")
        if request.value == 500:
            raise RuntimeError("secret words")
        return request

    def _see(self) -> None:
        self.seen = {
            "request_id": boundary.request_id(),
            "parent": boundary.trace_parent(),
            "headers": boundary.headers(),
        }


@dataclass
class Site:
    service: Service
    channel: grpc.aio.Channel
    metrics: Metrics
    keys: Keys

    def stream(self, method: str, value: int, metadata: Metadata = ()) -> Any:
        call = self.channel.unary_stream(
            f"/{SERVICE}/{method}",
            Number.SerializeToString,
            wrappers_pb2.BytesValue.FromString if method.endswith("Flood") else Number.FromString,
        )
        return call(Number(value=value), metadata=metadata)

    def ask(self, value: int, metadata: Metadata = ()) -> Any:
        call = self.channel.unary_unary(f"/{SERVICE}/Ask", Number.SerializeToString, Number.FromString)
        return call(Number(value=value), metadata=metadata)

    def counted(self) -> dict[tuple[str, ...], float]:
        records = self.metrics.numbers.records()
        return {
            each.name[1:]: each.doubles[0]
            for each in records
            if each.name[0] == "atlas_rpc_total" and any(each.doubles)
        }


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    rows = {"Count": Access.PUBLIC, "Flood": Access.PUBLIC, "Ask": Access.PUBLIC, "Admin": Access.ADMIN}
    rows |= {"Keyed": Access.SERVICE, "KeyedFlood": Access.SERVICE}
    for name, row in rows.items():
        monkeypatch.setitem(cast(dict[str, Access], access.METHODS), f"/{SERVICE}/{name}", row)
    service, metrics, keys = Service(), Metrics(), Keys()
    server = grpc.aio.server()

    def handler(make: Callable[..., Any], method: Any) -> Any:
        return make(method, Number.FromString, lambda message: message.SerializeToString())

    handlers = {
        "Count": handler(grpc.unary_stream_rpc_method_handler, service.Count),
        "Flood": handler(grpc.unary_stream_rpc_method_handler, service.Flood),
        "Admin": handler(grpc.unary_stream_rpc_method_handler, service.Count),
        "Keyed": handler(grpc.unary_stream_rpc_method_handler, service.Count),
        "KeyedFlood": handler(grpc.unary_stream_rpc_method_handler, service.Flood),
        "Ask": handler(grpc.unary_unary_rpc_method_handler, service.Ask),
    }
    guarded = Boundary(server, Gate(keys, ADMIN_KEY), metrics, readmit_s=READMIT_S)
    guarded.add_registered_method_handlers(SERVICE, handlers)
    address = f"unix:{tmp_path}/s"
    server.add_insecure_port(address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield Site(service, channel, metrics, keys)
    await server.stop(0)


async def values(call: Any) -> list[int]:
    return [message.value async for message in call]


async def failed(call: Any) -> tuple[list[int], grpc.aio.AioRpcError]:
    """What was received, and the error after it."""
    received: list[int] = []
    try:
        async for message in call:
            received.append(message.value)  # noqa: PERF401 - what came before the error counts
    except grpc.aio.AioRpcError as error:
        return received, error
    raise AssertionError(f"the stream ended well, after {received}")


def reason(error: grpc.aio.AioRpcError) -> tuple[str, Mapping[str, str]]:
    trailing = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(cast(bytes, trailing[DETAILS_KEY]))
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason, dict(info.metadata)


async def settled(site: Site, expected: dict[tuple[str, ...], float]) -> None:
    """The server counts a call when it has ended it, which may be after its client knows."""
    async with asyncio.timeout(5):
        while site.counted() != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_stream_to_its_end(site: Site) -> None:
    assert await values(site.stream("Count", 5)) == [0, 1, 2, 3, 4]
    assert await values(site.stream("Count", 0)) == []
    await settled(site, {(f"{SERVICE}/Count", "OK"): 2})


async def test_an_error_before_the_first_message(site: Site) -> None:
    call: Any = site.channel.unary_stream(f"/{SERVICE}/Admin")
    received, error = await failed(call(b""))
    assert (received, error.code()) == ([], grpc.StatusCode.UNAUTHENTICATED)
    assert reason(error)[0] == "KEY_MISSING"
    assert site.service.made == 0
    await settled(site, {(f"{SERVICE}/Admin", "UNAUTHENTICATED"): 1})


async def test_bytes_that_are_no_message(site: Site) -> None:
    call: Any = site.channel.unary_stream(f"/{SERVICE}/Count")
    received, error = await failed(call(b"\xff\xff"))
    assert (received, error.code()) == ([], grpc.StatusCode.INVALID_ARGUMENT)
    assert "no message of this method" in str(error.details())


async def test_an_error_after_messages(site: Site) -> None:
    received, error = await failed(site.stream("Count", 404))
    assert (received, error.code()) == ([0, 1, 2, 3], grpc.StatusCode.NOT_FOUND)
    assert error.details() == "There is nothing more"
    assert reason(error)[0] == "NOTHING_MORE"
    await settled(site, {(f"{SERVICE}/Count", "NOT_FOUND"): 1})


async def test_a_fault_tells_its_reference_and_nothing_else(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    received, error = await failed(site.stream("Count", 503, (("x-request-id", "mine"),)))
    assert (received, error.code()) == ([0, 1, 2], grpc.StatusCode.INTERNAL)
    assert "secret" not in str(error.details())
    kind, metadata = reason(error)
    assert kind == "INTERNAL_FAULT"
    (record,) = caplog.records
    assert vars(record)["fields"]["reference"] == metadata["reference"]
    assert vars(record)["fields"]["request_id"] == "mine"
    await settled(site, {(f"{SERVICE}/Count", "INTERNAL"): 1})


async def test_when_the_client_goes_the_generator_is_cancelled_where_it_waits(site: Site) -> None:
    call = site.stream("Count", 102)
    assert [(await call.read()).value for _ in range(2)] == [0, 1]
    call.cancel()
    async with asyncio.timeout(5):
        await site.service.ended.wait()
    assert isinstance(site.service.caught, asyncio.CancelledError)
    await settled(site, {(f"{SERVICE}/Count", "CANCELLED"): 1})


async def test_a_client_that_does_not_read_holds_the_generator_back(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    call = site.stream("Flood", 1024 * 1024)
    async with asyncio.timeout(5):
        await call.read()
        for _ in range(100):  # as many turns of the server
            await site.ask(1)
    assert site.service.made < 20
    call.cancel()
    async with asyncio.timeout(5):
        await site.service.ended.wait()
    await settled(site, {(f"{SERVICE}/Flood", "CANCELLED"): 1, (f"{SERVICE}/Ask", "OK"): 100})
    assert not caplog.records


async def test_a_deadline_ends_a_stream(site: Site) -> None:
    call = site.channel.unary_stream(f"/{SERVICE}/Count", Number.SerializeToString, Number.FromString)
    _, error = await failed(call(Number(value=102), timeout=0.2))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(5):
        await site.service.ended.wait()
    assert isinstance(site.service.caught, asyncio.CancelledError)


@pytest.mark.parametrize("value", [1, 429, 500])
async def test_methods_with_one_answer_are_counted(site: Site, value: int) -> None:
    code = "OK"
    try:
        await site.ask(value)
    except grpc.aio.AioRpcError as error:
        code = error.code().name
    assert code == {1: "OK", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL"}[value]
    await settled(site, {(f"{SERVICE}/Ask", code): 1})


async def test_a_request_id_of_the_caller_goes_on_and_is_not_told_back(site: Site) -> None:
    call = site.ask(1, (("x-request-id", "id-7"), ("traceparent", TRACE)))
    await call
    assert site.service.seen["request_id"] == "id-7"
    assert str(site.service.seen["parent"]) == TRACE
    assert "x-request-id" not in dict(await call.trailing_metadata())


async def test_a_header_that_is_sent_twice_counts_twice(site: Site) -> None:
    await site.ask(1, (("prefer", "wait=1"), ("x-once", "1"), ("prefer", "respond-async"), ("prefer", "a=b")))
    seen = site.service.seen["headers"]
    assert (seen["prefer"], seen["x-once"]) == ("wait=1, respond-async, a=b", "1")


async def test_two_keys_are_no_key(site: Site) -> None:
    _, error = await failed(site.stream("Keyed", 1, (("apikey", "good"), ("apikey", "good"))))
    assert (error.code(), reason(error)[0]) == (grpc.StatusCode.UNAUTHENTICATED, "KEY_UNKNOWN")


@pytest.mark.parametrize("sent", [None, "x" * 129, "two words", ""])
async def test_a_request_id_is_made_where_there_is_none_that_may_go_on(site: Site, sent: str | None) -> None:
    metadata = () if sent is None else (("x-request-id", sent),)
    for make in (site.ask, lambda *args: site.stream("Count", *args)):
        call = make(1, metadata)
        await (values(call) if isinstance(call, grpc.aio.UnaryStreamCall) else call)
        trailing = dict(await call.trailing_metadata())
        made = site.service.seen["request_id"]
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", made)
        assert trailing == {"x-request-id": made}
        assert site.service.seen["headers"]["x-request-id"] == made
        assert site.service.seen["parent"] is None


async def test_a_made_request_id_is_told_with_an_error_too(site: Site) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await site.ask(429)
    assert reason(caught.value)[0] == "TOO_MUCH"
    assert dict(caught.value.trailing_metadata())["x-request-id"] == site.service.seen["request_id"]


async def test_a_stream_ends_soon_after_its_key_is_revoked(site: Site) -> None:
    call = site.stream("Keyed", 102, GOOD)
    assert [(await call.read()).value for _ in range(2)] == [0, 1]
    site.keys.principal = None
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(5):
            await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert reason(caught.value)[0] == "KEY_UNKNOWN"
    assert isinstance(site.service.caught, asyncio.CancelledError)
    await settled(site, {(f"{SERVICE}/Keyed", "UNAUTHENTICATED"): 1})


async def test_a_stream_whose_client_does_not_read_ends_with_its_key_too(site: Site) -> None:
    call = site.stream("KeyedFlood", 1024 * 1024, GOOD)
    await call.read()
    site.keys.principal = None
    async with asyncio.timeout(5):
        await site.service.ended.wait()
    await settled(site, {(f"{SERVICE}/KeyedFlood", "UNAUTHENTICATED"): 1})
    call.cancel()


async def test_a_stream_outlives_a_database_that_is_away(site: Site) -> None:
    call = site.stream("Keyed", 102, GOOD)
    await call.read()
    site.keys.away = True
    async with asyncio.timeout(5):
        for _ in range(3):
            site.keys.asked.clear()
            await site.keys.asked.wait()
    assert not site.service.ended.is_set()
    call.cancel()
    async with asyncio.timeout(5):
        await site.service.ended.wait()
    await settled(site, {(f"{SERVICE}/Keyed", "CANCELLED"): 1})
