"""`atlas.db.transaction`: several statements of a run in one transaction, on one connection.

    hold ─▶ lease ─▶ BEGIN, cause, mark ─▶ open ── query, publish, … ── commit ─▶ committed
                                            │                        └─ rollback ─▶ rolled back
                                            └─ an error of a statement, the end of the run, MAX_MS ─▶ rolled back

`hold` is a host call that lasts as long as the transaction, so that a run that ends takes its transaction with it. Its
task alone uses the session; the other calls leave it a step each and wait for what comes of it. An error of a statement
ends the transaction, as it does in Postgres; what follows is told so.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from engines.contract import HostError
from server.host.database import Database
from server.host.statement import changes_rows, refuse_control, run_in_block, sql_error
from server.postgres import effects
from server.postgres.channel import ConnectionLost, SqlError
from server.postgres.effects import Effects
from server.postgres.session import Session

MAX_MS: Final = 10_000
"""From its begin to its end."""

MAX_TOLD_BYTES: Final = 64 * 1024
"""Of what an exactlyOnce transaction answers, as JSON text; it is kept with the mark."""

NAME: Final = "atlas.db.transaction"


@dataclass(slots=True)
class _Step:
    """What a call wants done; `done` has what came of it. After one with `then` it is over, and later calls are told
    that."""

    work: Callable[[Session], Awaitable[bytes]]
    then: HostError | None = None
    done: asyncio.Future[bytes] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def succeed(self, answer: bytes) -> None:
        if not self.done.done():  # else its call was cancelled, with the run
            self.done.set_result(answer)

    def fail(self, why: HostError) -> None:
        if not self.done.done():
            self.done.set_exception(why)


class Transaction:
    """`before`: statements that go ahead of the first, in the same round trip; `cause`: those that go ahead of the
    first that says that it changes rows. `mark`: the key of what is to be done once, None for what is done each time;
    `name`: what errors call it."""

    def __init__(
        self,
        effects: Effects,
        before: Sequence[bytes],
        mark: str | None,
        name: str = NAME,
        *,
        cause: Sequence[bytes] = (),
    ) -> None:
        self._effects = effects
        self._before = before
        self._cause = cause
        self._mark = mark
        self._name = name
        self._steps: asyncio.Queue[_Step] = asyncio.Queue()
        self._begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._why: HostError | None = None
        self.published = False
        self.found: bytes | None = None
        """JSON text: what was told with its mark before, so that it is over."""

    @property
    def is_open(self) -> bool:
        return self._why is None

    @property
    def is_once(self) -> bool:
        return self._mark is not None

    async def hold(self, database: Database, project_id: str, *, timeout_ms: int) -> None:
        """As long as it is open, at most MAX_MS. Raises nothing but CancelledError, and faults of ours."""
        allowed_ms = min(MAX_MS, timeout_ms)
        try:
            async with asyncio.timeout(allowed_ms / 1000) as timer, database.session(project_id) as session:
                await self._begin(session)
                while self._why is None:
                    step = await self._steps.get()
                    if step.then is not None:
                        timer.reschedule(None)  # a commit that was sent is waited for
                    await self._take(session, step)
        except TimeoutError:
            self._why = HostError(
                "transaction_timeout", f"{self._name}: open for {allowed_ms} ms, which is the most; rolled back"
            )
        except HostError as why:
            if self._why is None:
                self._fail_all(why)
                self._why = self._rolled_back(why)
        finally:
            self._fail_all(self._why or ended())

    async def begun(self) -> bytes:
        """Once it is open: null; or `{"value": …}`, what was told with its mark, and it is over."""
        await asyncio.shield(self._begun)
        return b"null" if self.found is None else b'{"value":' + self.found + b"}"

    async def query(self, sql: str, values: Sequence[object]) -> bytes:
        """As `Database.query`; what it did is seen by others once this is committed."""
        refuse_control(sql)
        before: Sequence[bytes] = ()
        if self._cause and changes_rows(sql):
            before, self._cause = self._cause, ()
        return await self._do(_Step(lambda session: run_in_block(session, sql, values, before)))

    async def publish(self, event: str) -> None:
        """`event`: an encoded envelope of this project. HostError: outbox_full while too many of the project wait."""
        self.published = True
        try:
            await self._do(_Step(lambda session: first_value(session, self._effects.publish(event))))
        except HostError as why:
            if why.code == f"sql_{effects.FULL}":
                raise HostError("outbox_full", f"tx.publish: {why.message}") from None
            raise

    async def mark(self, key: str) -> bytes:
        """Set another mark: what was told with it, or b"" when it was not there."""
        return await self._do(_Step(lambda session: first_value(session, self._effects.mark(key))))

    async def tell(self, key: str, told: str) -> None:
        """`told`: JSON text, kept with that mark."""
        await self._do(_Step(lambda session: first_value(session, self._effects.tell(key, told))))

    async def commit(self, told: str) -> None:
        """HostError, and nothing of it has happened; or `commit_unknown`. `told`: JSON text, kept with its own mark."""
        await self._do(_Step(lambda session: self._commit(session, told), then=ended()))

    async def rollback(self, then: HostError | None = None) -> None:
        """Also of one that is over. `then`: what later calls are told."""
        if self._why is None:
            await self._do(_Step(self._rollback, then=then or ended()))

    async def _begin(self, session: Session) -> None:
        session.begin(*self._before)
        if self._mark is None:
            self._begun.set_result(None)
            return
        try:
            answer = await first_value(session, self._effects.mark(self._mark))
        except SqlError as why:
            self._why = sql_error(why)
            return
        if answer:
            await session.rollback()
            self.found = answer
            self._why = ended()
        self._begun.set_result(None)

    async def _take(self, session: Session, step: _Step) -> None:
        try:
            answer = await step.work(session)
        except SqlError as why:  # the session is rolled back and clean
            refused = sql_error(why)
            step.fail(refused)
            self._why = self._rolled_back(refused)
        except HostError as why:
            step.fail(why)
            self._why = why if step.then is not None else self._rolled_back(why)
            raise self._why from None
        except BaseException:
            self._steps.put_nowait(step)  # `hold` says why
            raise
        else:
            step.succeed(answer)
            self._why = step.then

    async def _commit(self, session: Session, told: str) -> bytes:
        if self._mark is not None:
            await first_value(session, self._effects.tell(self._mark, told))
        try:
            await session.commit()
        except ConnectionLost:
            raise HostError(
                "commit_unknown",
                f"{self._name}: the connection to the database was lost during the commit; it may have happened or not",
            ) from None
        return b"null"

    async def _rollback(self, session: Session) -> bytes:
        await session.rollback()
        return b"null"

    def require_open(self) -> None:
        """HostError when it is over, and why."""
        if self._why is not None:
            raise self._why

    async def _do(self, step: _Step) -> bytes:
        self.require_open()
        self._steps.put_nowait(step)
        return await step.done

    def _fail_all(self, why: HostError) -> None:
        self._why = why
        if not self._begun.done():
            self._begun.set_exception(why)
            self._begun.exception()  # perhaps nobody asks
        while not self._steps.empty():
            self._steps.get_nowait().fail(why)

    def _rolled_back(self, why: HostError) -> HostError:
        return HostError(
            "transaction_rolled_back", f"{self._name}: rolled back, because a statement failed: {why.message}"
        )


class Numbered(Protocol):
    """What a run opens by number: a `Transaction`, or a part of the whole run's."""

    published: bool

    @property
    def is_open(self) -> bool: ...
    @property
    def is_once(self) -> bool: ...

    async def begun(self) -> bytes: ...
    async def query(self, sql: str, values: Sequence[object]) -> bytes: ...
    async def publish(self, event: str) -> None: ...
    async def commit(self, told: str) -> None: ...
    async def rollback(self) -> None: ...


class Transactions:
    """Of one run: one at a time, so that a run holds one connection and cannot wait for itself."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._last: Numbered | None = None

    @property
    def open(self) -> Numbered | None:
        return self._last if self._last is not None and self._last.is_open else None

    def add(self, number: int, transaction: Numbered) -> None:
        """HostError while another is open."""
        if self.open is not None:
            raise HostError(
                "transaction_open",
                f"{NAME}: a transaction of this run is open already; there are none within another, "
                "so use the open one's tx, or await its end first",
            )
        self._number, self._last = number, transaction

    def get(self, number: int) -> Numbered:
        """The latest, open or not. HostError for any other."""
        if self._last is None or number != self._number:
            raise ended()
        return self._last


def ended() -> HostError:
    return HostError("transaction_ended", f"{NAME}: this transaction is over; tx is for use within its callback")


async def first_value(session: Session, statement: effects.Statement) -> bytes:
    """The first value of its last row, b"" when that is null. SqlError."""
    sql, values = statement
    found: list[bytes | None] = []

    def keep(row: list[bytes | None]) -> None:
        found.append(row[0])

    await session.execute(sql, effects.TYPES, values, lambda _: None, keep)
    return (found[-1] if found else None) or b""


def require_brief(told: bytes) -> None:
    """HostError for an answer that is too much to be kept with a mark."""
    if len(told) > MAX_TOLD_BYTES:
        raise HostError(
            "result_too_large",
            f"{NAME}: what the callback answers has {len(told)} bytes as JSON, {MAX_TOLD_BYTES} are allowed with "
            "exactlyOnce",
        )
