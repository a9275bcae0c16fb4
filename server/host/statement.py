"""One statement of a tenant: its parameters' types, its rows as JSON within the caps, its errors as functions see them.

types of the values ─▶ execute ─▶ rows within the caps ─▶ commit, or the block goes on
                          │
                          └─ no operator or cast for a parameter's type: ask Postgres which, execute again
"""

import re
from collections.abc import Sequence
from typing import Final

from engines.contract import HostError
from server.host import parameters
from server.postgres.session import Session, SqlError
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

MISTYPED: Final = frozenset(("42883", "42804", "42846", "42725"))
UNTYPED: Final = "42P18"


async def run(session: Session, sql: str, values: Sequence[object], before: Sequence[bytes]) -> bytes:
    """Run it, and commit."""
    types = [parameters.literal_type(value) for value in values]
    try:
        return await _committed(session, sql, types, values, before)
    except SqlError as why:
        if not _mistyped(why) or not values:
            raise
        refused = why
    return await _committed(session, sql, await _inferred(session, sql, types, refused), values, before)


async def run_in_block(session: Session, sql: str, values: Sequence[object]) -> bytes:
    """Run it within the session's block; `refuse_control` first. SqlError, and the session is idle; after HostError
    abandon it."""
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


async def _committed(
    session: Session, sql: str, types: Sequence[int], values: Sequence[object], before: Sequence[bytes]
) -> bytes:
    rows = _Rows()
    if before:
        session.begin(*before)
    tag = await session.execute(sql, types, _texts(types, values), rows.columns, rows.add)
    if tag in WITHOUT_EFFECT:
        raise HostError(
            "sql_unsupported",
            f"atlas.db.query: {tag} would have no effect, every call is a transaction of its own. "
            "For several statements in one transaction use atlas.db.transaction",
        )
    await session.commit()
    return rows.json()


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
