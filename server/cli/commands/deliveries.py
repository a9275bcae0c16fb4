"""`atlas deliveries`: what became of events, event by trigger; run dead letters again."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import Any

import click

from atlas.deliveries.v1 import deliveries_pb2 as pb
from atlas.deliveries.v1 import deliveries_service_pb2 as service
from server.cli.client import Client
from server.cli.moments import Moment
from server.cli.output import plain, when
from server.cli.session import Session, options

PAGE: int = 200
STATES = ("queued", "running", "held", "done", "dead", "skipped", "cancelled")
COLUMNS = ("TIME", "EVENT", "STATE", "OUTCOME", "ATTEMPTS", "TRIGGER", "DELIVERY")

TRIGGER = click.option("--trigger", default="", metavar="ID", help="Only of this trigger.")
TYPE = click.option("--type", "event_type", default="", help="Only of events of this type.")
OUTCOME = click.option("--outcome", default="", help="Only those whose last attempt ended so, such as exception.")
SINCE = click.option("--since", type=Moment(), metavar="TIME", help="Like 10m, 2h, 3d or 2026-01-31T12:00.")
UNTIL = click.option("--until", type=Moment(), metavar="TIME", help="As --since, not included.")


@click.group(invoke_without_command=True)
@TRIGGER
@click.option("--event", default="", metavar="ID", help="Only of this event.")
@TYPE
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@OUTCOME
@SINCE
@UNTIL
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@options
@click.pass_context
def deliveries(context: click.Context, /, session: Session, limit: int, **filters: Any) -> None:
    """List deliveries, the newest first: one for each event and trigger that met.

    \b
    atlas deliveries --state dead --since 1d
    atlas deliveries get 6f1c…
    atlas deliveries replay --trigger 7f1c… --outcome exception
    """
    if context.invoked_subcommand is not None:
        return None
    found = list(islice(_every(session.client, limit, **filters), limit))
    if session.out.json:
        return session.out.document({"deliveries": [plain(item) for item in found]})
    return session.out.table(COLUMNS, map(_row, found))


@deliveries.command()
@click.argument("delivery_id")
@options
def get(session: Session, delivery_id: str) -> None:
    """Show one delivery: its event, every attempt, and what went wrong."""
    client = session.client
    if session.out.json:
        request = service.GetDeliveryHttpRequest(project_id=client.project_id, delivery_id=delivery_id)
        return session.out.document(client.call_json(client.deliveries.GetDeliveryHttp, request))
    asked = service.GetDeliveryRequest(project_id=client.project_id, delivery_id=delivery_id)
    return session.out.text("\n".join(_details(client.call(client.deliveries.GetDelivery, asked))))


@deliveries.command()
@click.argument("ids", nargs=-1, metavar="[DELIVERY_ID]...")
@click.option("--all", "every", is_flag=True, help="All dead letters of the project.")
@TRIGGER
@TYPE
@OUTCOME
@click.option("--reason", default="", help="Only those whose error has this reason, such as FUNCTION_EXCEPTION.")
@SINCE
@UNTIL
@options
def replay(session: Session, ids: tuple[str, ...], every: bool, **filters: Any) -> None:
    """Run deliveries again: the named ones if they are dead, cancelled or skipped, or all dead letters of a filter."""
    filtered = every or any(filters.values())
    if bool(ids) == filtered:
        raise click.UsageError("Name deliveries, or give a filter, or --all for every dead letter of the project")
    client = session.client
    replayed = _replay_each(client, ids) if ids else _replay_all(client, **filters)
    if session.out.json:
        return session.out.document({"replayed": replayed})
    return session.out.text(f"{replayed} {'delivery runs' if replayed == 1 else 'deliveries run'} again")


@deliveries.command()
@click.argument("delivery_id")
@options
def cancel(session: Session, delivery_id: str) -> None:
    """End a delivery that waits or runs."""
    client = session.client
    request = service.CancelDeliveryRequest(project_id=client.project_id, delivery_id=delivery_id)
    ended = client.call(client.deliveries.CancelDelivery, request)
    if session.out.json:
        return session.out.document(plain(ended))
    return session.out.text(f"{ended.id}: {ended.state}")


def _every(client: Client, limit: int, **filters: Any) -> Iterator[pb.Delivery]:
    """Newest first, page by page as they are asked for."""
    request = service.ListDeliveriesRequest(project_id=client.project_id, page_size=min(limit, PAGE))
    _fill(request, filters)
    while True:
        page = client.call(client.deliveries.ListDeliveries, request)
        yield from page.deliveries
        request.page_token = page.next_page_token
        if not request.page_token:
            return


def _replay_each(client: Client, ids: tuple[str, ...]) -> int:
    for delivery_id in ids:
        request = service.ReplayDeliveryRequest(project_id=client.project_id, delivery_id=delivery_id)
        client.call(client.deliveries.ReplayDelivery, request)
    return len(ids)


def _replay_all(client: Client, **filters: Any) -> int:
    request = service.ReplayDeliveriesRequest(project_id=client.project_id)
    _fill(request, filters)
    replayed = 0
    while True:
        answer = client.call(client.deliveries.ReplayDeliveries, request)
        replayed += answer.replayed
        request.page_token = answer.next_page_token
        if not request.page_token:
            return replayed


def _fill(
    request: service.ListDeliveriesRequest | service.ReplayDeliveriesRequest,
    filters: Mapping[str, str | datetime | None],
) -> None:
    for name, wanted in filters.items():
        if isinstance(wanted, datetime):
            getattr(request, name).FromDatetime(wanted)
        elif wanted:
            setattr(request, name, wanted)


def _row(item: pb.Delivery) -> tuple[object, ...]:
    outcome = item.outcome or item.error.reason
    return when(item.created_at), item.event_type, item.state, outcome, item.attempts, item.trigger_id, item.id


def _details(found: pb.Delivery) -> Iterator[str]:
    outcome = f", {found.outcome}" if found.outcome else ""
    yield f"{found.state}{outcome}  event {found.event_type} {found.event_id}, trigger {found.trigger_id}"
    yield f"taken up {when(found.created_at)}, ended {when(found.finished_at) or 'not yet'}"
    if found.HasField("due_at"):
        yield f"may start {when(found.due_at)}"
    if found.replays:
        yield f"replayed {found.replays} times, last {when(found.replayed_at)}"
    if found.HasField("error"):
        yield f"{found.error.reason}: {found.error.message}"
    for attempt in found.history:
        ended = f"{when(attempt.ended_at)}  {attempt.outcome}" if attempt.HasField("ended_at") else "runs"
        yield f"  {attempt.number:3}  {when(attempt.began_at)}  {ended}  run {attempt.run_id}"
        if attempt.HasField("error"):
            yield f"       {attempt.error.reason}: {attempt.error.message}"
    if found.HasField("event"):
        yield found.event
