"""A stack that is killed under uploads: what was acknowledged is there and told, and what is told is there."""

import os
import re
import signal
import threading
from collections.abc import Callable

import httpx
import nats
import psycopg
import pytest

from server.events import stream
from server.stack import bootstrap, postgres
from tests.fix_clients import Rest, connected
from tests.fix_up import Stack

OBJECTS = 240
WRITERS = 4


@pytest.mark.parametrize("backend", ["disk", "jetstream"])
async def test_uploads_survive_deaths_of_everything(make_stack: Callable[..., Stack], backend: str) -> None:
    stack = make_stack(ATLAS_API_PROCESSES="2", ATLAS_STORAGE_BACKEND=backend).start()
    acknowledged: set[str] = set()
    with connected(stack) as rest:
        writers = [threading.Thread(target=write, args=(rest, number, acknowledged)) for number in range(WRITERS)]
        for writer in writers:
            writer.start()
        for number, name in enumerate(("api-0", "worker-0", "nats-server", "api-1", "worker-0", "postgres")):
            wanted = (number + 1) * OBJECTS // 9
            stack.until(lambda wanted=wanted: len(acknowledged) >= wanted, 60, "uploads stand still")  # type: ignore[misc]
            os.kill(stack.processes()[name], signal.SIGKILL)
        for writer in writers:
            writer.join(120)
        assert len(acknowledged) == OBJECTS

        stack.until(lambda: outbox_is_empty(stack), 60, "events wait")
        kept = {
            path: rest.request("GET", f"/storage/v1/object/files/{path}", key=rest.service_key) for path in acknowledged
        }
        assert {path: answer.text for path, answer in kept.items()} == {path: content(path) for path in acknowledged}
    assert set(await uploads(stack)) == acknowledged


def content(path: str) -> str:
    return path * 50


def write(rest: Rest, writer: int, acknowledged: set[str]) -> None:
    """Its share of the objects, each again until that is acknowledged."""
    for number in range(writer, OBJECTS, WRITERS):
        path = f"o/{number}"
        while True:
            try:
                answer = rest.request(
                    "PUT", f"/storage/v1/object/files/{path}", key=rest.service_key, content=content(path).encode()
                )
            except httpx.TransportError:
                continue
            if answer.status_code == 200:
                break
            assert answer.status_code in (503, 504), answer.text
        acknowledged.add(path)


def outbox_is_empty(stack: Stack) -> bool:
    with psycopg.connect(postgres.url(stack.run / "pg", bootstrap.CONTROL)) as connection:
        return connection.execute("SELECT FROM event_outbox LIMIT 1").fetchone() is None


async def uploads(stack: Stack) -> list[str]:
    """The paths that the stream tells of, in its order; of an event, each time it is there."""
    address, token = re.findall(r'listen: "(.+?)"|token: "(.+?)"', (stack.run / "nats.conf").read_text())
    client = await nats.connect(f"nats://{token[1]}@{address[0]}")
    jetstream = client.jetstream()
    paths, ids = [], []
    for number in range(1, (await jetstream.stream_info(stream.NAME)).state.last_seq + 1):
        message = await jetstream.get_msg(stream.NAME, number)
        event = stream.event_of(message.subject or "", message.data or b"")
        if event.type == "storage.upload":
            paths.append(event.data.value["path"])
            ids.append(event.id)
    await client.close()
    assert len(ids) == len(set(ids)), "an event is told twice"
    return paths
