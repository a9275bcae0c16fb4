"""Runs of workflows, for `atlas workflows`: start, list, show, watch and cancel them."""

import json
from collections.abc import Iterator
from datetime import datetime
from itertools import islice

import click

from atlas.workflows.v1 import workflows_pb2 as pb
from atlas.workflows.v1 import workflows_service_pb2 as service
from server.cli.client import Client, json_body
from server.cli.json_input import json_text
from server.cli.moments import Moment
from server.cli.output import plain, when
from server.cli.problems import FUNCTION_FAILED
from server.cli.report import stopped_lines
from server.cli.session import Session, options

PAGE: int = 200
ENDED = ("succeeded", "failed", "cancelled")


@click.command()
@click.argument("workflow", metavar="ID|NAME")
@click.option("--data", "-d", default="null", metavar="JSON|@FILE|-", help="`trigger.data` of the run.")
@click.option("--run-id", default="", metavar="UUID", help="Started again with the same id, it is one run. [a new one]")
@click.option("--watch", is_flag=True, help="Tell each step until the run has ended.")
@options
def run(session: Session, workflow: str, data: str, run_id: str, watch: bool) -> int:
    """Start a run; prints its id."""
    client = session.client
    body = json_body(f'{{"input": {json_text(data, "--data")}, "run_id": {json.dumps(run_id)}}}')
    request = service.RunWorkflowHttpRequest(
        project_id=client.project_id, workflow_id=client.workflow_id(workflow), body=body
    )
    started = client.call(client.workflows.RunWorkflowHttp, request)
    if watch:
        session.out.note(started.id)
        return _watch(session, started.id)
    if session.out.json:
        session.out.document(plain(started))
    else:
        session.out.text(started.id)
        session.out.note(f"Its steps: atlas workflows watch {started.id}")
    return 0


@click.command()
@click.argument("workflow", metavar="[ID|NAME]", required=False)
@click.option("--state", type=click.Choice(("running", *ENDED)), help="Only runs in this state.")
@click.option("--since", type=Moment(), metavar="TIME", help="Like 10m, 2h, 3d or 2026-01-31T12:00.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@options
def runs(session: Session, workflow: str | None, state: str | None, since: datetime | None, limit: int) -> None:
    """List runs, the newest first; of one workflow, or of all."""
    client = session.client
    request = service.ListWorkflowRunsRequest(
        project_id=client.project_id,
        workflow=client.workflow_id(workflow) if workflow else "",
        state=state or "",
        page_size=min(limit, PAGE),
    )
    if since is not None:
        request.since.FromDatetime(since)
    found = list(islice(_every_run(client, request), limit))
    if session.out.json:
        return session.out.document({"runs": [plain(item) for item in found]})
    rows = ((when(item.created_at), item.state, item.version, item.workflow_id, item.id) for item in found)
    return session.out.table(("TIME", "STATE", "VERSION", "WORKFLOW", "RUN"), rows)


@click.command()
@click.argument("run_id")
@options
def show(session: Session, run_id: str) -> None:
    """Show one run with its steps."""
    client = session.client
    if session.out.json:
        asked = service.GetWorkflowRunHttpRequest(project_id=client.project_id, run_id=run_id)
        return session.out.document(client.call_json(client.workflows.GetWorkflowRunHttp, asked))
    request = service.GetWorkflowRunRequest(project_id=client.project_id, run_id=run_id)
    found = client.call(client.workflows.GetWorkflowRun, request)
    session.out.text(f"{_ending(found)}  version {found.version} of {found.workflow_id}")
    session.out.text(f"began {when(found.created_at)}, ended {when(found.finished_at) or 'not yet'}")
    for line in stopped_lines(found):
        session.out.text(line)
    rows = ((item.node_id, item.type, item.state, item.attempts, item.error.message) for item in found.steps)
    return session.out.table(("STEP", "TYPE", "STATE", "ATTEMPTS", "ERROR"), rows)


@click.command()
@click.argument("run_id")
@click.argument("node_id", metavar="STEP")
@options
def step(session: Session, run_id: str, node_id: str) -> None:
    """Show one step of a run with its input, its output and its attempts, as JSON."""
    client = session.client
    request = service.GetWorkflowStepHttpRequest(project_id=client.project_id, run_id=run_id, node_id=node_id)
    session.out.document(client.call_json(client.workflows.GetWorkflowStepHttp, request))


@click.command()
@click.argument("run_id")
@options
def watch(session: Session, run_id: str) -> int:
    """Tell what each step does until the run has ended; exit code 1 unless it succeeded. With --json, a line each."""
    return _watch(session, run_id)


@click.command()
@click.argument("run_id")
@options
def cancel(session: Session, run_id: str) -> None:
    """End a run, wherever its steps are."""
    client = session.client
    request = service.CancelWorkflowRunRequest(project_id=client.project_id, run_id=run_id)
    ended = client.call(client.workflows.CancelWorkflowRun, request)
    if session.out.json:
        return session.out.document(plain(ended))
    return session.out.text(f"{ended.id}: {ended.state}")


def _every_run(client: Client, request: service.ListWorkflowRunsRequest) -> Iterator[pb.WorkflowRun]:
    """Newest first, without their steps, page by page as they are asked for."""
    while True:
        page = client.call(client.workflows.ListWorkflowRuns, request)
        yield from page.runs
        request.page_token = page.next_page_token
        if not request.page_token:
            return


def _watch(session: Session, run_id: str) -> int:
    client = session.client
    request = service.WatchWorkflowRunRequest(project_id=client.project_id, run_id=run_id)
    state = ""
    for change in client.stream(client.workflows.WatchWorkflowRun, request):
        state = change.run.state
        if session.out.json:
            session.out.line(plain(change.run))
            continue
        for item in change.run.steps:
            if item.state != "pending":
                session.out.text(f"{item.node_id}  {_step(item)}")
        if state in ENDED:
            session.out.text(_ending(change.run))
    return 0 if state == "succeeded" else FUNCTION_FAILED


def _step(item: pb.WorkflowStep) -> str:
    attempt = f", attempt {item.attempts}" if item.attempts > 1 else ""
    due = f" until {when(item.due_at)}" if item.state == "waiting" and item.HasField("due_at") else ""
    error = f": {item.error.reason}: {item.error.message}" if item.HasField("error") else ""
    return f"{item.state}{due}{attempt}{error}"


def _ending(found: pb.WorkflowRun) -> str:
    if not found.HasField("error"):
        return found.state
    return f"{found.state}  {found.error.node_id}: {found.error.reason}: {found.error.message}"
