"""A stack whose own processes are killed in the middle of work: nothing accepted is lost, nobody is left waiting."""

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import httpx
import psycopg
import pytest

from server.stack import bootstrap, postgres
from tests.fix_clients import Rest, connected
from tests.fix_up import Stack

RUNS = 50
SLUGS = ("quickjs", "node", "deno", "wasm")
COUNTS = """
export default async (n) => {
  await atlas.db.query("INSERT INTO begun VALUES ($1)", [n]);
  await new Promise((done) => setTimeout(done, 400));
  return n;
}
"""
SLOW_AT_FIRST = """
export default async (ms, ctx) => {
  if (await atlas.kv.get(ctx.invocation_id)) return "again";
  await atlas.kv.set(ctx.invocation_id, true);
  await new Promise((done) => setTimeout(done, ms));
};
"""
SPINS = "export default () => { while (true); }"
SLOW = "export default (ms) => new Promise((done) => setTimeout(() => done('slept'), ms))"


@pytest.fixture
def control(make_stack: Callable[..., Stack]) -> Iterator[tuple[Stack, "psycopg.Connection[tuple[int, ...]]"]]:
    """A stack of two API processes, and its own database."""
    stack = make_stack(ATLAS_API_PROCESSES="2").start()
    with psycopg.connect(postgres.url(stack.run / "pg", bootstrap.CONTROL), autocommit=True) as connection:
        yield stack, connection


def test_no_asynchronous_run_is_lost_with_the_worker_that_ran_it(
    control: tuple[Stack, "psycopg.Connection[tuple[int, ...]]"],
) -> None:
    stack, database = control

    def count(what: str) -> int:
        row = database.execute(f"SELECT count(*) FROM async_runs WHERE {what}".encode()).fetchone()
        assert row
        return row[0]

    with connected(stack) as rest:
        with psycopg.connect(stack.env["TENANT_DATABASE_URL"], autocommit=True) as tenant:
            tenant.execute("CREATE TABLE begun (n int)")
        assert rest.deploy(COUNTS, slug="counts").status_code == 200
        ids = [rest.queue("counts", number) for number in range(RUNS)]
        stack.until(lambda: count("state = 'running'") > 0 < count("state = 'finished'"), 30, "no run runs")
        worker = stack.processes()["worker-0"]
        os.kill(worker, signal.SIGSTOP)  # so that what runs now runs when it dies
        assert count("state = 'running'") > 0
        os.kill(worker, signal.SIGKILL)
        stack.until(lambda: count("state = 'finished'") == RUNS, 60, "the runs do not end")

        assert [rest.result(run_id).json()["result"] for run_id in ids] == list(range(RUNS))
        stack.until(lambda: len(rest.runs(state="finished")) == RUNS, 20, "records are missing")
        assert Counter(run["outcome"] for run in rest.runs()) == {"ok": RUNS}
        assert {run["id"] for run in rest.runs()} == set(ids)
    again = count("attempts = 2")
    assert again > 0
    assert count("attempts = 1") == RUNS - again
    with psycopg.connect(stack.env["TENANT_DATABASE_URL"]) as tenant:
        begun = tenant.execute("SELECT count(*), count(DISTINCT n) FROM begun").fetchone()
    assert begun
    assert begun[0] <= RUNS + again
    assert begun[1] == RUNS


def test_callers_of_an_api_process_that_is_killed_are_told_and_the_other_one_serves(
    make_stack: Callable[..., Stack],
) -> None:
    stack = make_stack(ATLAS_API_PROCESSES="2", ATLAS_SANDBOX_MAX_CHILDREN_PER_PROJECT="16").start()
    with connected(stack) as rest, ThreadPoolExecutor(12) as threads:
        assert rest.deploy(SLOW, slug="slow").status_code == 200
        pending = [threads.submit(rest.invoke, "slow", 3_000) for _ in range(12)]
        stack.until(lambda: len(rest.runs(state="running")) == len(pending), 30, "they do not run")
        os.kill(stack.processes()["api-0"], signal.SIGKILL)
        assert next(as_completed(pending)).result().status_code == 503
        while "api-0 is back" not in stack.said:
            answer = rest.invoke("slow", 0)
            assert answer.status_code == 200, answer.text
        answers = [one.result() for one in pending]
        told = [answer for answer in answers if answer.status_code != 200]
        assert 0 < len(told) < len(answers)
        for answer in told:
            assert answer.status_code == 503
            assert "while it served the request" in answer.json()["error"]["message"]
        assert {answer.json()["result"] for answer in answers if answer.status_code == 200} == {"slept"}


def test_ctrl_c_in_the_middle_of_everything(
    make_stack: Callable[..., Stack], wasm_image: object, tmp_path: Path
) -> None:
    """Calls, asynchronous runs and tails on every runtime: it ends in ten seconds, and nothing of it is left."""
    stack = make_stack(ATLAS_FUNCTIONS_MAX_FUEL=str(10**15), TMPDIR=str(tmp_path)).start()
    assert stack.process
    with connected(stack) as rest, ThreadPoolExecutor(16) as threads:
        for slug in SLUGS:
            source = SPINS if slug == "wasm" else SLOW_AT_FIRST
            deployed = rest.deploy(source, slug=slug, runtime=slug, settings={"timeout_ms": 10_000})
            assert deployed.status_code == 200, deployed.text
        tail = threads.submit(_follow, rest)
        calls = [threads.submit(rest.invoke, slug, 9_500) for slug in SLUGS]
        slow = [rest.queue(slug, 9_000) for slug in SLUGS if slug != "wasm"]
        stack.until(lambda: len(rest.runs(state="running")) == len(calls) + len(slow), 30, "they do not run")
        assert stack.stop(signal.SIGINT) == 0  # waits no longer than STOP_S
        assert "Stopped in " in stack.said
        assert float(stack.said.rpartition("Stopped in ")[2].partition(" s")[0]) < 10
        for call in calls:
            assert call.exception() is not None or call.result().status_code >= 500
        tail.result()
    assert not stack.leftovers()
    assert not stack.sockets()
    assert not list(tmp_path.iterdir())

    stack.start()  # and what was accepted is done then
    with connected(stack) as rest:
        stack.until(lambda: all(rest.result(run_id).status_code == 200 for run_id in slow), 30, "runs were lost")
        assert [rest.result(run_id).json()["result"] for run_id in slow] == ["again"] * len(slow)


def _follow(rest: Rest) -> int:
    """Bytes of a tail until it ends."""
    path = f"/v1/projects/{rest.project_id}/runs:tail"
    seen = 0
    try:
        with rest.client.stream("GET", path, headers={"authorization": f"Bearer {rest.service_key}"}) as answer:
            for chunk in answer.iter_raw():
                seen += len(chunk)
    except httpx.HTTPError:
        pass
    return seen
