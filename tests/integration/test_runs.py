"""Records from a Recorder to whoever reads them, through a real NATS and a real Postgres."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from engines.contract import LogLine, Outcome, Result
from server.errors import FailedPrecondition, InvalidArgument, NotFound
from server.events.bus import EventBus
from server.postgres.control import Pool, transaction
from server.runs import rows, stream
from server.runs.peers import Peers
from server.runs.reader import Filter, Reader, _where
from server.runs.record import RunError, RunRecord, batch, encode
from server.runs.recorder import Recorder
from server.runs.retention import Retention
from server.runs.running import Running
from server.runs.tail import Tail, TailEnded
from server.runs.writer import Writer
from tests.fix_functions import add_project
from tests.fix_runs import a_record, a_run, eventually

WITHIN_S = 1.0


class NoQueue:
    async def withdraw(self, project_id: str, run_id: str) -> RunRecord | None:
        return None


@pytest.fixture
async def recorder(bus: EventBus) -> AsyncIterator[Recorder]:
    made = Recorder(bus)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def writer(bus: EventBus, pool: Pool) -> AsyncIterator[Writer]:
    made = Writer(bus, pool)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
def running() -> Running:
    return Running()


@pytest.fixture
async def reader(bus: EventBus, pool: Pool, running: Running) -> AsyncIterator[Reader]:
    """Of a process in which `running` runs."""
    peers = Peers(bus, running)
    await peers.start()
    yield Reader(pool, peers, NoQueue())
    await peers.close()


@pytest.fixture
async def other_reader(nats_url: str, bus: EventBus, pool: Pool) -> AsyncIterator[Reader]:
    """Of another process, in which nothing runs."""
    other = EventBus(nats_url)
    await other.start()
    peers = Peers(other, Running())
    await peers.start()
    yield Reader(pool, peers, NoQueue())
    await peers.close()
    await other.close()


async def store(pool: Pool, *records: RunRecord) -> None:
    async with transaction(pool) as conn:
        await rows.finish(conn, records)


async def usage(pool: Pool, project_id: str) -> int:
    async with transaction(pool) as conn:
        cursor = await conn.execute("SELECT bytes FROM run_usage WHERE project_id = %s", [project_id])
        row = await cursor.fetchone()
        cursor = await conn.execute(
            "SELECT coalesce(sum(bytes), 0) FROM runs WHERE project_id = %s AND state = 'finished'", [project_id]
        )
        ((actual,),) = await cursor.fetchall()
    assert actual == (row[0] if row else 0)
    return int(actual)


async def test_a_record_is_readable_soon_and_whole(
    recorder: Recorder, writer: Writer, reader: Reader, project_id: str
) -> None:
    record = a_record(
        project_id,
        outcome="exception",
        error=RunError(reason="FUNCTION_EXCEPTION", message="a \0 b", stack="\0"),
        logs=(LogLine(level="error", text="\0 \ud800 \u2028 ☃", at_ms=0.5),),
    )
    recorder.add(record)

    async def stored() -> RunRecord | None:
        try:
            return await reader.get(project_id, record.run.id.upper())
        except NotFound:
            return None

    seen = await eventually(stored)
    assert (seen.run, seen.metrics, seen.error) == (record.run, record.metrics, record.error)
    assert [line.text for line in seen.logs] == ["\0 ? \u2028 ☃"]
    with pytest.raises(NotFound):
        await reader.get(str(uuid4()), record.run.id)


async def test_many_records_of_many_projects_arrive_once(
    recorder: Recorder, writer: Writer, pool: Pool, project_id: str
) -> None:
    others = [await add_project(pool), await add_project(pool), str(uuid4())]  # the last one does not exist
    for number in range(1200):
        recorder.add(a_record((project_id, *others)[number % 4]))

    async def all_written() -> bool:
        return writer.written == 1200

    await eventually(all_written)
    async with transaction(pool) as conn:
        cursor = await conn.execute("SELECT project_id, count(*) FROM runs GROUP BY project_id")
        counts = dict(await cursor.fetchall())
    assert counts == dict.fromkeys((project_id, *others[:2]), 300)
    assert await usage(pool, project_id) > 0


async def test_lists_are_filtered_and_paged(reader: Reader, pool: Pool, project_id: str) -> None:
    start, function_id = datetime(2026, 1, 1, tzinfo=UTC), str(uuid4())
    records = [
        a_record(
            project_id,
            run=a_run(
                project_id,
                created_at=start + timedelta(minutes=number // 2),  # pairs share a moment
                **({"function_id": function_id} if number % 3 == 0 else {}),
            ),
            outcome="exception" if number % 4 == 0 else "ok",
        )
        for number in range(20)
    ]
    await store(pool, *records, a_record(await add_project(pool)))
    newest = sorted(records, key=lambda record: (record.run.created_at, record.run.id), reverse=True)

    async def listed(wanted: Filter, size: int = 3) -> list[str]:
        ids: list[str] = []
        token = ""
        while True:
            page = await reader.list(project_id, wanted, size, token)
            ids += [record.run.id for record in page.items]
            assert all(not record.logs for record in page.items)
            if not (token := page.next_page_token):
                return ids

    for wanted in (
        Filter(),
        Filter(function_id=function_id.upper()),
        Filter(outcome="exception"),
        Filter(outcome="ok", function_id=function_id),
        Filter(state="finished", since=start + timedelta(minutes=3)),
        Filter(since=start + timedelta(minutes=2), until=start + timedelta(minutes=7)),
        Filter(outcome="crashed"),
    ):
        assert await listed(wanted) == [record.run.id for record in newest if wanted.checked().admits(record)]
    first = await reader.list(project_id, Filter(), 3)
    with pytest.raises(InvalidArgument, match="page_token"):
        await reader.list(project_id, Filter(outcome="ok"), 3, first.next_page_token)
    for bad in (Filter(outcome="good"), Filter(state="gone"), Filter(function_id="x")):
        with pytest.raises(InvalidArgument):
            await reader.list(project_id, bad)


async def test_every_filter_uses_an_index(reader: Reader, pool: Pool, project_id: str) -> None:
    """No list may read the whole table, however many runs there are."""
    async with transaction(pool) as conn:
        await conn.execute("SET LOCAL enable_seqscan = off")
        for wanted, index in (
            (Filter(), "runs_newest"),
            (Filter(function_id=str(uuid4())), "runs_of_function"),
            (Filter(outcome="crashed"), "runs_failed"),
            (Filter(state="queued"), "runs_unfinished"),
        ):
            clauses, values = _where(wanted)
            cursor = await conn.execute(
                f"EXPLAIN SELECT id FROM runs WHERE project_id = %s AND (created_at, id) < (now(), %s){clauses}"
                " ORDER BY created_at DESC, id DESC LIMIT 51".encode(),
                [project_id, str(uuid4()), *values],
            )
            plan = "\n".join(row[0] for row in await cursor.fetchall())
            assert index in plan
            assert "Sort" not in plan


async def test_what_runs_is_seen_and_ended_from_any_process(
    running: Running, reader: Reader, other_reader: Reader, project_id: str
) -> None:
    run = a_run(project_id)
    begun = asyncio.Event()

    async def work() -> Result:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    task = asyncio.create_task(running.guard(run, work()))
    await begun.wait()
    for anyone in (reader, other_reader):
        assert (await anyone.get(project_id, run.id)).state == "running"
        page = await anyone.list(project_id, Filter(state="running"))
        assert [(record.run.id, record.state) for record in page.items] == [(run.id, "running")]
        assert (await anyone.list(project_id, Filter(state="running", function_id=str(uuid4())))).items == []
    stranger = str(uuid4())
    for call in (other_reader.get(stranger, run.id), other_reader.cancel(stranger, run.id)):
        with pytest.raises(NotFound):
            await call
    ended = await other_reader.cancel(project_id, run.id)
    assert (ended.state, ended.outcome) == ("finished", "cancelled")
    assert (await task).outcome is Outcome.CANCELLED


async def test_what_has_ended_cannot_be_cancelled(reader: Reader, pool: Pool, project_id: str) -> None:
    record = a_record(project_id)
    await store(pool, record)
    with pytest.raises(FailedPrecondition, match="ok"):
        await reader.cancel(project_id, record.run.id)
    with pytest.raises(NotFound):
        await reader.cancel(project_id, str(uuid4()))


async def test_a_finished_run_stays_as_it_ended(pool: Pool, reader: Reader, project_id: str) -> None:
    run = a_run(project_id)
    async with transaction(pool) as conn:
        await rows.enqueue(conn, run)
        await rows.start(conn, [run.id])
    assert (await reader.get(project_id, run.id)).state == "running"
    await store(pool, a_record(project_id, run=run))
    used = await usage(pool, project_id)
    await store(pool, a_record(project_id, run=run, outcome="crashed"))
    assert (await reader.get(project_id, run.id)).outcome == "ok"
    assert await usage(pool, project_id) == used


async def test_old_runs_go_and_of_a_large_project_the_oldest(pool: Pool, project_id: str) -> None:
    now = datetime.now(UTC)
    large, small = project_id, await add_project(pool)
    text = (LogLine(level="log", text="x" * 10_000, at_ms=0),)

    def aged(project: str, hours: float) -> RunRecord:
        return a_record(project, run=a_run(project, created_at=now - timedelta(hours=hours)), logs=text)

    await store(pool, *(aged(large, hours) for hours in range(1, 21)), aged(small, 1), aged(small, 30))
    one = await usage(pool, small) // 2
    retention = Retention(pool, keep_hours=24, keep_mb=5.5 * one / 2**20)
    assert await retention.sweep() == 15 + 1
    assert await retention.sweep() == 0
    async with transaction(pool) as conn:
        cursor = await conn.execute("SELECT min(created_at) FROM runs WHERE project_id = %s", [large])
        ((oldest,),) = await cursor.fetchall()
    assert oldest == now - timedelta(hours=5)
    assert (await usage(pool, large), await usage(pool, small)) == (5 * one, one)


async def test_a_deleted_project_leaves_no_runs(pool: Pool, project_id: str) -> None:
    kept = await add_project(pool)
    await store(pool, *(a_record(project_id) for _ in range(30)), a_record(kept))
    retention = Retention(pool, keep_hours=24, keep_mb=1)
    await retention.remove_project(project_id)
    await retention.remove_project(project_id)
    assert (await usage(pool, project_id), await usage(pool, kept) > 0) == (0, True)


async def test_a_tail_shows_what_ends_within_a_second(bus: EventBus, recorder: Recorder, project_id: str) -> None:
    tail = Tail(bus)
    async with tail.watch(project_id, Filter()) as watcher, tail.watch(project_id, Filter(outcome="crashed")) as picky:
        ended, crashed = a_record(project_id), a_record(project_id, outcome="crashed")
        for record in (a_record(str(uuid4())), ended, crashed):
            recorder.add(record)
        seen = [await watcher.next(WITHIN_S), await watcher.next(WITHIN_S)]
        assert [item and item.record for item in seen] == [ended, crashed]
        only = await picky.next(WITHIN_S)
        assert only is not None
        assert only.record == crashed
        assert await watcher.next(0.0) is None
    assert bus.client._subs == {} or all(sub.subject != stream.SUBJECT for sub in bus.client._subs.values())


async def test_a_slow_watcher_is_told_what_it_missed(bus: EventBus, recorder: Recorder, project_id: str) -> None:
    tail = Tail(bus, queue_runs=10)
    async with tail.watch(project_id, Filter()) as watcher, tail.watch(project_id, Filter()) as probe:
        records = [a_record(project_id) for _ in range(25)]
        for record in records:
            recorder.add(record)
        last = None
        while last is None or last.record != records[-1]:
            last = await probe.next(WITHIN_S)
        first = await watcher.next(WITHIN_S)
        assert first is not None
        assert (first.dropped, first.record) == (15, records[15])
        second = await watcher.next(WITHIN_S)
        assert second is not None
        assert (second.dropped, second.record) == (0, records[16])


async def test_what_is_sent_again_is_shown_once(bus: EventBus, project_id: str) -> None:
    tail, first, second = Tail(bus), a_record(project_id), a_record(project_id)
    async with tail.watch(project_id, Filter()) as watcher:
        for name, record in (("one", first), ("one", first), ("two", second)):
            await bus.jetstream.publish(stream.SUBJECT, batch([encode(record)]), headers={"Nats-Msg-Id": name})
        seen = [await watcher.next(WITHIN_S), await watcher.next(WITHIN_S)]
        assert [item and item.record for item in seen] == [first, second]


async def test_an_older_stream_is_brought_up_to_date(bus: EventBus) -> None:
    await bus.jetstream.delete_stream(stream.NAME)
    older = replace(stream._STREAM, max_bytes=2**20, max_age=600.0)
    await bus.jetstream.add_stream(older)
    await stream.ensure(bus)
    config = (await bus.jetstream.stream_info(stream.NAME)).config
    assert (config.max_bytes, config.max_age) == (stream._STREAM.max_bytes, stream._STREAM.max_age)


async def test_tails_end_with_their_process(bus: EventBus, project_id: str) -> None:
    tail = Tail(bus)
    async with tail.watch(project_id, Filter()) as watcher:
        waiting = asyncio.create_task(watcher.next(60))
        await asyncio.sleep(0)
        await tail.close()
        with pytest.raises(TailEnded):
            await waiting
    async with tail.watch(project_id, Filter()) as late:
        with pytest.raises(TailEnded):
            await late.next(60)
