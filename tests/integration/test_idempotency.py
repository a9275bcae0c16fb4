"""Idempotency keys on a real Postgres: one of many calls runs, and the others get its answer."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from engines.contract import Outcome, Response, Result
from server.errors import Aborted, AtlasError, FunctionFailed, InvalidArgument, NotFound, Unavailable
from server.functions.outcomes import error_of
from server.invocations.idempotency import Idempotency
from server.invocations.invoke import Body, Call, Finished, Request
from server.postgres.control import Pool, open_pool, transaction
from server.postgres.presence import Presence
from tests.fix_functions import add_project
from tests.fix_runs import eventually


@pytest.fixture
async def idempotency(pool: Pool) -> AsyncIterator[Idempotency]:
    made = Idempotency(pool)
    await made.start()
    yield made
    await made.close()


def a_call(project_id: str, data: bytes = b"1", **fields: Any) -> Call:
    defaults: dict[str, Any] = {"slug": "pay", "body": Body(kind="json", data=data), "request": Request()}
    return Call(**{"project_id": project_id, "tier": None, **defaults, **fields})


class Runs:
    """What is behind the key: answers or raises what it is told, and counts."""

    def __init__(self, answer: Result | BaseException | None = None) -> None:
        self.answer = answer or Result(outcome=Outcome.OK, value=b'"done"')
        self.ids: list[str] = []

    async def __call__(self, call: Call) -> Finished:
        self.ids.append(call.run_id)
        if isinstance(self.answer, Result):
            return Finished(call.run_id, self.answer)
        raise self.answer

    async def accept(self, call: Call) -> str:
        return (await self(call)).run_id


async def lapse(pool: Pool) -> None:
    """The time of every lease and of every answer is over."""
    async with transaction(pool) as conn:
        await conn.execute("UPDATE idempotency_keys SET expires_at = now()")


async def bury(idempotency: Idempotency, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process has been in the database for a whole lease."""
    monkeypatch.setattr(Presence, "is_steady", True)
    await idempotency._leases.renew()


async def count(pool: Pool) -> int:
    async with transaction(pool) as conn:
        cursor = await conn.execute("SELECT count(*) FROM idempotency_keys")
        ((keys,),) = await cursor.fetchall()
    return int(keys)


@pytest.mark.parametrize(
    "result",
    [
        Result(outcome=Outcome.OK, value=b'{"a": 1}'),
        Result(outcome=Outcome.OK, response=Response(status=201, headers=(("a", "b"),), body=b"\0\n")),
    ],
    ids=["value", "response"],
)
async def test_the_second_call_gets_the_first_ones_answer(
    idempotency: Idempotency, project_id: str, result: Result
) -> None:
    runs, call = Runs(result), a_call(project_id)
    first = await idempotency.once(call, "k", runs)
    again = await idempotency.once(a_call(project_id), "k", runs)
    assert (first, again) == (Finished(call.run_id, result), Finished(call.run_id, result))
    assert runs.ids == [call.run_id]


async def test_keys_belong_to_a_function_of_a_project(idempotency: Idempotency, pool: Pool, project_id: str) -> None:
    runs = Runs()
    for call, key in (
        (a_call(project_id), "k"),
        (a_call(project_id, slug="other"), "k"),
        (a_call(await add_project(pool)), "k"),
        (a_call(project_id), "K"),
    ):
        await idempotency.once(call, key, runs)
    assert len(runs.ids) == 4


async def test_errors_of_the_function_are_answers(idempotency: Idempotency, project_id: str) -> None:
    runs = Runs(error_of(Result(outcome=Outcome.EXCEPTION)))
    told: list[AtlasError] = []
    for _ in range(2):
        with pytest.raises(FunctionFailed) as raised:
            await idempotency.once(a_call(project_id), "k", runs)
        told.append(raised.value)
    assert len(runs.ids) == 1
    assert vars(told[0]) == vars(told[1])


@pytest.mark.parametrize(
    "lost",
    [
        error_of(Result(outcome=Outcome.CANCELLED)),
        error_of(Result(outcome=Outcome.OVERLOADED)),
        NotFound("gone", reason="FUNCTION_NOT_FOUND"),
        RuntimeError("a fault"),
        asyncio.CancelledError(),
    ],
    ids=repr,
)
async def test_what_does_not_count_runs_again(
    idempotency: Idempotency, pool: Pool, project_id: str, lost: BaseException
) -> None:
    with pytest.raises(type(lost)):
        await idempotency.once(a_call(project_id), "k", Runs(lost))
    assert await count(pool) == 0
    runs = Runs()
    await idempotency.once(a_call(project_id, b"another input"), "k", runs)
    assert len(runs.ids) == 1


async def test_of_many_at_once_one_runs(idempotency: Idempotency, project_id: str) -> None:
    begun, proceed, ids = asyncio.Event(), asyncio.Event(), []

    async def slow(call: Call) -> Finished:
        ids.append(call.run_id)
        begun.set()
        await proceed.wait()
        return Finished(call.run_id, Result(outcome=Outcome.OK))

    first = asyncio.create_task(idempotency.once(a_call(project_id), "k", slow))
    await begun.wait()
    others = await asyncio.gather(
        *(idempotency.once(a_call(project_id), "k", slow) for _ in range(10)), return_exceptions=True
    )
    assert [type(other) for other in others] == [Aborted] * 10
    with pytest.raises(InvalidArgument, match="another input"):
        await idempotency.once(a_call(project_id, b"2"), "k", slow)
    proceed.set()
    await first
    assert len(ids) == 1


async def test_another_input_is_refused(idempotency: Idempotency, project_id: str) -> None:
    runs = Runs()
    call = a_call(project_id)
    await idempotency.once(call, "k", runs)
    for other in (
        replace(call, body=Body(kind="json", data=b"2")),
        replace(call, body=Body(kind="text", data=b"1")),
        replace(call, request=Request(method="PUT")),
        replace(call, request=Request(path="/x")),
    ):
        with pytest.raises(InvalidArgument, match="another input") as raised:
            await idempotency.once(other, "k", runs)
        assert (raised.value.field, raised.value.reason) == ("idempotency_key", "KEY_REUSED")
    with pytest.raises(InvalidArgument):
        await idempotency.once_accepted(call, "k", runs.accept)
    assert len(runs.ids) == 1


async def test_the_claim_of_a_dead_process_runs_out(
    idempotency: Idempotency, pool: Pool, project_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = Idempotency(pool)  # renews nothing
    begun = asyncio.Event()

    async def hang(call: Call) -> Finished:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    lost = asyncio.create_task(dead.once(a_call(project_id), "k", hang))
    await begun.wait()
    with pytest.raises(Aborted):
        await idempotency.once(a_call(project_id), "k", Runs())
    await lapse(pool)
    await idempotency._leases.renew()
    await idempotency.sweep()
    with pytest.raises(Aborted):  # the database may have been away, and both processes just come back
        await idempotency.once(a_call(project_id), "k", Runs())
    await bury(idempotency, monkeypatch)
    runs = Runs()
    finished = await idempotency.once(a_call(project_id), "k", runs)
    lost.cancel()  # what it does too late changes nothing
    await asyncio.wait([lost])
    assert await idempotency.once(a_call(project_id), "k", runs) == finished
    assert len(runs.ids) == 1


async def test_leases_of_what_runs_are_renewed(idempotency: Idempotency, pool: Pool, project_id: str) -> None:
    begun, proceed = asyncio.Event(), asyncio.Event()

    async def slow(call: Call) -> Finished:
        begun.set()
        await proceed.wait()
        return Finished(call.run_id, Result(outcome=Outcome.OK))

    task = asyncio.create_task(idempotency.once(a_call(project_id), "k", slow))
    await begun.wait()
    await lapse(pool)
    await idempotency._leases.renew()
    with pytest.raises(Aborted):
        await idempotency.once(a_call(project_id), "k", slow)
    proceed.set()
    await task


async def test_asynchronous_calls_with_a_key_are_one_run(idempotency: Idempotency, pool: Pool, project_id: str) -> None:
    runs, call = Runs(), a_call(project_id)
    assert await idempotency.once_accepted(call, "k", runs.accept) == call.run_id
    assert await idempotency.once_accepted(a_call(project_id), "k", runs.accept) == call.run_id
    assert runs.ids == [call.run_id]


async def test_a_process_that_died_while_accepting_has_named_the_run(
    idempotency: Idempotency, pool: Pool, project_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have stored the run before it died: who takes over asks for the same one."""
    call = a_call(project_id)

    async def die(call: Call) -> str:
        await asyncio.Event().wait()
        raise AssertionError

    lost = asyncio.create_task(idempotency.once_accepted(call, "k", die))

    async def claimed() -> bool:
        return await count(pool) == 1

    await eventually(claimed)
    await lapse(pool)
    await bury(idempotency, monkeypatch)
    runs = Runs()
    assert await idempotency.once_accepted(a_call(project_id), "k", runs.accept) == call.run_id
    assert runs.ids == [call.run_id]
    lost.cancel()
    await asyncio.wait([lost])


async def test_answers_are_kept_until_they_expire(idempotency: Idempotency, pool: Pool, project_id: str) -> None:
    runs = Runs()
    await idempotency.once(a_call(project_id), "k", runs)
    await idempotency.sweep()
    async with transaction(pool) as conn:
        cursor = await conn.execute("SELECT expires_at > now() + interval '23 h 59 min' FROM idempotency_keys")
        assert await cursor.fetchall() == [(True,)]
    await lapse(pool)
    await idempotency.once(a_call(project_id, b"2"), "k", runs)
    await lapse(pool)
    await idempotency.sweep()
    assert (len(runs.ids), await count(pool)) == (2, 0)


async def test_without_the_database_nothing_runs(control_url: str, project_id: str) -> None:
    async with open_pool(control_url.replace("host=", "host=%2Fnowhere"), timeout_s=0.1) as nowhere:
        runs = Runs()
        with pytest.raises(Unavailable):
            await Idempotency(nowhere).once(a_call(project_id), "k", runs)
        assert runs.ids == []


async def test_a_cancelled_caller_cancels_its_run(idempotency: Idempotency, pool: Pool, project_id: str) -> None:
    begun, killed = asyncio.Event(), asyncio.Event()

    async def hang(call: Call) -> Finished:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            killed.set()
        raise AssertionError

    task = asyncio.create_task(idempotency.once(a_call(project_id), str(uuid4()), hang))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert killed.is_set()
    assert await count(pool) == 0


@pytest.mark.parametrize("slug", ["a\0b", "x y", "", secrets.token_hex(10_000)], ids=["NUL", "space", "none", "long"])
async def test_a_slug_that_no_function_has_is_not_found_and_claims_nothing(
    idempotency: Idempotency, pool: Pool, project_id: str, slug: str
) -> None:
    runs = Runs()
    with pytest.raises(NotFound, match="JS source not found"):
        await idempotency.once(a_call(project_id, slug=slug), "k", runs)
    with pytest.raises(NotFound, match="JS source not found"):
        await idempotency.once_accepted(a_call(project_id, slug=slug), "k", runs.accept)
    assert (runs.ids, await count(pool)) == ([], 0)
