"""What the record of a run costs the process that ran it: CPU time of making, encoding and sending it to a NATS."""

import asyncio
import shutil
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from engines.contract import LogLine, Metrics, Outcome, Result
from server.events.bus import EventBus
from server.runs import stream
from server.runs.record import Run, finished
from server.runs.recorder import Recorder
from server.stack import nats
from server.stack.account import servant
from server.stack.part import start
from tests.bench.rows import Row
from tests.bench.stack import new_folder

TITLE = "Run records, in the API process"
RECORDS: Final = 9_000
PER_S: Final = 3_000
INVOKE_US: Final = 270.0
"""API CPU of a warm invocation, as `wire` measures it; shown beside, not measured here."""

LINES: Final = tuple(LogLine(level="log", text=f"line {number}", at_ms=number) for number in range(3))


async def measure() -> list[Row]:
    """About 8 s."""
    folder, account = new_folder(), servant()
    port = nats.free_port()
    part = nats.part(
        data=folder / "nats",
        port=port,
        config=folder / "nats.conf",
        programs=folder / "bin",
        log=folder / "nats.log",
        token="bench",
        account=account,
    )
    server = start(part, str(folder))
    try:
        await asyncio.to_thread(server.wait_ready)
        bus = EventBus(nats.url(port, "bench"))
        await bus.start()
        await stream.ensure(bus)
        plain_us, logged_us = await cpu_us(bus, ()), await cpu_us(bus, LINES)
        await bus.close()
    finally:
        server.kill()
        server.close()
        shutil.rmtree(folder)
    return [
        Row("record without console lines, CPU", plain_us, "µs", baseline=INVOKE_US),
        Row("record with three, CPU", logged_us, "µs", baseline=INVOKE_US),
        Row("share of a warm invocation's CPU", 100 * plain_us / INVOKE_US, "%", "< 10"),
    ]


async def cpu_us(bus: EventBus, lines: tuple[LogLine, ...]) -> float:
    """CPU microseconds a record at PER_S, everything included but the waiting itself."""
    recorder = Recorder(bus)
    await recorder.start()
    result = Result(outcome=Outcome.OK, metrics=Metrics(wall_ms=1.5, cpu_ms=0.3, memory_bytes=300_000), logs=lines)
    project, function = str(uuid.uuid4()), str(uuid.uuid4())
    idle_us = await _spent_us(lambda: None)
    busy_us = await _spent_us(lambda: recorder.add(finished(_run(project, function), result, at=datetime.now(UTC))))
    await recorder.close()
    assert recorder.dropped == 0
    return (busy_us - idle_us) / RECORDS


async def _spent_us(add: Callable[[], None]) -> float:
    began_s = time.process_time()
    for _ in range(RECORDS // (PER_S // 100)):
        for _ in range(PER_S // 100):
            add()
        await asyncio.sleep(0.01)
    return (time.process_time() - began_s) * 1e6


def _run(project_id: str, function_id: str) -> Run:
    return Run(
        id=str(uuid.uuid4()),
        project_id=project_id,
        function_id=function_id,
        slug="bench",
        version=1,
        runtime="quickjs",
        trigger="http",
        created_at=datetime.now(UTC),
        request_id="bench",
    )
