"""The transaction of a run whose function is `exactly_once`: all that the run does in its database.

    told ─▶ what an earlier attempt answered: nothing is run
      └───▶ the run ── its first call ─▶ BEGIN, cause, mark ── query, publish, … ── commit ─▶ answer told, COMMIT
                                                                               └─ close ─▶ rolled back

It is the server that opens and ends it, never the run. An error of a statement ends it as well; what follows is told
so, and so is the commit, which is also refused when the run has ended without waiting for a statement. An
`atlas.db.transaction` within is a part of it that cannot fail alone.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from engines.contract import HostError
from server.host.database import Database
from server.host.publishing import Publishing
from server.host.transaction import MAX_MS, Transaction, ended, first_value
from server.log import logger
from server.tasks import end_task

log = logger("host")

NAME: Final = "The transaction of this exactly_once function"
TOLD_S: Final = 5.0
ROLLBACK_S: Final = 1.0
"""For a rollback that leaves the connection good; then it is cut."""


class RunTransaction:
    """`before` and `cause` as of `Transaction`; `mark`: the key of all that the run does, None of a run that is never
    repeated."""

    def __init__(
        self,
        database: Database,
        project_id: str,
        *,
        before: Sequence[bytes],
        cause: Sequence[bytes] = (),
        mark: str | None,
        publishing: Publishing | None,
    ) -> None:
        self._database = database
        self._project_id = project_id
        self._effects = database.effects(project_id)
        self._before = before
        self._cause = cause
        self._mark = mark
        self._publishing = publishing
        self._transaction: Transaction | None = None
        self._holding: asyncio.Task[None] | None = None
        self._cut = False  # a call of it was cancelled: the run has not waited for it

    @property
    def earlier(self) -> bytes | None:
        """What another attempt told, which was seen only when this one wanted to set its mark."""
        return None if self._transaction is None else self._transaction.found

    async def told(self) -> bytes | None:
        """What an earlier attempt told. HostError: unavailable."""
        if self._mark is None:
            return None
        try:
            async with asyncio.timeout(TOLD_S), self._database.session(self._project_id) as session:
                found = await first_value(session, self._effects.told(self._mark))
                await session.commit()
        except TimeoutError:
            raise HostError("unavailable", f"{NAME}: the database did not answer in time") from None
        return found or None

    async def opened(self) -> Transaction:
        """Opened by the first call. HostError when it cannot be, or another attempt has done it."""
        if self._transaction is None:
            self._transaction = Transaction(self._effects, self._before, self._mark, NAME, cause=self._cause)
            holding = self._transaction.hold(self._database, self._project_id, timeout_ms=MAX_MS)
            self._holding = asyncio.create_task(holding, name="exactly once")
        await self._transaction.begun()
        if self._transaction.found is not None:
            raise HostError("done_before", f"{NAME}: another attempt has done it meanwhile; this one changes nothing")
        return self._transaction

    async def query(self, sql: str, values: Sequence[object]) -> bytes:
        """As of `Transaction`."""
        with self.awaited():
            return await (await self.opened()).query(sql, values)

    async def publish(self, event: str) -> None:
        """As of `Transaction`."""
        with self.awaited():
            await (await self.opened()).publish(event)

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Around what a run must wait for if anything of it is to be committed."""
        try:
            yield
        except asyncio.CancelledError:
            self._cut = True
            raise

    async def commit(self, told: str) -> None:
        """After the run: with `told` for later attempts. HostError, and nothing of it has happened; or
        `commit_unknown`."""
        if self._transaction is None and self._mark is None:
            return
        if self._cut:
            raise HostError(
                "not_awaited",
                f"{NAME}: rolled back, because the function ended before a statement of it did; await every one",
            )
        transaction = await self.opened()
        try:
            async with asyncio.timeout(MAX_MS / 1000):
                await transaction.commit(told)
        except TimeoutError:
            raise HostError(
                "commit_unknown", f"{NAME}: its commit took more than {MAX_MS} ms; it may have happened or not"
            ) from None
        if transaction.published and self._publishing is not None:
            await self._publishing.wake()

    async def fail(self) -> None:
        """Roll it back, because a part of it failed."""
        then = HostError(
            "transaction_rolled_back", f"{NAME}: rolled back, because an atlas.db.transaction within it failed"
        )
        with self.awaited():
            await (await self.opened()).rollback(then)

    async def close(self) -> None:
        """What was not committed is rolled back."""
        if self._transaction is None or self._holding is None:
            return
        try:
            if not self._cut:
                with suppress(TimeoutError, HostError):
                    async with asyncio.timeout(ROLLBACK_S):
                        await self._transaction.rollback()
        finally:
            await end_task(self._holding)
        if not self._holding.cancelled() and (why := self._holding.exception()) is not None:
            log.error("host.fault", f"A transaction failed with a fault of ours: {why!r}", project_id=self._project_id)


class Part:
    """An `atlas.db.transaction` within it: the same calls as of a `Transaction`. `mark`: the key of what is done once
    of its own accord, None for what is not."""

    published = False
    """Nothing of it, before the whole is committed."""

    def __init__(self, whole: RunTransaction, mark: str | None) -> None:
        self._whole = whole
        self._mark = mark
        self._over = asyncio.Event()

    @property
    def is_open(self) -> bool:
        return not self._over.is_set()

    @property
    def is_once(self) -> bool:
        return self._mark is not None

    async def hold(self) -> None:
        """As long as it is open."""
        with self._whole.awaited():
            await self._over.wait()

    async def begun(self) -> bytes:
        """Null; or `{"value": …}`, what was told with its mark, and it is over."""
        try:
            transaction = await self._whole.opened()
            found = b"" if self._mark is None else await transaction.mark(self._mark)
        except HostError:
            self._over.set()
            raise
        if not found:
            return b"null"
        self._over.set()
        return b'{"value":' + found + b"}"

    async def query(self, sql: str, values: Sequence[object]) -> bytes:
        self._require_open()
        return await self._whole.query(sql, values)

    async def publish(self, event: str) -> None:
        self._require_open()
        await self._whole.publish(event)

    async def commit(self, told: str) -> None:
        """HostError when the whole has failed meanwhile."""
        self._require_open()
        transaction = await self._whole.opened()
        transaction.require_open()
        if self._mark is not None:
            await transaction.tell(self._mark, told)
        self._over.set()

    async def rollback(self) -> None:
        """The whole fails with it. Also of one that is over."""
        if self.is_open:
            self._over.set()
            await self._whole.fail()

    def _require_open(self) -> None:
        if not self.is_open:
            raise ended()
