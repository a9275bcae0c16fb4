"""Runs for those who ask: lists and single ones from the database, what runs now from the processes that run it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol, get_args

from psycopg.rows import dict_row

from engines.contract import Outcome
from server.errors import FailedPrecondition, NotFound, Unavailable
from server.fields import parse_choice, parse_id
from server.paging import Page, Place, at, request
from server.paging import Request as PageRequest
from server.postgres.control import Pool, transaction
from server.runs import rows
from server.runs.peers import Peers
from server.runs.record import RunRecord, State

OUTCOMES: Final = tuple(outcome.value for outcome in Outcome)
STATES: Final = get_args(State)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which runs; what is empty or None does not restrict. As the caller sent it."""

    function_id: str = ""
    outcome: str = ""
    state: str = ""
    since: datetime | None = None  # accepted then or later
    until: datetime | None = None  # accepted before

    def checked(self) -> "Filter":
        """InvalidArgument names the field."""
        if self.outcome:
            parse_choice("outcome", self.outcome, OUTCOMES)
        if self.state:
            parse_choice("state", self.state, STATES)
        function_id = parse_id("function_id", self.function_id) if self.function_id else ""
        return Filter(
            function_id=function_id, outcome=self.outcome, state=self.state, since=self.since, until=self.until
        )

    def admits(self, record: RunRecord) -> bool:
        run = record.run
        return (
            (not self.function_id or run.function_id == self.function_id)
            and (not self.outcome or record.outcome == self.outcome)
            and (not self.state or record.state == self.state)
            and (self.since is None or run.created_at >= self.since)
            and (self.until is None or run.created_at < self.until)
        )


CANCEL_ATTEMPTS: Final = 4
"""At some 0.4 s each: an asynchronous run may be between the queue and a sandbox."""


class Queue(Protocol):
    """Runs that wait for their turn: `server.invocations.asynchronous.AsyncRuns`."""

    async def withdraw(self, project_id: str, run_id: str) -> RunRecord | None:
        """Take a run from the queue for good; how it ended, or None when it does not wait there."""
        ...


class Reader:
    def __init__(self, pool: Pool, peers: Peers, queue: Queue) -> None:
        self._pool = pool
        self._peers = peers
        self._queue = queue

    async def list(self, project_id: str, wanted: Filter, page_size: int = 0, page_token: str = "") -> Page[RunRecord]:
        """Newest first, without console lines.

        Synchronous runs that still run are listed only with the state `running`; then all servers are asked.
        """
        wanted = wanted.checked()
        asked = request(f"runs of {project_id} {wanted}", page_size, page_token, until=wanted.until)
        found = await self._stored(project_id, wanted, asked)
        if wanted.state == "running":
            found = _merged(found, await self._peers.list(project_id), wanted, asked)
        return asked.page(found, _place)

    async def get(self, project_id: str, run_id: str) -> RunRecord:
        """The run with its console lines; of one that still runs, what is known. NotFound for an unknown id."""
        run_id = parse_id("run_id", run_id)
        if (stored := await self._get_stored(project_id, run_id)) is not None:
            return stored
        found = await self._peers.get(project_id, run_id) or await self._get_stored(project_id, run_id)
        if found is None:
            raise _unknown(run_id)
        return found

    async def cancel(self, project_id: str, run_id: str) -> RunRecord:
        """End the run, or take it from the queue; the record when it has ended.

        FailedPrecondition when it was finished already, NotFound for an unknown id.
        """
        run_id = parse_id("run_id", run_id)
        for _ in range(CANCEL_ATTEMPTS):
            stored = await self._get_stored(project_id, run_id)
            if stored is not None and stored.state == "finished":
                raise _finished(stored)
            ended = await self._queue.withdraw(project_id, run_id) or await self._peers.cancel(project_id, run_id)
            if ended is not None:
                return ended
            if stored is None:
                raise _unknown(run_id)
        raise Unavailable(
            f"The run {run_id} is held by a server that does not answer; try again",
            reason="RUN_NOT_ENDED",
            metadata={"run_id": run_id},
            retry_after_ms=5_000,
        )

    async def _get_stored(self, project_id: str, run_id: str) -> RunRecord | None:
        async with transaction(self._pool) as conn:
            return await rows.get(conn, project_id, run_id)

    async def _stored(self, project_id: str, wanted: Filter, asked: PageRequest) -> Sequence[RunRecord]:
        clauses, values = _where(wanted)
        async with transaction(self._pool) as conn:
            cursor = await conn.cursor(row_factory=dict_row).execute(
                f"SELECT {rows.BRIEF} FROM runs WHERE project_id = %s AND (created_at, id) < (%s, %s){clauses}"
                " ORDER BY created_at DESC, id DESC LIMIT %s".encode(),
                [project_id, asked.after.moment, asked.after.id, *values, asked.size + 1],
            )
            return [rows.record_of(row) for row in await cursor.fetchall()]


def _where(wanted: Filter) -> tuple[str, Sequence[object]]:
    """Conditions with their values, but for `until`, where the list begins. Outcome and state, which are checked, are
    in the text, so that the planner sees which partial index fits."""
    conditions: list[tuple[str, object]] = []
    if wanted.function_id:
        conditions.append(("function_id = %s", wanted.function_id))
    if wanted.since is not None:
        conditions.append(("created_at >= %s", wanted.since))
    text = [condition for condition, _ in conditions]
    text += [f"{name} = '{value}'" for name, value in (("outcome", wanted.outcome), ("state", wanted.state)) if value]
    return "".join(f" AND {condition}" for condition in text), [value for _, value in conditions]


def _merged(
    stored: Sequence[RunRecord], running: Sequence[RunRecord], wanted: Filter, asked: PageRequest
) -> Sequence[RunRecord]:
    """One page of both, each run once."""
    by_id = {record.run.id: record for record in (*stored, *running) if wanted.admits(record)}
    after = (asked.after.order, asked.after.id)
    places = sorted(((_place(record), record) for record in by_id.values()), key=lambda item: _key(item[0]))
    newest = [record for place, record in reversed(places) if _key(place) < after]
    return newest[: asked.size + 1]


def _place(record: RunRecord) -> Place:
    return at(record.run.created_at, record.run.id)


def _key(place: Place) -> tuple[int, str]:
    return (place.order, place.id)


def _unknown(run_id: str) -> NotFound:
    return NotFound(f"The project has no run {run_id}", reason="RUN_NOT_FOUND", metadata={"run_id": run_id})


def _finished(stored: RunRecord) -> FailedPrecondition:
    return FailedPrecondition(
        f"The run {stored.run.id} is finished already: {stored.outcome}",
        reason="RUN_FINISHED",
        metadata={"run_id": stored.run.id, "outcome": stored.outcome},
    )
