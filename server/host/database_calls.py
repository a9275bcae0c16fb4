"""`atlas.db.*`: what a run asks of its database, each statement a transaction of its own or all of them one."""

from typing import Final

from engines.contract import HostError
from server.events import cause
from server.host import arguments, parameters
from server.host.database import Database
from server.host.origin import Origin
from server.host.publishing import Publishing
from server.host.run_transaction import Part, RunTransaction
from server.host.statement import MAX_SQL_BYTES, changes_rows
from server.host.transaction import NAME, Numbered, Transaction, Transactions, require_brief
from server.postgres.effects import Effects

MAX_NAME_CHARS: Final = 100
"""Of a name given as exactlyOnce."""


class DatabaseCalls:
    """Of one run. Arguments and answers are JSON text; see the table in `server.host.api`."""

    def __init__(
        self,
        database: Database,
        project_id: str,
        origin: Origin | None,
        whole: RunTransaction | None,
        publishing: Publishing | None,
    ) -> None:
        """`whole`: what all of its statements are part of."""
        self._database = database
        self._project_id = project_id
        self._origin = origin
        self._whole = whole
        self._publishing = publishing
        self._effects = database.effects(project_id)
        self._transactions = Transactions()

    async def query(self, args: bytes, *, timeout_ms: int) -> bytes:
        name = "atlas.db.query"
        sql, params = arguments.read(name, args, least=1, most=2)
        text, values = _statement(name, sql, params)
        if self._whole is not None:
            parameters.check(values)
            return await self._whole.query(text, values)
        before, cause = causes_of(self._effects, self._origin)
        if cause and changes_rows(text):
            before = cause
        return await self._database.query(self._project_id, text, values, timeout_ms=timeout_ms, before=before)

    async def open(self, args: bytes, *, timeout_ms: int) -> bytes:
        """As long as the transaction lasts."""
        number, options = arguments.read(NAME, args, least=1, most=2)
        once = arguments.options(NAME, "options", options, frozenset(("exactly_once",))).get("exactly_once")
        if once is not None and not (isinstance(once, str) and len(once) <= MAX_NAME_CHARS and once.isprintable()):
            raise arguments.invalid(NAME, f"exactlyOnce must be true, or a name of at most {MAX_NAME_CHARS} characters")
        mark = self._origin.mark(once) if once is not None and self._origin else None
        opened = arguments.whole(NAME, "number", number)
        if self._whole is not None:
            part = Part(self._whole, mark)
            self._transactions.add(opened, part)
            await part.hold()
            return b"null"
        before, cause = causes_of(self._effects, self._origin)
        transaction = Transaction(self._effects, before, mark, cause=cause)
        self._transactions.add(opened, transaction)
        await transaction.hold(self._database, self._project_id, timeout_ms=timeout_ms)
        return b"null"

    async def begin(self, args: bytes) -> bytes:
        (number,) = arguments.read(NAME, args, least=1, most=1)
        return await self._numbered(number).begun()

    async def query_within(self, args: bytes) -> bytes:
        name = "tx.query"
        number, sql, params = arguments.read(name, args, least=2, most=3)
        text, values = _statement(name, sql, params)
        parameters.check(values)
        return await self._numbered(number).query(text, values)

    async def commit(self, args: bytes) -> bytes:
        number, told = arguments.read(NAME, args, least=1, most=2)
        transaction = self._numbered(number)
        answer = arguments.json_text(NAME, "what the callback answers", told)
        if transaction.is_once:
            require_brief(answer)
        await transaction.commit(answer.decode())
        if transaction.published and self._publishing is not None:
            await self._publishing.wake()
        return b"null"

    async def rollback(self, args: bytes) -> bytes:
        (number,) = arguments.read(NAME, args, least=1, most=1)
        await self._numbered(number).rollback()
        return b"null"

    async def publish(self, name: str, number: object, event: str) -> None:
        """In the transaction of that number, of the whole run, or the one that is open. `event`: an encoded envelope;
        `name`: what errors call who asks."""
        transaction = self._numbered(number) if number is not None else self._whole or self._transactions.open
        if transaction is None:
            raise HostError("no_transaction", f"{name}: transactional needs an atlas.db.transaction that is open")
        await transaction.publish(event)

    def _numbered(self, number: object) -> Numbered:
        return self._transactions.get(arguments.whole(NAME, "number", number))


def causes_of(effects: Effects, origin: Origin | None) -> tuple[list[bytes], list[bytes]]:
    """The cause of what a run changes, and where it goes: ahead of whatever may change rows in runs that an event
    started, else ahead only of what says so, which leaves runs that cannot be in a circle what needs a transaction of
    its own."""
    if origin is None:
        return [], []
    told = [effects.cause(cause.told(origin.cause))]
    return ([], told) if origin.event_id is None else (told, [])


def _statement(name: str, sql: object, params: object) -> tuple[str, list[object]]:
    text = arguments.string(name, "sql", sql)
    if "\0" in text:
        raise arguments.invalid(name, "sql contains the character U+0000")
    if not text.strip():
        raise arguments.invalid(name, "sql is empty")
    if len(text.encode()) > MAX_SQL_BYTES:
        raise arguments.invalid(name, f"sql is longer than {MAX_SQL_BYTES} bytes; pass data as params")
    return text, [] if params is None else arguments.array(name, "params", params)
