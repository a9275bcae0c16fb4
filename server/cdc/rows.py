"""A changed row as an event: values typed by their columns, what is missing named, never too large. Pure.

    op         data              old                  changed          unavailable
    INSERT     the row           -                    -                -
    UPDATE     the row after     the row before       what differs     neither logged now nor in the row before
    DELETE     the row before    the row before       -                not part of a key that alone was logged
    TRUNCATE   null              -                    -                -

A value is left out and its column named in `unavailable`, too, when it was too large to be read, when its JSON is
nested deeper or has longer numbers than events may, or when the event would with it not fit into a message, or have
more values than events may: then the largest columns go first, out of `data` and `old` alike. A value that is not there
is never null.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, TypeVar

import orjson

from server.cdc.pgoutput import Delete, Insert, Missing, ProtocolError, Relation, Row, Update, Value
from server.cdc.position import Position, lsn_text
from server.events.envelope import OPERATIONS, Cause, Change, Event, encode
from server.events.json_text import MAX_VALUES, Json, JsonError, read
from server.events.types import escape
from server.postgres import wire
from server.postgres.tenants import project_of
from server.postgres.values import ARRAYS, Loader, loaders

SOURCE: Final = "postgres"
NULL: Final = Json("null", None)

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_JSON_TYPES: Final = frozenset((114, 3802, 199, 3807))
"""json, jsonb, and arrays of them."""

_ENVELOPE_DEPTH: Final = 2

Column = TypeVar("Column", int, str)
"""By its place or its name."""


@dataclass(frozen=True, slots=True)
class Table:
    """`types`: of its events, by operation."""

    project_id: str
    relation: Relation
    columns: tuple[tuple[str, Loader], ...]
    json: tuple[int, ...]
    """Places of the columns that hold JSON."""
    many: tuple[int, ...]
    """Places of those of which one value may be many: JSON and arrays."""
    types: Mapping[str, str]


class Moment(NamedTuple):
    """When and where its transaction was committed, and by which run if it was one that an event started."""

    position: Position
    time: datetime
    cause: Cause | None = None


Image = dict[str, object]
"""A row as JSON, by column; what is missing is not in it."""


def time_of(commit_us: int) -> datetime:
    """Of microseconds since 2000. ProtocolError when no datetime can hold it."""
    try:
        return _EPOCH + timedelta(microseconds=commit_us)
    except OverflowError:
        raise ProtocolError(f"a commit at {commit_us} µs since 2000") from None


def table_of(relation: Relation, bases: Mapping[int, int]) -> Table | None:
    """None for one that belongs to no project. `bases`: the types under domains, by their OIDs."""
    project_id = project_of(relation.schema)
    if project_id is None or not relation.table:
        return None
    types = [bases.get(column.type_oid, column.type_oid) for column in relation.columns]
    named = [wire.Column(column.name, oid) for column, oid in zip(relation.columns, types, strict=True)]
    return Table(
        project_id=project_id,
        relation=relation,
        columns=tuple(loaders(named)),
        json=tuple(place for place, oid in enumerate(types) if oid in _JSON_TYPES),
        many=tuple(place for place, oid in enumerate(types) if oid in _JSON_TYPES or oid in ARRAYS),
        types={op: f"cdc.{op}.{escape(relation.table)}" for op in OPERATIONS},
    )


def changed_row(table: Table, message: Insert | Update | Delete, moment: Moment, *, most_bytes: int) -> bytes:
    """The event's body, at most `most_bytes` long. ProtocolError when the row is not of the table."""
    lost: set[str] = set()
    if isinstance(message, Insert):
        [new] = _sparse(table, [message.new])
        data = _image(table, new, lost)
        return _fitting(table, "INSERT", data, None, (), lost, moment, most_bytes)
    if isinstance(message, Delete):
        gone = message.old if message.whole else _key_alone(table, message.old)
        [gone, _] = _sparse(table, [gone, gone])  # it is in the event twice
        data = _image(table, gone, lost)
        return _fitting(table, "DELETE", data, data, (), lost, moment, most_bytes)
    new, before = message.new, message.old
    if before is None:
        [new] = _sparse(table, [new])
        return _fitting(table, "UPDATE", _image(table, new, lost), None, (), lost, moment, most_bytes)
    _require_columns(table, new)
    _require_columns(table, before)
    if message.whole:
        new = [was if now is Missing.UNCHANGED else now for was, now in zip(before, new, strict=True)]
    else:
        before = _key_alone(table, before)
    new, sparse = _sparse(table, [new, before])
    # what is not in a key may well be in the row
    old = _image(table, sparse, lost if message.whole else set())
    changed = tuple(
        name
        for (name, _), was, now in zip(table.columns, before, message.new, strict=True)
        if was is not Missing.UNCHANGED and _differ(was, now)
    )
    return _fitting(table, "UPDATE", _image(table, new, lost), old, changed, lost, moment, most_bytes)


def truncated(table: Table, moment: Moment) -> bytes:
    return encode(_event(table, "TRUNCATE", NULL, None, (), set(), moment))


def _differ(was: Value, now: Value) -> bool:
    """What was too large to be read was written anew; else it would be marked as unchanged."""
    return now is not Missing.UNCHANGED and (now is Missing.OMITTED or was != now)


def _key_alone(table: Table, row: Row) -> Row:
    """Of a row with only its key; the rest is null in it, and unknown. ProtocolError."""
    _require_columns(table, row)
    return [
        value if column.key else Missing.UNCHANGED for column, value in zip(table.relation.columns, row, strict=True)
    ]


def _require_columns(table: Table, row: Row) -> None:
    if len(row) != len(table.columns):
        raise ProtocolError(f"a row of {len(row)} columns in a table of {len(table.columns)}")


def _sparse(table: Table, rows: Sequence[Row]) -> Sequence[Row]:
    """The rows of one event, without the columns of most values if they are more than events may have: they are
    counted before they are made, each of which costs microseconds of the event loop."""
    weights = dict.fromkeys(table.many, 0)
    for row in rows:
        _require_columns(table, row)
        for place in table.many:
            if isinstance(value := row[place], bytes):
                weights[place] += _values(value)
    if (excess := sum(weights.values()) - MAX_VALUES) <= 0:
        return rows
    chosen = _first(weights, excess)
    return [
        [Missing.OMITTED if place in chosen and value is not None else value for place, value in enumerate(row)]
        for row in rows
    ]


def _image(table: Table, row: Row, lost: set[str]) -> Image:
    """The row as JSON; names of what it lacks are added to `lost`."""
    _require_columns(table, row)
    image: Image = {}
    for (name, load), value in zip(table.columns, row, strict=True):
        if value is None:
            image[name] = None
        elif isinstance(value, Missing):
            lost.add(name)
        else:
            image[name] = load(value)
    for place in table.json:
        name = table.columns[place][0]
        value = row[place]
        if isinstance(value, bytes) and not _readable(image[name]):
            lost.add(name)
            del image[name]
    return image


def _readable(value: object) -> bool:
    """Whether whoever decodes the event can read this JSON in it."""
    text = orjson.dumps(value)
    try:
        read(b"[" * _ENVELOPE_DEPTH + text + b"]" * _ENVELOPE_DEPTH)
    except JsonError:
        return False
    return True


def _fitting(
    table: Table,
    op: str,
    data: Image,
    old: Image | None,
    changed: tuple[str, ...],
    lost: set[str],
    moment: Moment,
    most_bytes: int,
) -> bytes:
    """The event's body, without the columns for which there is no room."""
    same = old is data
    while True:
        written = _json(data)
        before = None if old is None else written if same else _json(old)
        body = encode(_event(table, op, written, before, changed, lost, moment))
        excess = len(body) - most_bytes
        crowd = _values(body) - MAX_VALUES if len(body) > MAX_VALUES else 0
        if excess <= 0 and crowd <= 0:
            return body
        images = [data] if old is None else [data, old]
        heaviest = _heaviest(images, len, excess) if excess > 0 else _heaviest(images, _values, crowd)
        if not heaviest and not changed:
            raise ProtocolError(f"the names of the columns of {table.relation.table!r} alone are too many for an event")
        if not heaviest:
            changed = ()  # only names are left, and they are too many to be told twice
        lost |= heaviest
        data = {name: value for name, value in data.items() if name not in heaviest}
        if old is not None:
            old = {name: value for name, value in old.items() if name not in heaviest}


def _heaviest(images: list[Image], weigh: Callable[[bytes], int], excess: int) -> set[str]:
    """The columns to leave out, heaviest first, until `excess` is gone."""
    weights: dict[str, int] = {}
    for image in images:
        for name, value in image.items():
            weights[name] = weights.get(name, 0) + weigh(orjson.dumps(value))
    return _first(weights, excess)


def _first(weights: Mapping[Column, int], excess: int) -> set[Column]:
    """The heaviest, until `excess` is gone."""
    chosen: set[Column] = set()
    for column in sorted(weights, key=lambda column: -weights[column]):
        if excess <= 0:
            break
        chosen.add(column)
        excess -= weights[column]
    return chosen


def _values(text: bytes) -> int:
    """As `events.json_text` counts them."""
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def _json(image: Image) -> Json:
    return Json(orjson.dumps(image).decode(), None)


def _event(
    table: Table,
    op: str,
    data: Json,
    old: Json | None,
    changed: tuple[str, ...],
    lost: set[str],
    moment: Moment,
) -> Event:
    relation, position = table.relation, moment.position
    return Event(
        id=position.event_id,
        type=table.types[op],
        project_id=table.project_id,
        time=moment.time,
        source=SOURCE,
        data=data,
        cause=moment.cause,
        change=Change(
            op=op,
            schema=relation.schema,
            table=relation.table,
            old=old,
            changed=changed,
            unavailable=tuple(name for name, _ in table.columns if name in lost) if lost else (),
            lsn=lsn_text(position.commit_lsn),
        ),
    )
