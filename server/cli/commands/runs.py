"""`atlas runs`, `run` and `cancel`: the records of invocations."""

from collections.abc import Iterator
from datetime import datetime
from itertools import islice

import click

from atlas.runs.v1 import runs_pb2 as pb
from atlas.runs.v1 import runs_service_pb2 as service
from engines.contract import Outcome
from server.cli.client import Client
from server.cli.moments import Moment
from server.cli.output import plain, when
from server.cli.report import COLUMNS, log_lines, metrics_line, outcome_of, row, stopped_lines
from server.cli.session import Session, options

PAGE: int = 200
OUTCOME = click.option(
    "--outcome", type=click.Choice([item.value for item in Outcome]), help="Only runs that ended so."
)


@click.command()
@click.argument("slug", required=False)
@OUTCOME
@click.option("--state", type=click.Choice(("queued", "running", "finished")), help="Only runs in this state.")
@click.option("--since", type=Moment(), metavar="TIME", help="Like 10m, 2h, 3d or 2026-01-31T12:00.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@options
def runs(
    session: Session, slug: str | None, outcome: str | None, state: str | None, since: datetime | None, limit: int
) -> None:
    """List runs, the newest first; of one function, or of the whole project.

    \b
    atlas runs hello --outcome wall_limit
    atlas runs --state running
    """
    found = list(islice(every_run(session.client, slug, outcome or "", state or "", since, limit), limit))
    if session.out.json:
        return session.out.document({"runs": [plain(item) for item in found]})
    return session.out.table(COLUMNS, map(row, found))


@click.command()
@click.argument("run_id")
@options
def run(session: Session, run_id: str) -> None:
    """Show one run: how it ended, what it used, and its console."""
    client = session.client
    found = client.call(client.runs.GetRun, service.GetRunRequest(project_id=client.project_id, run_id=run_id))
    if session.out.json:
        return session.out.document(plain(found))
    return session.out.text("\n".join(_details(found)))


@click.command()
@click.argument("run_id")
@options
def cancel(session: Session, run_id: str) -> None:
    """End a run, wherever it is, or take it from the queue."""
    client = session.client
    request = service.CancelRunRequest(project_id=client.project_id, run_id=run_id)
    ended = client.call(client.runs.CancelRun, request)
    if session.out.json:
        return session.out.document(plain(ended))
    return session.out.text(f"{ended.id}: {outcome_of(ended)}")


def every_run(
    client: Client, slug: str | None, outcome: str, state: str, since: datetime | None, limit: int
) -> Iterator[pb.Run]:
    """Newest first, without their logs, page by page as they are asked for."""
    request = service.ListRunsRequest(
        project_id=client.project_id,
        function=client.function(slug).id if slug else "",
        outcome=outcome,
        state=state,
        page_size=min(limit, PAGE),
    )
    if since is not None:
        request.since.FromDatetime(since)
    while True:
        page = client.call(client.runs.ListRuns, request)
        yield from page.runs
        request.page_token = page.next_page_token
        if not request.page_token:
            return


def _details(found: pb.Run) -> Iterator[str]:
    function = f"{found.slug} version {found.version}, {found.runtime}, asked for by {found.trigger}"
    yield f"{outcome_of(found)}  {function}"
    yield f"accepted {when(found.created_at)}, ended {when(found.finished_at) or 'not yet'}"
    yield metrics_line(found.metrics)
    for name, value in (("request", found.request_id), ("trace", found.trace_id)):
        if value:
            yield f"{name} {value}"
    yield from stopped_lines(found)
    yield from log_lines(found)
