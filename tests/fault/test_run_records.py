"""Records outlive what can fail on their way: a writer that dies, messages of rubbish, NATS or Postgres away."""

import asyncio
import logging
from dataclasses import replace

import pytest
from nats.aio.msg import Msg

from server.events.bus import EventBus
from server.postgres.control import Pool, open_pool, transaction
from server.runs import stream
from server.runs.record import batch, encode
from server.runs.recorder import Recorder
from server.runs.writer import Writer
from tests.fix_runs import OwnNats, a_record, a_run, eventually


async def count(pool: Pool) -> int:
    async with transaction(pool) as conn:
        cursor = await conn.execute("SELECT count(*) FROM runs")
        ((runs,),) = await cursor.fetchall()
    return int(runs)


async def used_as_stored(pool: Pool) -> bool:
    async with transaction(pool) as conn:
        cursor = await conn.execute("SELECT (SELECT sum(bytes) FROM runs) = (SELECT sum(bytes) FROM run_usage)")
        ((same,),) = await cursor.fetchall()
    return bool(same)


async def unacknowledged(bus: EventBus) -> int:
    return (await bus.jetstream.stream_info(stream.NAME)).state.messages


async def test_a_writer_that_dies_between_commit_and_ack_duplicates_nothing(
    bus: EventBus, pool: Pool, project_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()

    async def die(message: Msg) -> None:
        dying.set_result(message)
        await asyncio.Event().wait()

    async def silent(message: Msg) -> None: ...

    recorder, first = Recorder(bus), Writer(bus, pool)
    for _ in range(3):
        recorder.add(a_record(project_id))
    await recorder.flush()
    with monkeypatch.context() as patched:
        patched.setattr(Msg, "ack", die)
        patched.setattr(Msg, "nak", silent)
        await first.start()
        message = await dying
        await first.close()
    assert (await count(pool), await unacknowledged(bus)) == (3, 1)
    second = Writer(bus, pool)
    await second.start()
    await message.nak()  # what the server does when the time to acknowledge is over

    async def acknowledged() -> bool:
        return await unacknowledged(bus) == 0

    await eventually(acknowledged)
    assert (second.written, await count(pool), await used_as_stored(pool)) == (3, 3, True)
    await second.close()


async def test_rubbish_is_thrown_away_and_the_rest_is_written(
    bus: EventBus, pool: Pool, project_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "atlas")
    good = [a_record(project_id) for _ in range(4)]
    refused = a_record(project_id, run=replace(a_run(project_id), version=2**40))
    for message in (b"rubbish", b"[{}]", batch(encode(record) for record in (*good[:2], refused, *good[2:]))):
        await bus.jetstream.publish(stream.SUBJECT, message)
    writer = Writer(bus, pool)
    await writer.start()

    async def done() -> bool:
        return await unacknowledged(bus) == 0

    await eventually(done)
    await writer.close()
    assert await count(pool) == 4
    actions = [record.__dict__["action"] for record in caplog.records]
    assert sorted(actions) == ["runs.refused", "runs.unreadable", "runs.unreadable"]


async def test_records_wait_while_nats_is_away(own_nats: OwnNats, pool: Pool, project_id: str) -> None:
    bus = EventBus(own_nats.url)
    await bus.start()
    recorder, writer = Recorder(bus), Writer(bus, pool)
    await writer.start()
    await recorder.start()
    recorder.add(a_record(project_id))

    async def written() -> bool:
        return await count(pool) == written_in_all

    written_in_all = 1
    await eventually(written)
    own_nats.stop()

    async def gone() -> bool:
        return not bus.connected

    await eventually(gone)
    for _ in range(500):
        recorder.add(a_record(project_id))
    own_nats.start()
    written_in_all = 501
    await eventually(written)
    assert recorder.dropped == 0
    await recorder.close()
    await writer.close()
    await bus.close()


async def test_records_wait_while_postgres_is_away(
    bus: EventBus, control_url: str, pool: Pool, project_id: str
) -> None:
    recorder = Recorder(bus)
    recorder.add(a_record(project_id))
    await recorder.flush()
    async with open_pool(control_url.replace("host=", "host=%2Fnowhere"), timeout_s=0.2) as nowhere:
        away = Writer(bus, nowhere)
        await away.start()

        async def refused() -> bool:
            info = await bus.jetstream.consumer_info(stream.NAME, stream.DURABLE)
            return info.num_redelivered is not None and info.num_redelivered > 0

        try:
            await eventually(refused)
        finally:
            await away.close()  # else nothing here ends
    back = Writer(bus, pool)
    await back.start()

    async def written() -> bool:
        return await count(pool) == 1

    try:
        await eventually(written)
    finally:
        await back.close()


async def test_a_full_buffer_drops_the_oldest_and_counts(bus: EventBus, project_id: str) -> None:
    records = [a_record(project_id) for _ in range(20)]
    recorder = Recorder(bus, buffer_bytes=10 * len(encode(records[0])) + 20)
    for record in records:
        recorder.add(record)
    assert recorder.dropped in (10, 11)
    await recorder.flush()
    kept = (await bus.jetstream.get_last_msg(stream.NAME, stream.SUBJECT)).data
    assert kept == batch(map(encode, records[recorder.dropped :]))
    await recorder.close()


async def test_a_process_that_ends_without_nats_says_what_it_lost(
    own_nats: OwnNats, project_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.runs.recorder.CLOSE_S", 0.3)
    bus = EventBus(own_nats.url)
    await bus.start()
    recorder = Recorder(bus)
    await recorder.start()
    own_nats.stop()

    async def gone() -> bool:
        return not bus.connected

    await eventually(gone)
    recorder.add(a_record(project_id))
    recorder.add(a_record(project_id))
    await recorder.close()
    assert recorder.dropped == 2
    await bus.close()
