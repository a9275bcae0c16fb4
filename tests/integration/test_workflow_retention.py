"""What is kept of finished runs, in time and in bytes; and that old ones are deleted in portions that a statement ends
within its time, whatever they have of steps."""

import json

import pytest

from server.errors import Unavailable
from server.postgres.control import Pool
from server.workflows import running
from server.workflows.definition import MAX_NODES
from server.workflows.nodes.step import Output
from server.workflows.retention import STEPS, WorkflowRetention
from tests.fix_workflows import Site, kv

RUNS = 30
AT_ONCE = STEPS // MAX_NODES


@pytest.fixture
async def site(workflow_site: Site) -> Site:
    """With finished runs of as many steps as there may be."""
    workflow_id = await workflow_site.define([kv("a")])
    run_id = await workflow_site.run(workflow_id)
    await workflow_site.execute("DELETE FROM workflow_steps")
    await workflow_site.execute(
        "INSERT INTO workflow_runs (id, project_id, workflow_id, version, state, event, finished_at)"
        " SELECT gen_random_uuid(), project_id, workflow_id, version, 'succeeded', event, now() - interval '2 hours'"
        " FROM workflow_runs, generate_series(1, %s)",
        RUNS,
    )
    await workflow_site.execute("DELETE FROM workflow_runs WHERE id = %s", run_id)
    await workflow_site.execute(
        "INSERT INTO workflow_steps (run_id, project_id, node_id, place, type, state)"
        " SELECT id, project_id, 'n' || place, place, 'kv', 'succeeded'"
        " FROM workflow_runs, generate_series(1, %s) AS place",
        MAX_NODES,
    )
    return workflow_site


async def refuse_more_than(site: Site, runs: int) -> None:
    """As a statement that takes too long."""
    await site.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF (SELECT count(*) FROM gone) > {runs} THEN"
        "   RAISE query_canceled USING MESSAGE = 'canceling statement due to statement timeout'; END IF;"
        " RETURN NULL; END $$"
    )
    await site.execute(
        "CREATE TRIGGER slow AFTER DELETE ON workflow_runs REFERENCING OLD TABLE AS gone"
        " FOR EACH STATEMENT EXECUTE FUNCTION slow()"
    )


@pytest.mark.parametrize("most", [AT_ONCE, AT_ONCE // 3, 1])
async def test_portions_are_of_so_many_steps_and_smaller_when_that_takes_too_long(
    site: Site, pool: Pool, most: int
) -> None:
    await refuse_more_than(site, most)
    assert await WorkflowRetention(pool, keep_hours=1, keep_mb=256).sweep() == RUNS
    assert await site.execute("SELECT 1 FROM workflow_steps") == []


async def test_the_end_of_a_project_goes_the_same_way(site: Site, pool: Pool) -> None:
    await refuse_more_than(site, 1)
    await WorkflowRetention(pool, keep_hours=1, keep_mb=256).remove_project(site.project_id)
    assert await site.execute("SELECT 1 FROM workflow_runs") == []


async def test_it_ends_when_not_even_one_can_be_deleted(site: Site, pool: Pool) -> None:
    await refuse_more_than(site, 0)
    with pytest.raises(Unavailable):
        await WorkflowRetention(pool, keep_hours=1, keep_mb=256).sweep()
    assert await site.execute("SELECT count(*) FROM workflow_runs") == [(RUNS,)]


LARGE = {"text": "x" * 100_000}


async def finished(site: Site, runs: int) -> list[str]:
    """That many, of two steps each, with a large event that both steps get."""
    await site.worker(lambda _: given(b"1"))
    workflow_id = await site.define([kv("a", "{{trigger}}"), kv("b", "{{trigger.text}}")], "a b")
    ids = [await site.run(workflow_id, LARGE) for _ in range(runs)]
    for run_id in ids:
        assert (await site.ended(run_id))[0].state == "succeeded"
    return ids


async def given(output: bytes) -> Output:
    return Output(json=output)


async def test_a_large_input_is_not_stored_and_can_be_seen(workflow_site: Site) -> None:
    site = workflow_site
    (run_id,) = await finished(site, 1)
    _, steps = await site.get(run_id)
    assert [(step.input, step.omitted) for step in steps.values()] == [(None, True)] * 2
    assert await site.execute("SELECT sum(octet_length(input))::integer FROM workflow_steps") == [(0,)]
    shown = [(await site.workflows.step(site.project_id, run_id, name)).input for name in "ab"]
    inputs = [json.loads(text or b"")["value"] for text in shown]
    assert (inputs[0]["data"], inputs[0]["id"], inputs[1]) == (LARGE, run_id, LARGE["text"])


async def test_of_each_project_so_much_is_kept_of_the_newest(workflow_site: Site, pool: Pool) -> None:
    """What runs is not counted."""
    site = workflow_site
    ids = await finished(site, 5)
    await site.execute("UPDATE workflow_runs SET state = 'running', finished_at = NULL WHERE id = %s", ids[1])
    keeps_two = WorkflowRetention(pool, keep_hours=1, keep_mb=0.25)
    assert [await keeps_two.sweep() for _ in range(2)] == [2, 0]
    kept = await site.execute("SELECT id, bytes > 100000 FROM workflow_runs ORDER BY created_at")
    assert kept == [(ids[1], None), (ids[3], True), (ids[4], True)]
    usage = "SELECT coalesce(sum(bytes), 0)::bigint FROM workflow_usage"
    assert await site.execute(usage) == await site.execute("SELECT sum(bytes)::bigint FROM workflow_runs")
    await site.execute("UPDATE workflow_runs SET finished_at = now() - interval '2 hours' WHERE id = %s", ids[4])
    assert await keeps_two.sweep() == 1
    assert await site.execute(usage) == await site.execute("SELECT sum(bytes)::bigint FROM workflow_runs")
    await keeps_two.remove_project(site.project_id)
    assert await site.execute(usage) == [(0,)]


async def test_what_the_outputs_of_a_run_have_together_is_bounded(
    workflow_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = workflow_site
    monkeypatch.setattr(running, "MAX_RUN_BYTES", 45_000)
    await site.worker(lambda attempt: given(b'"' + b"x" * (10 if attempt.node.id == "c" else 20_000) + b'"'))
    run_id = await site.run(await site.define([kv("a"), kv("b"), kv("c"), kv("d")], "a b", "b c", "c d"))
    run, steps = await site.ended(run_id)
    assert [step.state for step in steps.values()] == ["succeeded", "succeeded", "succeeded", "failed"]
    assert run.error is not None
    assert (run.error["node_id"], run.error["reason"]) == ("d", "RUN_OUTPUTS_TOO_LARGE")
    assert "45000" in run.error["message"]
