"""`atlas logs`: what functions wrote and how their runs ended, from the records or live."""

import time
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from typing import Final

import click

from atlas.runs.v1 import runs_pb2 as pb
from atlas.runs.v1 import runs_service_pb2 as service
from server.cli.commands.runs import OUTCOME, every_run
from server.cli.moments import Moment
from server.cli.output import plain
from server.cli.problems import UNAVAILABLE, Problem
from server.cli.report import tell
from server.cli.session import Session, options

AGAIN_S: Final = 1.0
"""Between two attempts to go on with a tail that was cut off."""


@click.command()
@click.argument("slug", required=False)
@click.option("--follow", "-f", is_flag=True, help="Runs as they end from now on, until Ctrl-C.")
@OUTCOME
@click.option("--since", type=Moment(), metavar="TIME", help="Like 10m, 2h, 3d or 2026-01-31T12:00.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many runs, the newest.")
@options
def logs(
    session: Session, slug: str | None, follow: bool, outcome: str | None, since: datetime | None, limit: int
) -> None:
    """Print runs with their console lines, the oldest first; of one function, or of the whole project.

    With --json, one run a line.

    \b
    atlas logs hello
    atlas logs hello --follow
    atlas logs --outcome exception --since 1h
    """
    found = _tail(session, slug, outcome or "") if follow else _kept(session, slug, outcome or "", since, limit)
    for run in found:
        if session.out.json:
            session.out.line(plain(run))
        else:
            tell(session.out, run)


def _kept(session: Session, slug: str | None, outcome: str, since: datetime | None, limit: int) -> Iterator[pb.Run]:
    client = session.client
    newest = list(islice(every_run(client, slug, outcome, "", since, limit), limit))
    for run in reversed(newest):
        request = service.GetRunRequest(project_id=client.project_id, run_id=run.id)
        yield client.call(client.runs.GetRun, request)


def _tail(session: Session, slug: str | None, outcome: str) -> Iterator[pb.Run]:
    """Goes on after a server was away; what ended in between is in the records only."""
    client = session.client
    function_id = client.function(slug).id if slug else ""
    request = service.TailRunsRequest(project_id=client.project_id, function=function_id, outcome=outcome)
    begun = False
    while True:
        try:
            for item in client.stream(client.runs.TailRuns, request):
                begun = True
                if item.dropped:
                    session.out.note(f"{item.dropped} runs were left out: this terminal reads too slowly")
                if item.HasField("run"):
                    yield item.run
        except Problem as problem:
            if not begun or problem.exit_code != UNAVAILABLE:
                raise
            session.out.note(f"Cut off: {problem}; trying again")
        time.sleep(AGAIN_S)
