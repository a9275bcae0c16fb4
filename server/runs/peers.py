"""Ask all processes about what runs in them, over core NATS; those that hold something answer.

    asker     publish(atlas.running.{get,list,cancel}, {project_id, run_id}, reply to an inbox of its own)
    holder    get, list   ──▶ the records
              cancel      ──▶ the record as it is, at once ──▶ the record as it ended

Nobody can say "I have it not" for all, so not finding something takes FIRST_ANSWER_S.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Final

import orjson
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from server.errors import Unavailable
from server.events.bus import EventBus
from server.log import logger
from server.runs import stream
from server.runs.record import RunRecord, batch, decode_batch, encode
from server.runs.running import Running
from server.tasks import end_task

log = logger("runs")

SUBJECT: Final = "atlas.running"
FIRST_ANSWER_S: Final = 0.4
"""For a process whose event loop is busy; an idle one takes a millisecond."""

END_S: Final = 10.0
"""From asking a run to end to its end; a sandbox is killed in some milliseconds."""

MOST: Final = 500
"""Records of one answer."""


class Peers:
    def __init__(self, bus: EventBus, running: Running) -> None:
        self._bus = bus
        self._running = running
        self._subscription: Subscription | None = None
        self._ending: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Answering for this process."""
        self._subscription = await self._bus.client.subscribe(f"{SUBJECT}.*", cb=self._answer)

    async def close(self) -> None:
        if self._subscription is not None:
            with contextlib.suppress(*stream.AWAY):
                await self._subscription.unsubscribe()
        await end_task(*self._ending)

    async def get(self, project_id: str, run_id: str) -> RunRecord | None:
        """The run if it runs anywhere. Unavailable when NATS is away."""
        if (here := self._running.get(project_id, run_id)) is not None:
            return here
        async with self._asked("get", project_id, run_id) as answers:
            return await _next(answers, FIRST_ANSWER_S)

    async def list(self, project_id: str) -> list[RunRecord]:
        """The project's runs that run in any process, in no order; takes FIRST_ANSWER_S."""
        found: list[RunRecord] = []
        async with self._asked("list", project_id) as answers:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_ANSWER_S):
                    while True:
                        found += await answers.get()
        return found

    async def cancel(self, project_id: str, run_id: str) -> RunRecord | None:
        """End the run wherever it runs; how it ended, or None when it runs nowhere. Unavailable when it did not end."""
        if (ended := await self._running.cancel(project_id, run_id)) is not None:
            return ended
        async with self._asked("cancel", project_id, run_id) as answers:
            if await _next(answers, FIRST_ANSWER_S) is None:
                return None
            if (ended := await _next(answers, END_S)) is None:
                raise Unavailable(
                    "The run was told to end, but its server has not said that it did; try again",
                    reason="RUN_NOT_ENDED",
                    metadata={"run_id": run_id},
                    retry_after_ms=1_000,
                )
            return ended

    @contextlib.asynccontextmanager
    async def _asked(
        self, question: str, project_id: str, run_id: str = ""
    ) -> AsyncIterator[asyncio.Queue[Sequence[RunRecord]]]:
        """The answers to a question as they come."""
        answers: asyncio.Queue[Sequence[RunRecord]] = asyncio.Queue()

        async def hear(message: Msg) -> None:
            with contextlib.suppress(ValueError):
                answers.put_nowait(decode_batch(message.data))

        try:
            if not self._bus.connected:
                raise ConnectionError("NATS is away")
            client = self._bus.client
            inbox = client.new_inbox()
            subscription = await client.subscribe(inbox, cb=hear)
            asked = orjson.dumps({"project_id": project_id, "run_id": run_id})
            await client.publish(f"{SUBJECT}.{question}", asked, reply=inbox)
        except stream.AWAY as why:
            raise Unavailable(
                "The other servers cannot be asked about what runs there; try again",
                reason="EVENT_BUS_UNAVAILABLE",
                retry_after_ms=1_000,
            ) from why
        try:
            yield answers
        finally:
            with contextlib.suppress(*stream.AWAY):
                await subscription.unsubscribe()

    async def _answer(self, message: Msg) -> None:
        try:
            asked = orjson.loads(message.data)
            project_id, run_id = asked["project_id"], asked["run_id"]
        except (ValueError, TypeError, KeyError):
            log.error("runs.question", "A question about runs cannot be read", subject=message.subject)
            return
        question = message.subject.rpartition(".")[2]
        if question == "list":
            found = self._running.list(project_id)[:MOST]
        else:
            here = self._running.get(project_id, run_id)
            found = [here] if here is not None else []
        if not found:
            return
        await self._say(message, found)
        if question == "cancel":
            task = asyncio.create_task(self._end(message, project_id, run_id), name="cancel run")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _end(self, message: Msg, project_id: str, run_id: str) -> None:
        if (ended := await self._running.cancel(project_id, run_id)) is not None:
            await self._say(message, [ended])

    async def _say(self, message: Msg, records: Sequence[RunRecord]) -> None:
        with contextlib.suppress(*stream.AWAY):  # whoever asked will ask again
            await message.respond(batch(map(encode, records)))


async def _next(answers: asyncio.Queue[Sequence[RunRecord]], timeout_s: float) -> RunRecord | None:
    """The only record of the next answer; None when none comes in time."""
    try:
        async with asyncio.timeout(timeout_s):
            while not (records := await answers.get()):
                pass
    except TimeoutError:
        return None
    return records[0]
