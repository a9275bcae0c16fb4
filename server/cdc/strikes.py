"""A transaction that Postgres cannot decode, or we cannot read: given up after some tries, so that others go on.

A tenant can write a row of 1 GB that needs more memory to be decoded than a walsender has; then every start ends in
the same error at the same place. It is skipped when it ended three streams: by the LSN of its commit when it has begun
before the error, else by advancing step by step, the step doubled each time. What came before it is stored by then
(`Pump.run`), so that nothing else is passed over. Its project, or all when nobody knows
whose it is, is told with a `cdc.gap` event.
"""

from typing import Final

from psycopg import AsyncConnection

from server.cdc import slot
from server.cdc.changes import Changes, TooManyTables
from server.cdc.pgoutput import ProtocolError
from server.cdc.position import Position, lsn_text
from server.cdc.slot import Gap
from server.log import logger
from server.postgres.channel import SqlError
from server.postgres.tenants import project_of

log = logger("cdc")

STRIKES: Final = 3
FIRST_STEP_BYTES: Final = 64 * 1024
LAST_CHANGE: Final = 10**17
"""The number of a change after all others of its transaction."""

_NOT_ITS_FAULT: Final = ("08", "57", "58", "53100", "53300", "53400", slot.IN_USE)
"""SQLSTATEs (or classes) of a server that stops, is full or lost a file."""


class Strikes:
    def __init__(self) -> None:
        self._place = "", 0
        self._slot = ""
        self._commit_lsn: int | None = None
        self._ended_lsn = 0
        self._at: int | None = None
        self._project_id: str | None = None
        self._reason = ""
        self._count = 0
        self._step_bytes = FIRST_STEP_BYTES

    def count(self, why: SqlError | ProtocolError | TooManyTables, name: str, changes: Changes) -> None:
        """A stream of the slot has ended so, and all before it is stored."""
        if isinstance(why, SqlError) and why.sqlstate.startswith(_NOT_ITS_FAULT):
            return
        commit_lsn = changes.open.commit_lsn if changes.open else None
        ended_lsn = changes.ended_lsn or (self._ended_lsn if name == self._slot else 0)  # 0: nothing came after it
        place = name, commit_lsn if commit_lsn is not None else -ended_lsn
        if place != self._place:
            self._forget()
        self._place, self._slot, self._commit_lsn, self._ended_lsn = place, name, commit_lsn, ended_lsn
        self._project_id = project_of(changes.seen.schema) if changes.open and changes.seen else None
        self._reason = f"undecodable ({_named(why)})"
        self._count += 1
        log.error(
            "cdc.undecodable",
            f"Changes could not be read, {self._count} of {STRIKES} times before they are skipped: {why}",
            commit_lsn=None if commit_lsn is None else lsn_text(commit_lsn),
            project_id=self._project_id,
        )

    def _forget(self) -> None:
        self._count, self._step_bytes, self._at = 0, FIRST_STEP_BYTES, None

    async def skip(self, admin: AsyncConnection) -> None:
        """Skip what has failed too often, the gap noted before. While nobody streams from the slot; another that does
        has gone on, and what failed here counts anew."""
        if not self._count:
            return
        since, end = await slot.confirmed(admin, self._slot)
        if 0 < since < self._ended_lsn and await slot.skip(admin, self._slot, self._ended_lsn):
            since = self._ended_lsn  # stored, which the server did not hear any more
        gone_on = self._at not in (None, since) if self._commit_lsn is None else since > self._commit_lsn
        if gone_on:
            self._forget()
        self._at = since
        if self._count < STRIKES:
            return
        whole = self._commit_lsn is not None
        until = self._commit_lsn + 1 if self._commit_lsn is not None else min(since + self._step_bytes, end)
        if (until > since and not await self._pass_over(admin, since, until)) or whole:
            self._forget()
        else:
            self._count = STRIKES - 1  # each step may be tried at once
            self._step_bytes *= 2
            self._at = max(since, until)

    async def _pass_over(self, admin: AsyncConnection, since: int, until: int) -> bool:
        """False when it could not be, and no gap is told."""
        untold = await slot.noted_gap(admin)
        gap = Gap(
            reason=self._reason,
            since=untold.since if untold else lsn_text(since),
            until=lsn_text(until),
            position=str(Position(self._slot, until - 1, LAST_CHANGE)),
            project_id=self._project_id if untold is None or untold.project_id == self._project_id else None,
        )
        await slot.note_gap(admin, gap)
        if not await slot.skip(admin, self._slot, until):
            await slot.take_gap_back(admin, gap, untold)
            return False
        log.error(
            "cdc.skipped",
            f"Changes up to {lsn_text(until)} are skipped, and told as a gap",
            since=lsn_text(since),
            project_id=self._project_id,
        )
        return True


def _named(why: SqlError | ProtocolError | TooManyTables) -> str:
    if isinstance(why, SqlError):
        return why.sqlstate
    return "protocol" if isinstance(why, ProtocolError) else "too many tables"
