"""One statement of a tenant: its parameters' types, its rows as JSON within the caps, its errors as functions see them.

types of the values ─▶ execute ─▶ rows within the caps ─▶ commit, or the block goes on
                          │
                          └─ no operator or cast for a parameter's type: ask Postgres which, execute again
"""

import re
from collections.abc import Callable, Sequence
from typing import Final

from engines.contract import HostError
from server.host import parameters
from server.postgres.channel import SqlError
from server.postgres.session import Session
from server.postgres.values import Loader, as_object, loaders
from server.postgres.wire import Column

MAX_ROWS: Final = 10_000
MAX_RESULT_BYTES: Final = 4 * 1024 * 1024
MAX_SQL_BYTES: Final = 1024 * 1024
MAX_ERROR_CHARS: Final = 2_000

WITHOUT_EFFECT: Final = frozenset(
    (
        *("BEGIN", "START TRANSACTION", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "PREPARE TRANSACTION"),
        *("SET", "RESET", "LISTEN", "UNLISTEN", "NOTIFY", "PREPARE", "DEALLOCATE", "DEALLOCATE ALL"),
        *("DECLARE CURSOR", "CLOSE CURSOR", "LOCK TABLE", "DISCARD ALL", "LOAD", "SET CONSTRAINTS"),
    )
)
"""Command tags of what would end with the call. Refused, so that nobody believes to have a transaction."""

IN_BLOCK: Final = WITHOUT_EFFECT - {"LOCK TABLE", "SET CONSTRAINTS"}
"""Those that are refused within a transaction of several statements as well."""

CONTROL: Final = re.compile(
    r"(?:begin|start|commit|end|rollback|abort|savepoint|release|prepare|discard)\b", re.ASCII | re.IGNORECASE
)
"""First words of what would end a transaction, or the session's state: in a block it must not even be tried."""

READS: Final = re.compile(r"(?:select|with|table|values|show|explain)\b", re.ASCII | re.IGNORECASE)
WRITES: Final = re.compile(r"\b(?:insert|update|delete|merge|into|share)\b", re.ASCII | re.IGNORECASE)
"""First words of what may be a read, and words without which it probably is one. A guess: it is checked."""

CHANGES: Final = re.compile(r"(?:insert|update|delete|merge|truncate)\b", re.ASCII | re.IGNORECASE)
"""First words of what can do nothing to a transaction but change rows in it."""

WITH: Final = re.compile(r"with\b", re.ASCII | re.IGNORECASE)

MAX_WRITERS: Final = 500
MAX_WRITER_CHARS: Final = 2_000

MISTYPED: Final = frozenset(("42883", "42804", "42846", "42725"))
UNTYPED: Final = "42P18"


class Writers:
    """Statements that looked like reads and wrote, as far as remembered."""

    def __init__(self) -> None:
        self._known: dict[str, None] = {}

    def add(self, sql: str) -> None:
        if len(self._known) >= MAX_WRITERS:
            del self._known[next(iter(self._known))]
        if len(sql) <= MAX_WRITER_CHARS:
            self._known[sql] = None

    def is_read(self, sql: str) -> bool:
        """Whether it is worth a try without what goes before writes."""
        reads = READS.match(sql, _first_word(sql)) is not None and WRITES.search(sql) is None
        return reads and sql not in self._known


async def run(session: Session, sql: str, values: Sequence[object], before: Sequence[bytes], writers: Writers) -> bytes:
    """Run it, and commit. `before` goes ahead of what writes; a read is spared it, for it would make it a commit to
    disk. What looked like a read and wrote is rolled back, and run again."""
    plain = changes_rows(sql)
    if before and not plain and writers.is_read(sql):
        session.begin()
        rows = await _execute(session, sql, values, session.begin)
        if not await _has_written(session):
            await session.commit()
            return rows
        await session.rollback()
        writers.add(sql)

    def begin() -> None:
        if before and plain:
            session.ahead(*before)
        elif before:
            session.begin(*before)

    begin()
    rows = await _execute(session, sql, values, begin)
    await session.commit()
    return rows


async def run_in_block(session: Session, sql: str, values: Sequence[object], before: Sequence[bytes] = ()) -> bytes:
    """Run it within the session's block, `before` ahead of it; `refuse_control` first. SqlError, and the session is
    idle; after HostError abandon it."""
    session.ahead(*before)
    types = [parameters.literal_type(value) for value in values]
    if values:  # an error would end the block, so types are looked at first
        try:
            await session.describe(sql, types)
        except SqlError as why:
            if _mistyped(why):
                types = await _inferred(session, sql, types, why)
    rows = _Rows()
    tag = await session.execute(sql, types, _texts(types, values), rows.columns, rows.add)
    if tag in IN_BLOCK:
        raise HostError(
            "sql_unsupported",
            f"atlas.db.transaction: {tag} is refused; the transaction ends with its callback, the session is not its "
            "own. Rolled back",
        )
    return rows.json()


def changes_rows(sql: str) -> bool:
    """Whether it says by its first word that it changes rows, and so can do nothing else to its transaction. What does
    it by a function that it calls, or in a block of code, does not say so."""
    at = _first_word(sql)
    if CHANGES.match(sql, at) is not None:
        return True
    return WITH.match(sql, at) is not None and WRITES.search(sql, at) is not None


def refuse_control(sql: str) -> None:
    """HostError for a statement that begins, ends or divides a transaction."""
    found = CONTROL.match(sql, _first_word(sql))
    if found:
        raise HostError(
            "sql_unsupported",
            f"atlas.db: {found[0].upper()} is refused; several statements in one transaction are an "
            "atlas.db.transaction, which commits when its callback is done",
        )


def _first_word(sql: str) -> int:
    """Where it begins: after white space, semicolons and comments, as Postgres reads them."""
    at = 0
    while found := _BETWEEN.match(sql, at):
        at = found.end()
        if not sql.startswith("/*", at):
            return at
        depth = 0
        for mark in _NESTED.finditer(sql, at):
            depth += 1 if mark[0] == "/*" else -1
            if not depth:
                at = mark.end()
                break
        else:
            break
    return len(sql)


_BETWEEN: Final = re.compile(r"(?:[\s;]|--[^\r\n]*)*")
_NESTED: Final = re.compile(r"/\*|\*/")


class _Rows:
    """Collects rows as JSON, up to the caps."""

    def __init__(self) -> None:
        self._loaders: list[tuple[str, Loader]] = []
        self._rows: list[bytes] = []
        self._bytes = 0

    def columns(self, columns: list[Column]) -> None:
        self._loaders = loaders(columns)

    def add(self, row: list[bytes | None]) -> None:
        if len(self._rows) >= MAX_ROWS:
            raise HostError(
                "rows_limit",
                f"atlas.db.query: more than {MAX_ROWS} rows, {MAX_ROWS} are allowed; add a LIMIT. Rolled back",
            )
        encoded = as_object(self._loaders, row)
        self._bytes += len(encoded) + 1
        if self._bytes > MAX_RESULT_BYTES:
            raise too_many_bytes()
        self._rows.append(encoded)

    def json(self) -> bytes:
        return b"[" + b",".join(self._rows) + b"]"


async def _execute(session: Session, sql: str, values: Sequence[object], begin: Callable[[], None]) -> bytes:
    """Run it, and leave it to be committed. `begin` opens the block again after a refusal, if there was one."""
    types = [parameters.literal_type(value) for value in values]
    try:
        return await _rows_of(session, sql, types, values)
    except SqlError as why:
        if not _mistyped(why) or not values:
            raise
        refused = why
    types = await _inferred(session, sql, types, refused)
    begin()
    return await _rows_of(session, sql, types, values)


async def _rows_of(session: Session, sql: str, types: Sequence[int], values: Sequence[object]) -> bytes:
    rows = _Rows()
    tag = await session.execute(sql, types, _texts(types, values), rows.columns, rows.add)
    if tag in WITHOUT_EFFECT:
        raise HostError(
            "sql_unsupported",
            f"atlas.db.query: {tag} would have no effect, every call is a transaction of its own. "
            "For several statements in one transaction use atlas.db.transaction",
        )
    return rows.json()


async def _has_written(session: Session) -> bool:
    """Whether the transaction has an id, without which it cannot have changed a row."""
    found: list[list[bytes | None]] = []
    await session.execute(
        "SELECT pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL", (), (), lambda _: None, found.append
    )
    return found != [[b"f"]]


async def _inferred(session: Session, sql: str, types: Sequence[int], refused: SqlError) -> list[int]:
    """The types of the parameters where Postgres did not take the literal ones, and why."""
    if refused.sqlstate == UNTYPED:
        return [found or parameters.TEXT for found in types]
    try:
        return await session.describe(sql, [parameters.UNKNOWN] * len(types))
    except SqlError:
        raise refused from None  # says what is wrong in terms of the values


def _texts(types: Sequence[int], values: Sequence[object]) -> list[bytes | None]:
    return [parameters.text(value, oid) for value, oid in zip(values, types, strict=True)]


def _mistyped(error: SqlError) -> bool:
    """Refused while the statement itself was analysed, before anything ran."""
    known = error.sqlstate in MISTYPED or error.sqlstate == UNTYPED
    return known and "W" not in error.fields and ("P" in error.fields or error.sqlstate == UNTYPED)


def too_many_bytes() -> HostError:
    return HostError(
        "bytes_limit",
        f"atlas.db.query: the rows are more than {MAX_RESULT_BYTES} bytes as JSON, {MAX_RESULT_BYTES} are allowed; "
        "select fewer columns or add a LIMIT. Rolled back",
    )


def sql_error(error: SqlError) -> HostError:
    """What the function is told of it."""
    fields = error.fields
    place = f", at character {fields['P']}" if "P" in fields else ""
    message = f"{fields.get('M', 'unknown error')} (SQLSTATE {error.sqlstate}{place})"
    for label, key in (("Detail", "D"), ("Hint", "H")):
        if key in fields:
            message += f"\n{label}: {fields[key]}"
    return HostError(f"sql_{error.sqlstate}", message[:MAX_ERROR_CHARS])
