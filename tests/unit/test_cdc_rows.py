"""Changes to events: numbering, resuming, values, and what does not fit."""

from typing import Any

import pytest

from server.cdc import rows
from server.cdc.changes import Changes, End, Outgoing, TooManyTables
from server.cdc.pgoutput import (
    Begin,
    Column,
    Commit,
    Delete,
    Emitted,
    Insert,
    Message,
    Missing,
    ProtocolError,
    Relation,
    Truncate,
    Update,
)
from server.cdc.position import Position, lsn_text, parse_lsn, parse_position
from server.events.envelope import Change, Event, decode, spelled
from server.postgres.tenants import project_of, schema_of

SCHEMA = "proj_" + "a1" * 16
PROJECT = "a1a1a1a1-a1a1-a1a1-a1a1-a1a1a1a1a1a1"
SLOT = "atlas_cdc_5_0a1b2c3d"
MOST = 1_000_000
TABLE = Relation(
    7, SCHEMA, "Two words", "f", (Column("id", 23, True), Column("v", 25, False), Column("d", 90_001, False))
)
OTHER = Relation(8, "public", "t", "f", (Column("id", 23, True),))
BEGIN, COMMIT = Begin(0x1_0000_00A0, 0, 1), Commit(0x1_0000_00A0, 0x1_0000_00FF)


def changes(last: Position | None = None, most_bytes: int = MOST) -> Changes:
    return Changes(SLOT, last, most_bytes=most_bytes)


def taken(subject: Changes, *messages: Message) -> list[Outgoing | End]:
    return [item for message in messages for item in subject.take(message, {90_001: 1700})]


def event(message: Insert | Update | Delete | Truncate, most_bytes: int = MOST, table: Relation = TABLE) -> Event:
    (outgoing,) = taken(changes(most_bytes=most_bytes), BEGIN, table, message)
    assert isinstance(outgoing, Outgoing)
    assert len(outgoing.body) <= most_bytes
    found = decode(outgoing.body)
    assert (found.id, found.type, found.project_id) == (outgoing.id, outgoing.event_type, outgoing.project_id)
    return found


def change(found: Event) -> Change:
    assert found.change
    return found.change


def told(
    message: Insert | Update | Delete, most_bytes: int = MOST
) -> tuple[Any, Any, tuple[str, ...], tuple[str, ...]]:
    """data, old, changed, unavailable."""
    found = event(message, most_bytes)
    was = change(found)
    return found.data.value, was.old and was.old.value, was.changed, was.unavailable


class TestEvents:
    def test_what_is_in_one(self) -> None:
        found = event(Insert(7, [b"1", b'"', b"1.50"]))
        assert (found.type, found.project_id, found.source) == ("cdc.INSERT.Two%20words", PROJECT, "postgres")
        assert found.id == f"{SLOT}-1000000a0-1"
        assert spelled(found.time) == "2000-01-01T00:00:00Z"
        assert found.data.text == '{"id":1,"v":"\\"","d":1.50}'
        assert change(found) == Change(op="INSERT", schema=SCHEMA, table="Two words", lsn="1/A0")

    def test_a_value_that_was_not_logged_is_taken_from_the_whole_row_before(self) -> None:
        update = Update(7, [b"1", b"long", None], True, [b"1", Missing.UNCHANGED, b"2"])
        assert told(update) == ({"id": 1, "v": "long", "d": 2}, {"id": 1, "v": "long", "d": None}, ("d",), ())

    def test_without_a_row_before_it_is_named(self) -> None:
        update = Update(7, None, False, [b"1", Missing.UNCHANGED, b"2"])
        assert told(update) == ({"id": 1, "d": 2}, None, (), ("v",))

    def test_of_a_changed_key_only_the_key_is_known(self) -> None:
        update = Update(7, [b"1", None, None], False, [b"2", b"x", None])
        assert told(update) == ({"id": 2, "v": "x", "d": None}, {"id": 1}, ("id",), ())
        assert told(Delete(7, [b"1", None, None], False)) == ({"id": 1}, {"id": 1}, (), ("v", "d"))

    def test_a_deleted_row_is_data_and_old(self) -> None:
        row = {"id": 1, "v": "x", "d": 1}
        assert told(Delete(7, [b"1", b"x", b"1"], True)) == (row, row, (), ())

    def test_what_was_too_large_to_be_read_is_named_and_counts_as_changed(self) -> None:
        update = Update(7, [b"1", Missing.OMITTED, None], True, [b"1", Missing.OMITTED, None])
        assert told(update) == ({"id": 1, "d": None}, {"id": 1, "d": None}, ("v",), ("v",))
        same = Update(7, [b"1", Missing.OMITTED, None], True, [b"2", Missing.UNCHANGED, None])
        assert told(same) == ({"id": 2, "d": None}, {"id": 1, "d": None}, ("id",), ("v",))

    def test_the_largest_columns_are_left_out_until_it_fits(self) -> None:
        update = Update(7, [b"1", b"s", None], True, [b"1", b"x" * 3000, None])
        assert told(update, 2000) == ({"id": 1, "d": None}, {"id": 1, "d": None}, ("v",), ("v",))
        assert told(Insert(7, [b"1", b"\x01" * 400, b"5"]), 2000)[3] == ("v",), "six bytes each"

    def test_what_has_too_many_values_to_be_read_is_left_out(self) -> None:
        assert told(Insert(7, [b"1", b"," * 200_000, b"5"]))[3] == ("v",)

    def test_when_the_names_alone_are_too_many_the_changed_are_not_told(self) -> None:
        wide = Relation(7, SCHEMA, "w", "f", tuple(Column(f"c{n:03}" + "\x01" * 56, 23, False) for n in range(1600)))
        update = Update(7, [b"1"] * 1600, True, [b"2"] * 1600)
        found = change(event(update, table=wide))
        assert len(found.unavailable) == 1600
        assert found.changed == ()

    def test_truncate_has_no_row(self) -> None:
        found = event(Truncate((7,)))
        assert (found.type, found.data.text) == ("cdc.TRUNCATE.Two%20words", "null")


class TestOrder:
    def test_what_is_read_again_is_the_same_bytes(self) -> None:
        update = Update(7, [b"1", b"s", None], True, [b"1", b"x", b"2.50"])
        read = [taken(changes(), BEGIN, TABLE, Insert(7, [b"1", b'"', b"1.50"]), update, COMMIT) for _ in range(2)]
        assert read[0] == read[1]
        assert sum(isinstance(item, Outgoing) for item in read[0]) == 2

    def test_changes_are_numbered_within_their_transaction(self) -> None:
        items = taken(
            changes(),
            *(BEGIN, TABLE, OTHER, Insert(7, [b"1", None, None]), Insert(8, [b"1"]), Emitted(True, "x", b"")),
            *(Truncate((7, 8, 7)), COMMIT, Begin(0x1_0000_0200, 0, 2), Insert(7, [b"2", None, None])),
        )
        positions = [item.position for item in items if isinstance(item, Outgoing)]
        assert [(place.commit_lsn, place.change) for place in positions] == [
            (0x1_0000_00A0, 1),
            (0x1_0000_00A0, 3),
            (0x1_0000_00A0, 5),
            (0x1_0000_0200, 1),
        ]
        assert [item for item in items if isinstance(item, End)] == [End(0x1_0000_00FF)]

    @pytest.mark.parametrize(
        ("last", "left"),
        [
            (None, [1, 2, 3]),
            (Position(SLOT, 0x1_0000_00A0, 2), [3]),
            (Position(SLOT, 0x1_0000_00A1, 1), []),
            (Position(SLOT, 0xFFFF, 9), [1, 2, 3]),
            (Position("atlas_cdc_5_ffffffff", 0x2_0000_0000, 1), [1, 2, 3]),
        ],
    )
    def test_what_is_in_the_stream_is_not_published_again(self, last: Position | None, left: list[int]) -> None:
        rows = [Insert(7, [b"1", None, None])] * 3
        items = taken(changes(last), BEGIN, TABLE, *rows, COMMIT)
        assert [item.position.change for item in items if isinstance(item, Outgoing)] == left
        assert items[-1] == End(COMMIT.end_lsn)

    @pytest.mark.parametrize(
        "messages",
        [
            [Insert(7, [b"1"])],
            [BEGIN, Insert(7, [b"1"])],
            [BEGIN, BEGIN],
            [COMMIT],
            [BEGIN, Commit(1, 2)],
            [BEGIN, TABLE, Insert(7, [b"1"])],
            [BEGIN, TABLE, Update(7, [b"1"], True, [b"1", None, None])],
            [BEGIN, TABLE, Update(7, [b"1", None, None], True, [b"1"])],
            [BEGIN, TABLE, Delete(7, [b"1"], False)],
            [BEGIN, Truncate((7,))],
            [Begin(1, 2**62, 1)],
        ],
    )
    def test_what_may_not_come_is_a_protocol_error(self, messages: list[Message]) -> None:
        with pytest.raises(ProtocolError):
            taken(changes(), *messages)

    def test_tables_are_remembered_in_bounded_memory(self) -> None:
        columns = tuple(Column(f"c{n}", 23, False) for n in range(1600))
        subject = changes()
        tables = [Relation(oid, SCHEMA, "t", "f", columns) for oid in range(1000)]
        with pytest.raises(TooManyTables):
            taken(subject, *tables)

    def test_a_table_that_is_told_of_again_is_remembered_once(self) -> None:
        columns = tuple(Column(f"c{n}", 23, False) for n in range(1600))
        subject = changes()
        taken(subject, *[Relation(7, SCHEMA, "t", "f", columns)] * 1000)

    def test_whose_transaction_it_is_shows_in_its_changes_when_the_table_was_told_of_before(self) -> None:
        subject = changes()
        taken(subject, BEGIN, TABLE, COMMIT, BEGIN)
        assert subject.seen is None
        taken(subject, Insert(7, [b"1", None, None]))
        assert subject.seen == TABLE


def test_only_a_projects_schema_leads_to_a_project() -> None:
    assert schema_of(PROJECT) == SCHEMA
    assert project_of(SCHEMA) == PROJECT
    for other in ("public", "proj_x", SCHEMA + "\n", SCHEMA.upper(), "x" + SCHEMA):
        assert project_of(other) is None


class TestManyValues:
    """Counted before they are made."""

    ARRAYS = Relation(
        9, SCHEMA, "a", "f", (Column("id", 23, True), Column("few", 1007, False), Column("many", 1007, False))
    )
    FEW, MANY, HALF = b"{1,2}", b"{" + b"1," * 100_000 + b"1}", b"{" + b"1," * 60_000 + b"1}"

    @pytest.mark.parametrize(
        ("message", "data", "old", "changed"),
        [
            (Insert(9, [b"1", FEW, MANY]), {"id": 1, "few": [1, 2]}, None, ()),
            (Delete(9, [b"1", FEW, HALF], True), {"id": 1, "few": [1, 2]}, {"id": 1, "few": [1, 2]}, ()),
            (
                Update(9, [b"2", FEW, HALF], True, [b"1", None, HALF]),
                {"id": 1, "few": None},
                {"id": 2, "few": [1, 2]},
                ("id", "few"),
            ),
            (Update(9, None, False, [b"1", FEW, MANY]), {"id": 1, "few": [1, 2]}, None, ()),
        ],
    )
    def test_the_column_of_most_is_left_out(
        self,
        message: Insert | Update | Delete,
        data: Any,
        old: Any,
        changed: tuple[str, ...],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(rows, "_heaviest", None)  # nothing is too large by then
        found = event(message, table=self.ARRAYS)
        was = change(found)
        assert (found.data.value, was.old and was.old.value) == (data, old)
        assert (was.changed, was.unavailable) == (changed, ("many",))


class TestPositions:
    def test_they_survive_being_written(self) -> None:
        position = Position(SLOT, 0x16B374D848, 17)
        assert parse_position(str(position)) == position
        for odd in ("", "a/b", f"{SLOT}/xyz/1", f"{SLOT}/1/", "A/1/1", f"{SLOT}/1/1\n"):
            assert parse_position(odd) is None
        assert parse_lsn(lsn_text(0x16_B374_D848)) == 0x16_B374_D848
        assert lsn_text(0x16_B374_D848) == "16/B374D848"
