"""What a frame may tell is bounded, whatever its child is: reading it must not hold up the others."""

import json

import pytest

from engines.frames import LENGTH, Frame, FrameError, Type
from engines.messages import HostCalls, Returned, parse
from engines.told import MAX_HEADERS, MAX_TOLD_BYTES

META = {"wall_us": 1, "cpu_us": 1, "memory_bytes": 1, "logs": [], "truncated": False}


def returned(**told: object) -> Frame:
    head = json.dumps({**META, "kind": "response", "status": 200, "headers": [], **told}).encode()
    return (Type.RESULT, 1, 0, LENGTH.pack(len(head)) + head)


def test_headers_have_a_number() -> None:
    most = [["x", "y"]] * MAX_HEADERS
    event = parse(returned(headers=most))
    assert isinstance(event, Returned)
    assert event.response is not None
    assert len(event.response.headers) == MAX_HEADERS
    with pytest.raises(FrameError, match="too many"):
        parse(returned(headers=[*most, ["x", "y"]]))


@pytest.mark.parametrize(
    "frame",
    [
        returned(padding="x" * MAX_TOLD_BYTES),
        (Type.ERROR, 1, 0, json.dumps({**META, "outcome": "exception", "padding": "x" * MAX_TOLD_BYTES}).encode()),
        (Type.READY, 0, 0, json.dumps({"memory_bytes": 1, "boot_us": 1, "padding": "x" * MAX_TOLD_BYTES}).encode()),
    ],
    ids=["result", "error", "ready"],
)
def test_what_is_told_has_a_size(frame: Frame) -> None:
    with pytest.raises(FrameError, match="at most"):
        parse(frame)


def test_arguments_may_be_large_and_ill_formed() -> None:
    args = json.dumps(["\ud800" + "é" * 1_000_000])
    event = parse((Type.HOSTCALL, 1, 0, json.dumps([[1, "fetch", args]]).encode()))
    assert isinstance(event, HostCalls)
    assert json.loads(event.calls[0][2]) == json.loads(args)
    raw = parse((Type.HOSTCALL, 1, 0, b'[[1,"fetch","[\\"\\ud800\\"]"]]'))
    assert raw == HostCalls([(1, "fetch", b'["?"]')])


def test_fuel_is_told_or_it_is_not() -> None:
    metered, plain = parse(returned(fuel=7)), parse(returned())
    assert isinstance(metered, Returned)
    assert isinstance(plain, Returned)
    assert (metered.meta.fuel, plain.meta.fuel) == (7, None)
    with pytest.raises(FrameError, match="fuel"):
        parse(returned(fuel=-1))
