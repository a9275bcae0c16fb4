"""Messages of pgoutput to events in the order of commits. Sans-IO.

    between ── Begin ─▶ within ── Commit ─▶ between ─▶ End of that commit
       │                  ├─ Insert, Update, Delete, Truncate: each change gets the next number, and an event unless
       │                  │  it is of no project or not after what is in the stream already
       ╰──── Relation, Other, Emitted: in both; the first of the run's own messages is the cause of its changes

Anything else is a ProtocolError.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from server.cdc.pgoutput import (
    Begin,
    Commit,
    Delete,
    Emitted,
    Insert,
    Message,
    Other,
    ProtocolError,
    Relation,
    Truncate,
    Update,
)
from server.cdc.position import Position
from server.cdc.rows import Moment, Table, changed_row, table_of, time_of, truncated
from server.events import cause
from server.events.envelope import Cause
from server.postgres.effects import CAUSE_PREFIX
from server.postgres.seal import Sealer

MAX_COLUMNS: Final = 500_000
"""Of all tables that are remembered, a table counting as one more: some 100 MB. Tenants make as many as they like."""


class TooManyTables(Exception):
    """Stream anew: the server then tells of each table again when it is next changed. In one transaction alone they
    may be too many, too."""


class Outgoing(NamedTuple):
    """`op` is what is counted: the operation, or `gap`."""

    project_id: str
    id: str
    event_type: str
    op: str
    position: Position
    body: bytes


class End(NamedTuple):
    """Once everything before it is stored, the server may forget everything before `lsn`."""

    lsn: int


class Changes:
    def __init__(self, slot: str, last: Position | None, *, most_bytes: int, sealer: Sealer | None = None) -> None:
        """`last` is what is in the stream already; `most_bytes` bounds an event; without `sealer` no cause is ours."""
        self._sealer = sealer
        self._told: bytes | None = None
        self._cause: tuple[str, Cause | None] = ("", None)
        self._slot = slot
        self._last = last
        self._most_bytes = most_bytes
        self._begin: Begin | None = None
        self._time = time_of(0)
        self._change = 0
        self._columns = 0
        self._tables: dict[int, Table | None] = {}
        self.ended_lsn = 0
        """Where the last transaction has ended here."""
        self.seen: Relation | None = None
        """The last table that the open transaction was said to change."""

    @property
    def open(self) -> Begin | None:
        """The transaction that has begun and not ended."""
        return self._begin

    def take(self, message: Message, bases: Mapping[int, int]) -> list[Outgoing | End]:
        """What is to be stored now. `bases`: of the types in a Relation, those under domains. ProtocolError;
        TooManyTables."""
        match message:
            case Insert() | Update() | Delete():
                return self._row(message)
            case Begin():
                if self._begin is not None:
                    raise ProtocolError("a transaction begins within another")
                self._begin, self._change, self.seen = message, 0, None
                self._told, self._cause = None, ("", None)
                self._time = time_of(message.commit_us)
            case Commit():
                if self._begin is None or message.commit_lsn != self._begin.commit_lsn:
                    raise ProtocolError("a commit of a transaction that did not begin")
                self._begin = None
                self.ended_lsn = message.end_lsn
                return [End(message.end_lsn)]
            case Relation():
                self.seen = message
                self._remember(message, bases)
            case Truncate():
                return self._truncate(message)
            case Emitted():
                if message.transactional and message.prefix == CAUSE_PREFIX and self._told is None:
                    self._told = message.content
            case Other():
                pass
        return []

    def _remember(self, relation: Relation, bases: Mapping[int, int]) -> None:
        """In place of what the table was before it was altered. TooManyTables."""
        before, table = self._tables.get(relation.oid), table_of(relation, bases)
        columns = self._columns + _weight(table) - _weight(before)
        if columns > MAX_COLUMNS:
            raise TooManyTables(f"tables with more than {MAX_COLUMNS} columns were changed")
        self._columns = columns
        self._tables[relation.oid] = table

    def _row(self, message: Insert | Update | Delete) -> list[Outgoing | End]:
        table, moment = self._next(message.relation)
        if table is None or moment is None:
            return []
        op = type(message).__name__.upper()
        body = changed_row(table, message, moment, most_bytes=self._most_bytes)
        return [Outgoing(table.project_id, moment.position.event_id, table.types[op], op, moment.position, body)]

    def _truncate(self, message: Truncate) -> list[Outgoing | End]:
        found: list[Outgoing | End] = []
        for relation in message.relations:
            table, moment = self._next(relation)
            if table is not None and moment is not None:
                body = truncated(table, moment)
                found.append(
                    Outgoing(
                        table.project_id,
                        moment.position.event_id,
                        table.types["TRUNCATE"],
                        "TRUNCATE",
                        moment.position,
                        body,
                    )
                )
        return found

    def _next(self, relation: int) -> tuple[Table | None, Moment | None]:
        """Table and moment of the next change; no moment when it is in the stream already."""
        if self._begin is None:
            raise ProtocolError("a change outside of a transaction")
        if relation not in self._tables:
            raise ProtocolError(f"a change of the unknown table {relation}")
        self._change += 1
        position = Position(self._slot, self._begin.commit_lsn, self._change)
        table = self._tables[relation]
        if table is not None:
            self.seen = table.relation  # which is told of once in a stream, not in each transaction
        if table is None or position.reached(self._last):
            return table, None
        return table, Moment(position, self._time, self._cause_in(table.relation.schema))

    def _cause_in(self, schema: str) -> Cause | None:
        """Of a change in the schema: a run is of one project, whose role it is sealed for."""
        if self._told is None or self._sealer is None:
            return None
        if self._cause[0] != schema:
            self._cause = (schema, cause.read(self._told, schema, self._sealer))
        return self._cause[1]


def _weight(table: Table | None) -> int:
    return 0 if table is None else 1 + len(table.columns)
