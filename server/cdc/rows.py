"""A changed row as an event: values typed by their columns, what is missing named, never too large. Pure.

    op         data              old                  changed          unavailable
    INSERT     the row           -                    -                -
    UPDATE     the row after     the row before       what differs     neither logged now nor in the row before
    DELETE     the row before    the row before       -                not part of a key that alone was logged
    TRUNCATE   null              -                    -                -

A value is left out and its column named in `unavailable`, too, when it was too large to be read, when its JSON is
nested deeper or has longer numbers than events may, or when the event would not fit into a message with it: then the
largest columns go first, out of `data` and `old` alike. A value that is not there is never null.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import orjson

from server.cdc.pgoutput import Delete, Insert, Missing, ProtocolError, Relation, Row, Update, Value
from server.cdc.position import Position, lsn_text
from server.events.envelope import OPERATIONS, Change, Event, encode
from server.events.json_text import MAX_DEPTH, MAX_VALUES, Json, JsonError, read
from server.events.types import escape
from server.postgres import wire
from server.postgres.tenants import project_of
from server.postgres.values import Loader, loaders

SOURCE: Final = "postgres"
NULL: Final = Json("null", None)

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_JSON_TYPES: Final = frozenset((114, 3802, 199, 3807))
"""json, jsonb, and arrays of them."""

_ENVELOPE_DEPTH: Final = 2
_PLAIN_JSON_BYTES: Final = MAX_DEPTH - _ENVELOPE_DEPTH
"""Shorter JSON can neither be nested too deep nor have too long a number."""


@dataclass(frozen=True, slots=True)
class Table:
    """`types`: of its events, by operation."""

    project_id: str
    relation: Relation
    columns: tuple[tuple[str, Loader], ...]
    json: tuple[int, ...]
    """Places of the columns that hold JSON."""
    types: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Moment:
    """When and where its transaction was committed."""

    position: Position
    commit_us: int


Image = dict[str, object]
"""A row as JSON, by column; what is missing is not in it."""


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
        types={op: f"cdc.{op}.{escape(relation.table)}" for op in OPERATIONS},
    )


def changed_row(table: Table, message: Insert | Update | Delete, moment: Moment, *, most_bytes: int) -> bytes:
    """The event's body, at most `most_bytes` long. ProtocolError when the row is not of the table."""
    lost: set[str] = set()
    match message:
        case Insert(_, new):
            return _fitting(table, "INSERT", _image(table, new, lost), None, (), lost, moment, most_bytes)
        case Delete(_, old, whole):
            before = _image(table, old if whole else _key_alone(table, old), lost)
            return _fitting(table, "DELETE", before, before, (), lost, moment, most_bytes)
        case Update(_, None, _, new):
            return _fitting(table, "UPDATE", _image(table, new, lost), None, (), lost, moment, most_bytes)
        case Update(_, old, whole, new):
            assert old is not None
            _require_columns(table, old)
            _require_columns(table, new)
            if not whole:
                key = _key_alone(table, old)
                changed = tuple(
                    column.name
                    for column, before, after in zip(table.relation.columns, old, new, strict=True)
                    if column.key and before != after
                )
                # what else changed is not known, and what is missing in a key is not missing in the row
                image = _image(table, new, lost)
                return _fitting(table, "UPDATE", image, _image(table, key, set()), changed, lost, moment, most_bytes)
            after = [
                was if now is Missing.UNCHANGED else now for was, now in zip(old, new, strict=True)
            ]  # FULL: the old row has what was not logged again
            changed = tuple(
                name for (name, _), was, now in zip(table.columns, old, new, strict=True) if _differ(was, now)
            )
            return _fitting(
                table, "UPDATE", _image(table, after, lost), _image(table, old, lost), changed, lost, moment, most_bytes
            )


def truncated(table: Table, moment: Moment) -> bytes:
    return encode(_event(table, "TRUNCATE", NULL, None, (), set(), moment))


def _differ(was: Value, now: Value) -> bool:
    """What was too large to be read was written anew; else it would be marked as unchanged."""
    return now is not Missing.UNCHANGED and (now is Missing.OMITTED or was != now)


def _key_alone(table: Table, row: Row) -> Row:
    """Of a row with only its key; the rest is null in it, and unknown."""
    _require_columns(table, row)
    return [
        value if column.key else Missing.UNCHANGED for column, value in zip(table.relation.columns, row, strict=True)
    ]


def _require_columns(table: Table, row: Row) -> None:
    if len(row) != len(table.columns):
        raise ProtocolError(f"a row of {len(row)} columns in a table of {len(table.columns)}")


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
        if isinstance(value, bytes) and len(value) > _PLAIN_JSON_BYTES and not _readable(image[name]):
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
    chosen: set[str] = set()
    for name in sorted(weights, key=lambda name: -weights[name]):
        if excess <= 0:
            break
        chosen.add(name)
        excess -= weights[name]
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
        time=_EPOCH + timedelta(microseconds=moment.commit_us),
        source=SOURCE,
        data=data,
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
