"""Hostile rows and hostile bytes: every row becomes an event that can be read, everything else one protocol error."""

import struct
from contextlib import suppress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from server.cdc.changes import Changes, End, Outgoing, TooManyTables
from server.cdc.frames import Frames, Logged
from server.cdc.pgoutput import Begin, Column, Delete, Insert, Missing, ProtocolError, Relation, Update, decode
from server.events import stream
from server.postgres.wire import WireError

TYPES = (16, 20, 23, 25, 114, 3802, 701, 1700, 1184, 17, 1007, 1009, 3807, 600)
values = st.one_of(
    st.none(),
    st.just(Missing.UNCHANGED),
    st.just(Missing.OMITTED),
    st.binary(max_size=80),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=80).map(str.encode),
    st.sampled_from(
        [b"t", b"1", b"-1.5", b"NaN", b"9" * 400, b"{1,{2}}", b'{"a"', b"infinity", b"2026-01-01 00:00:00+00"]
    ),
)
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=21)
json = st.recursive(
    st.sampled_from(["null", "1", '"x"', "1e999"]),
    lambda inner: st.lists(inner).map(lambda items: "[" + ",".join(items) + "]"),
    max_leaves=8,
)


@given(st.data())
def test_every_row_becomes_an_event_that_can_be_read(data: Any) -> None:
    columns = data.draw(
        st.lists(
            st.tuples(names, st.sampled_from(TYPES), st.booleans()),
            min_size=1,
            max_size=6,
            unique_by=lambda column: column[0],
        )
    )
    relation = Relation(1, "proj_" + "0" * 32, data.draw(names), "f", tuple(Column(*column) for column in columns))

    def row() -> list[Any]:
        return [data.draw(json.map(str.encode) if oid in (114, 3802) else values) for _, oid, _ in columns]

    message = data.draw(st.sampled_from(["insert", "update", "key", "blind", "delete"]))
    change: Insert | Update | Delete
    match message:
        case "insert":
            change = Insert(1, row())
        case "delete":
            change = Delete(1, row(), True)
        case "blind":
            change = Update(1, None, False, row())
        case _:
            change = Update(1, row(), message == "update", row())
    most = data.draw(st.sampled_from([3_000, 1_000_000]))
    subject = Changes("slot", None, most_bytes=most)
    subject.take(Begin(5, 0, 1), {})
    subject.take(relation, {})
    (outgoing,) = subject.take(change, {})
    assert isinstance(outgoing, Outgoing)
    assert len(outgoing.body) <= most
    event = stream.event_of(stream.subject_of(outgoing.event_type), outgoing.body)
    assert event.change
    assert event.change.table == relation.table
    missing = {name for name, _, _ in columns} - event.data.value.keys()
    assert missing <= set(event.change.unavailable), "nothing is left out in silence"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_protocol_error(body: bytes) -> None:
    subject = Changes("slot", None, most_bytes=1_000_000)
    with suppress(ProtocolError, TooManyTables):
        for item in subject.take(decode(body), {}):
            assert isinstance(item, Outgoing | End)


@given(st.lists(st.binary(max_size=60), max_size=5), st.integers(1, 50))
def test_any_stream_is_frames_or_an_error(bodies: list[bytes], size: int) -> None:
    data = b"".join(b"d" + struct.pack(">I", 4 + len(body)) + body for body in bodies) + b"".join(bodies)
    frames = Frames()
    with suppress(ProtocolError, WireError):
        for at in range(0, len(data), size):
            for frame in frames.feed(data[at : at + size]):
                if isinstance(frame, Logged):
                    with suppress(ProtocolError):
                        decode(frame.body)
