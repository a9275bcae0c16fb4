"""Tables as their events tell them: replayed in the order of the stream, and compared with the tables.

A change that is lost, doubled, torn out of its transaction or out of its place, or of other content, leaves either a
row that does not follow from the one before it, or tables that differ. One that was rolled back does the same.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from server.cdc.position import Position
from server.events.envelope import Event

Table = tuple[str, str]
"""A project's id and the name of its table."""


class Replay:
    """`keys` names the column by which rows of a table are known; where there is none, there are only INSERTs."""

    def __init__(self, keys: Mapping[str, str | None]) -> None:
        self._keys = keys
        self._rows: dict[Table, dict[Any, Any]] = defaultdict(dict)
        self._loose: dict[Table, Counter[str]] = defaultdict(Counter)
        self._last: Position | None = None
        self.counts: Counter[tuple[str, str]] = Counter()
        """Events by project and type."""
        self.ids: dict[tuple[str, str], set[str]] = defaultdict(set)
        """Of events, likewise."""
        self.problems: list[str] = []

    def take(self, event: Event) -> None:
        """The next event of the stream, of the family cdc."""
        kind = (event.project_id, event.type)
        self.counts[kind] += 1
        if event.id in self.ids[kind]:
            self.problems.append(f"{event.id} is there twice")
        self.ids[kind].add(event.id)
        change, position = event.change, position_of(event.id)
        if change is None or position is None:
            self.problems.append(f"{event.type} {event.id}: {event.data.text}")
            return
        if not follows(position, self._last):
            self.problems.append(f"{position} comes after {self._last}")
        self._last = position
        old = None if change.old is None else change.old.value
        self._change((event.project_id, change.table), change.op, event.data.value, old, event.id)

    def _change(self, table: Table, op: str, data: Any, old: Any, event_id: str) -> None:
        key, rows = self._keys.get(table[1]), self._rows[table]
        if op == "TRUNCATE":
            rows.clear()
            self._loose[table].clear()
            return
        if key is None:
            if op != "INSERT":
                self.problems.append(f"{event_id} is {op} of {table[1]}")
            self._loose[table][spelled(data)] += 1
            return
        before = rows.pop((data if old is None else old)[key], None)
        if before != old:
            self.problems.append(f"{event_id}, {op} of {table[1]}: the row before is {old}, and it was {before}")
        if op != "DELETE":
            rows[data[key]] = data

    def compare(self, table: Table, rows: Iterable[Any]) -> None:
        """With the rows that are in the table now."""
        told = self._loose[table] + Counter(spelled(row) for row in self._rows[table].values())
        there = Counter(spelled(row) for row in rows)
        self.problems += [f"{table[1]} has {row}, of which no event tells" for row in (there - told).elements()]
        self.problems += [f"{table[1]} has no {row}, of which an event tells" for row in (told - there).elements()]

    def expect(self, project_id: str, counts: Mapping[str, int]) -> None:
        """As many events of each type."""
        for event_type, count in counts.items():
            if (found := self.counts[project_id, event_type]) != count:
                self.problems.append(f"there are {found} {event_type}, not {count}")


def spelled(row: Any) -> str:
    return json.dumps(row, sort_keys=True)


def position_of(event_id: str) -> Position | None:
    """That the id of a change is made of."""
    slot, _, place = event_id.partition("-")
    lsn, _, change = place.partition("-")
    return Position(slot, int(lsn, 16), int(change)) if change else None


def follows(position: Position, last: Position | None) -> bool:
    """Whether nothing can be missing between the two: the next change of a transaction, or the first of a later one."""
    if last is not None and position.slot != last.slot:
        return False
    if last is not None and position.commit_lsn == last.commit_lsn:
        return position.change == last.change + 1
    return position.change == 1 and (last is None or position.commit_lsn > last.commit_lsn)
