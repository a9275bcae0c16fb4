"""The frame codec: what it accepts, what it refuses, and that cuts do not matter."""

import pytest

from engines.frames import HEADER, MAX_PAYLOAD_BYTES, FrameError, Reader, Type, encode


def test_a_frame_survives_the_round_trip() -> None:
    assert Reader().feed(encode(Type.HOSTRES, 7, 9, b"abc")) == [(Type.HOSTRES, 7, 9, b"abc")]


def test_many_frames_in_one_read_keep_their_order() -> None:
    stream = encode(Type.READY, payload=b"{}") + encode(Type.HOSTCALL, 1, 0, b"[]") + encode(Type.CANCEL, 1)
    assert [frame[0] for frame in Reader().feed(stream)] == [Type.READY, Type.HOSTCALL, Type.CANCEL]


def test_one_byte_at_a_time() -> None:
    stream = encode(Type.RESULT, 1, 0, b"x" * 40) + encode(Type.ERROR, 2)
    reader = Reader()
    frames = [frame for i in range(len(stream)) for frame in reader.feed(stream[i : i + 1])]
    assert frames == [(Type.RESULT, 1, 0, b"x" * 40), (Type.ERROR, 2, 0, b"")]


def test_the_largest_payload_passes_and_one_byte_more_does_not() -> None:
    assert len(Reader().feed(encode(Type.RESULT, 1, 0, bytes(MAX_PAYLOAD_BYTES)))[0][3]) == MAX_PAYLOAD_BYTES
    with pytest.raises(ValueError, match="8388609 bytes"):
        encode(Type.RESULT, 1, 0, bytes(MAX_PAYLOAD_BYTES + 1))
    with pytest.raises(FrameError):
        Reader().feed(HEADER.pack(MAX_PAYLOAD_BYTES + 1, Type.RESULT, 0, 1, 0))


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(HEADER.pack(0, 0, 0, 1, 0), id="type zero"),
        pytest.param(HEADER.pack(0, 99, 0, 1, 0), id="unknown type"),
        pytest.param(HEADER.pack(0, Type.RESULT, 1, 1, 0), id="flags set"),
        pytest.param(HEADER.pack(0xFFFFFFFF, Type.RESULT, 0, 1, 0), id="four gigabytes"),
        pytest.param(b"HTTP/1.1 200 OK", id="another protocol"),
    ],
)
def test_a_bad_header_breaks_the_stream_for_good(header: bytes) -> None:
    reader = Reader()
    with pytest.raises(FrameError):
        reader.feed(header)
    with pytest.raises(FrameError, match="already broken"):
        reader.feed(encode(Type.READY))


def test_a_bad_header_is_refused_before_its_payload_arrives() -> None:
    reader = Reader()
    assert reader.feed(HEADER.pack(0, 99, 0, 0, 0)[:-1]) == []
    with pytest.raises(FrameError):
        reader.feed(b"\0")
