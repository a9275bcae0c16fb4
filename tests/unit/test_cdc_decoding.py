"""Bytes of a walsender to messages, whatever the pieces in which they come."""

import struct
from pathlib import Path

import pytest

from server.cdc.frames import KEPT_BYTES, MAX_FRAME_BYTES, Frame, Frames, Keepalive, Logged
from server.cdc.pgoutput import (
    Begin,
    Commit,
    Delete,
    Emitted,
    Insert,
    Missing,
    Other,
    ProtocolError,
    Relation,
    Row,
    Truncate,
    Update,
    decode,
)
from server.postgres.wire import Message, WireError

RECORDED = [bytes.fromhex(line) for line in (Path(__file__).parent / "cdc_recorded.hex").read_text().split()]
"""Of a Postgres 18.6: see test_what_a_walsender_sent."""

LONG = b"x" * 2100


def copied(body: bytes) -> bytes:
    return b"d" + struct.pack(">I", 4 + len(body)) + body


def logged(body: bytes) -> bytes:
    return copied(b"w" + bytes(24) + body)


def value(raw: bytes | None) -> bytes:
    return b"n" if raw is None else b"t" + struct.pack(">I", len(raw)) + raw


def row(*values: bytes | None) -> bytes:
    return struct.pack(">H", len(values)) + b"".join(map(value, values))


def insert(*values: bytes | None) -> bytes:
    return b"I" + struct.pack(">I", 7) + b"N" + row(*values)


def fed(data: bytes, size: int) -> list[Frame]:
    frames = Frames()
    return [frame for at in range(0, len(data), size) for frame in frames.feed(data[at : at + size])]


def decoded(data: bytes) -> list[object]:
    return [decode(frame.body) for frame in fed(data, 65_536) if isinstance(frame, Logged)]


def test_what_a_walsender_sent() -> None:
    messages = [decode(body) for body in RECORDED]
    kinds = [type(message) for message in messages]
    assert kinds == [
        *(Begin, Other, Relation, Insert, Insert, Update, Commit),
        *(Begin, Relation, Insert, Commit, Begin, Update, Commit, Begin, Delete, Commit),
        *(Begin, Emitted, Commit, Begin, Other, Relation, Relation, Truncate, Commit),
    ]
    begin, _, table, first, second, update, commit = messages[:7]
    assert isinstance(table, Relation)
    assert (table.table, table.identity) == ("t", "f")
    assert [(column.name, column.type_oid) for column in table.columns][:3] == [
        ("id", 23),
        ("amount", 1700),
        ("note", 25),
    ]
    assert first == Insert(table.oid, [b"1", b"100.01", LONG, b"ok"])
    assert second == Insert(table.oid, [b"2", b"NaN", None, None])
    new: Row
    old, new = [b"1", b"100.01", LONG, b"ok"], [b"1", b"7", Missing.UNCHANGED, b"ok"]
    assert update == Update(table.oid, old, True, new)
    assert isinstance(begin, Begin)
    assert isinstance(commit, Commit)
    assert begin.commit_lsn == commit.commit_lsn < commit.end_lsn
    keyed = messages[8]
    assert isinstance(keyed, Relation)
    assert [(column.name, column.key) for column in keyed.columns] == [("id", True), ("n", False)], "none is virtual"
    assert messages[12] == Update(keyed.oid, [b"1", None], False, [b"3", b"2"])
    assert messages[15] == Delete(keyed.oid, [b"3", None], False)
    assert messages[18] == Emitted(True, "atlas.cause", b"{}")
    assert messages[-2] == Truncate((table.oid, keyed.oid))


@pytest.mark.parametrize("body", RECORDED, ids=[f"{number}-{chr(body[0])}" for number, body in enumerate(RECORDED)])
def test_a_message_that_is_cut_or_has_more_is_a_protocol_error(body: bytes) -> None:
    if body[:1] == b"Y":
        return
    for end in range(len(body)) if len(body) < 300 else range(0, len(body), 97):
        with pytest.raises(ProtocolError):
            decode(body[:end])
    with pytest.raises(ProtocolError):
        decode(body + b"\0")


@pytest.mark.parametrize("size", [1, 3, 7, 1000, 1_000_000])
def test_frames_come_in_any_pieces(size: int) -> None:
    data = b"".join(map(logged, RECORDED)) + copied(b"k" + struct.pack(">QqB", 9, 0, 1)) + b"N\0\0\0\x05x"
    assert fed(data, size) == [*map(Logged, RECORDED), Keepalive(9, True), Message(b"N", b"x")]


class TestLargeFrames:
    BIG = b"b" * (MAX_FRAME_BYTES + 1)

    @pytest.mark.parametrize("size", [8191, 1_000_000, 100_000_000])
    def test_large_values_are_let_pass(self, size: int) -> None:
        data = logged(insert(b"1", self.BIG, None, b"2", self.BIG)) + logged(insert(b"3"))
        bodies = [frame.body for frame in fed(data, size) if isinstance(frame, Logged)]
        assert [decode(body) for body in bodies] == [
            Insert(7, [b"1", Missing.OMITTED, None, b"2", Missing.OMITTED]),
            Insert(7, [b"3"]),
        ]

    def test_of_old_and_new_rows(self) -> None:
        head = struct.pack(">I", 7)
        update = b"U" + head + b"O" + row(b"1", self.BIG) + b"N" + row(b"2")
        unchanged = b"U" + head + b"O" + row(b"1", self.BIG) + b"N" + struct.pack(">H", 2) + value(b"2") + b"u"
        plain = b"U" + head + b"N" + row(self.BIG)
        delete = b"D" + head + b"O" + row(b"1", self.BIG)
        found = decoded(b"".join(map(logged, (update, unchanged, plain, delete))))
        assert found == [
            Update(7, [b"1", Missing.OMITTED], True, [b"2"]),
            Update(7, [b"1", Missing.OMITTED], True, [b"2", Missing.UNCHANGED]),
            Update(7, None, False, [Missing.OMITTED]),
            Delete(7, [b"1", Missing.OMITTED], True),
        ]

    def test_many_middling_values_are_bounded_together(self) -> None:
        (frame,) = fed(logged(insert(*[b"m" * 900_000] * 40)), 65_536)
        assert isinstance(frame, Logged)
        assert len(frame.body) < KEPT_BYTES + 1000
        message = decode(frame.body)
        assert isinstance(message, Insert)
        assert message.new[0] == b"m" * 900_000
        assert message.new[-1] is Missing.OMITTED

    def test_what_is_no_row_is_let_pass_whole(self) -> None:
        emitted = b"M\1" + bytes(8) + b"x\0" + struct.pack(">I", len(self.BIG)) + self.BIG
        assert decoded(logged(emitted)) == [Other()]

    @pytest.mark.parametrize(
        "body",
        [
            insert(b"1", BIG)[:-1],
            insert(b"1", BIG) + b"\0",
            b"I" + bytes(4) + b"N\xff\xff" + BIG,
            b"I" + bytes(4) + b"N\0\1t\xff\xff\xff\xff" + BIG,
        ],
    )
    def test_one_that_does_not_end_where_it_says_is_a_protocol_error(self, body: bytes) -> None:
        with pytest.raises(ProtocolError):
            decoded(logged(body))

    def test_only_the_stream_has_large_frames(self) -> None:
        with pytest.raises(WireError):
            Frames().feed(b"E\x7f\xff\xff\xff")
        with pytest.raises(WireError):
            Frames().feed(b"d\0\0\0\3")
