"""Old runs are deleted in portions that a statement ends within its time, whatever they have of steps."""

import pytest

from server.errors import Unavailable
from server.postgres.control import Pool
from server.workflows.definition import MAX_NODES
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
    assert await WorkflowRetention(pool, keep_hours=1).sweep() == RUNS
    assert await site.execute("SELECT 1 FROM workflow_steps") == []


async def test_the_end_of_a_project_goes_the_same_way(site: Site, pool: Pool) -> None:
    await refuse_more_than(site, 1)
    await WorkflowRetention(pool, keep_hours=1).remove_project(site.project_id)
    assert await site.execute("SELECT 1 FROM workflow_runs") == []


async def test_it_ends_when_not_even_one_can_be_deleted(site: Site, pool: Pool) -> None:
    await refuse_more_than(site, 0)
    with pytest.raises(Unavailable):
        await WorkflowRetention(pool, keep_hours=1).sweep()
    assert await site.execute("SELECT count(*) FROM workflow_runs") == [(RUNS,)]
