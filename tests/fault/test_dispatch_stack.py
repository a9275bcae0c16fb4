"""Events through a whole stack: from REST to a run's record, also while Valkey is away and when its worker dies."""

import os
import signal
from collections.abc import Callable

import psycopg

from server.stack import bootstrap, postgres
from tests.fix_clients import Rest, connected
from tests.fix_up import Stack

MakeStack = Callable[..., Stack]
ECHO = "export default (event, ctx) => { console.log(ctx.event.id, ctx.event.attempt); return event.data }"
TYPE = "order.paid"


def control(stack: Stack) -> psycopg.Connection:
    return psycopg.connect(postgres.url(stack.run / "pg", bootstrap.CONTROL), autocommit=True)


def add_trigger(stack: Stack, rest: Rest, slug: str) -> None:
    with control(stack) as connection:
        connection.execute(
            "WITH made AS (INSERT INTO triggers (project_id, event_type, target_type, function_id)"
            " SELECT project_id, %s, 'function', id FROM functions WHERE project_id = %s AND slug = %s"
            " RETURNING project_id, id) SELECT pg_notify('atlas_changes', 'trigger:' || project_id || '/' || id)"
            " FROM made",
            [TYPE, rest.project_id, slug],
        )


def publish(rest: Rest, count: int) -> bool:
    """False, for whoever goes on to ask something else."""
    events = [{"type": TYPE, "data": number} for number in range(count)]
    answer = rest.request(
        "POST", f"/v1/projects/{rest.project_id}/events", key=rest.service_key, json={"events": events}
    )
    assert answer.status_code == 200, answer.text
    return False


def done(stack: Stack) -> int:
    """How many deliveries are done, once all are."""
    with control(stack) as connection:
        found = connection.execute("SELECT count(*), count(*) FILTER (WHERE state = 'done') FROM deliveries").fetchone()
    assert found
    return int(found[1]) if found[0] == found[1] else 0


def test_events_run_functions_without_valkey_and_after_their_worker_died(make_stack: MakeStack) -> None:
    stack = make_stack().start()
    with connected(stack) as rest:
        assert rest.deploy(ECHO, slug="echo", settings={"concurrency": 4}).status_code == 200
        add_trigger(stack, rest, "echo")
        stack.until(lambda: publish(rest, 1) or done(stack) > 0, 30, "events do not run")
        stack.until(lambda: done(stack) > 0, 30, "events do not run")
        first = done(stack)
        os.kill(stack.processes()["valkey-server"], signal.SIGSTOP)  # it answers nothing any more
        publish(rest, 20)
        stack.until(lambda: done(stack) >= first + 20, 30, "events wait for Valkey")
        os.kill(stack.processes()["valkey-server"], signal.SIGKILL)
        publish(rest, 100)
        os.kill(stack.processes()["worker-0"], signal.SIGKILL)
        stack.until(lambda: done(stack) >= first + 120, 60, "events were lost with the worker")
        stack.until(lambda: len(rest.runs(outcome="ok")) >= 40, 30, "runs are not recorded")
