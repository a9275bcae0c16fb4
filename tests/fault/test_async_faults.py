"""Answers outlive a database that is away for a while: of asynchronous runs and of calls with an idempotency key."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from engines.contract import Outcome, Result
from server.errors import Unavailable
from server.invocations import async_queue, async_worker, idempotency
from server.invocations.answers import Answer
from server.invocations.async_worker import AsyncWorker
from server.invocations.attempts import Attempts
from server.invocations.idempotency import Idempotency
from server.invocations.invoke import Body, Call, Finished, Request
from server.postgres.changes import Changes
from server.postgres.control import Connection, Pool, transaction
from server.runs import rows
from server.runs.record import RunRecord, finished
from tests.fix_runs import a_run, eventually

AWAY = Unavailable("The database is away", reason="CONTROL_DATABASE_UNAVAILABLE")
AWAY_TRIES = 90
"""As many as a try a second are in an outage of a minute and a half."""


class Records:
    def __init__(self) -> None:
        self.seen: list[RunRecord] = []

    def add(self, record: RunRecord) -> None:
        self.seen.append(record)


def a_call(project_id: str) -> Call:
    return Call(
        project_id=project_id,
        tier=None,
        slug="pay",
        body=Body(kind="json", data=b"1"),
        request=Request(),
        run_id=str(uuid4()),
    )


async def test_the_end_of_an_asynchronous_run_is_written_when_the_database_is_back(
    pool: Pool, changes: Changes, project_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, call = Records(), a_call(project_id)
    run = a_run(project_id, id=call.run_id)
    async with transaction(pool) as conn:
        await async_queue.insert(conn, call, created_at=run.created_at)
        await rows.enqueue(conn, run)
    tries = calls = 0
    real_finish = async_queue.finish

    async def finish(conn: Connection, *args: Any) -> bool:
        nonlocal tries
        tries += 1
        if tries < AWAY_TRIES:
            raise AWAY
        return await real_finish(conn, *args)

    class Invoker:
        async def invoke(self, call: Call) -> Finished:
            nonlocal calls
            calls += 1
            result = Result(outcome=Outcome.OK, value=b"2")
            attempts.add(finished(run, result, at=run.created_at))
            return Finished(call.run_id, result)

    monkeypatch.setattr(async_queue, "finish", finish)
    monkeypatch.setattr(async_worker, "POLL_S", 0.01)
    attempts = Attempts(records)
    worker = AsyncWorker(pool, changes, Invoker(), attempts, records)
    await changes.start()
    await worker.start()

    async def recorded() -> bool:
        return len(records.seen) == 1

    await eventually(recorded)
    await worker.close()
    assert (tries, calls) == (AWAY_TRIES, 1)
    async with transaction(pool) as conn:
        record = await rows.get(conn, project_id, call.run_id)
    assert record is not None
    assert (record.state, record.outcome) == ("finished", "ok")


async def test_an_answer_is_stored_under_its_key_when_the_database_is_back(
    pool: Pool, project_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller does not wait for that."""
    away, subject = AWAY_TRIES, Idempotency(pool)
    tried = asyncio.Event()

    @asynccontextmanager
    async def sometimes(pool: Pool) -> AsyncIterator[Connection]:
        nonlocal away
        if away:
            away -= 1
            tried.set()
            assert subject._leases._held, "nobody else may take the key meanwhile"
            raise AWAY
        async with transaction(pool) as conn:
            yield conn

    calls: list[Call] = []

    async def run(call: Call) -> Finished:
        calls.append(call)
        monkeypatch.setattr(idempotency, "transaction", sometimes)
        monkeypatch.setattr(idempotency, "WRITE_PAUSE_S", 0.02)
        return Finished(call.run_id, Result(outcome=Outcome.OK, value=b"2"))

    answer: Answer = await subject.once(a_call(project_id), "k", run)
    assert tried.is_set()

    async def stored() -> bool:
        return not subject._storing

    await eventually(stored)
    assert await subject.once(a_call(project_id), "k", run) == answer
    assert len(calls) == 1
    await subject.close()
