"""`atlas events`: tell the service what happened, and see what it led to; what was told and is no event."""

import json
from collections.abc import Iterator
from itertools import islice

import click

from atlas.deliveries.v1 import parked_messages_service_pb2 as parked_pb
from atlas.events.v1 import events_service_pb2 as service
from server.cli.client import Client, json_body
from server.cli.commands.lineage import lineage
from server.cli.json_input import json_text
from server.cli.output import plain, when
from server.cli.session import Session, admin_options, options

PAGE: int = 200


@click.group()
def events() -> None:
    """Publish events, which triggers answer; see what became of them.

    \b
    atlas events publish order.paid --data '{"amount": 120}'
    atlas events publish order.paid --data @order.json --id order-4711
    atlas events lineage order-4711
    """


@events.command()
@click.argument("event_type", metavar="TYPE")
@click.option("--data", "-d", default="null", metavar="JSON|@FILE|-", help="What it tells; null when left out.")
@click.option("--id", "event_id", default="", help="Published again with the same id, it is stored once. [a new UUID]")
@click.option("--subject", default="", help="What it is about.")
@click.option("--source", default="", help="Who says so. [api]")
@options
def publish(session: Session, event_type: str, data: str, event_id: str, subject: str, source: str) -> None:
    """Publish one event; prints its id when it is stored, and then it is not lost."""
    given = {"type": event_type, "id": event_id, "subject": subject, "source": source}
    members = json.dumps({name: value for name, value in given.items() if value})
    body = json_body(f'{members[:-1]}, "data": {json_text(data, "--data")}}}')  # its digits as they were written
    client = session.client
    request = service.PublishEventsHttpRequest(project_id=client.project_id, body=body)
    published = client.call_json(client.events.PublishEventsHttp, request)
    if session.out.json:
        return session.out.document(published)
    session.out.text(published["id"])
    if published["duplicate"]:
        session.out.note("An event with this id was there already, and stayed as it was")
    return None


@events.command()
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@admin_options
def parked(session: Session, limit: int) -> None:
    """List messages on the subjects of events that are none, the newest first; --json has their bodies.

    They belong to no project: it takes the admin key.
    """
    found = list(islice(_every_parked(session.client, limit), limit))
    if session.out.json:
        return session.out.document({"messages": [plain(item) for item in found]})
    rows = (
        (when(item.parked_at), f"{item.sequence:.0f}", item.subject, item.body_bytes, item.reason) for item in found
    )
    return session.out.table(("TIME", "SEQUENCE", "SUBJECT", "BYTES", "REASON"), rows)


events.add_command(lineage)


def _every_parked(client: Client, limit: int) -> Iterator[parked_pb.ParkedMessage]:
    """Newest first, page by page as they are asked for."""
    request = parked_pb.ListParkedMessagesRequest(page_size=min(limit, PAGE))
    while True:
        page = client.call(client.parked.ListParkedMessages, request)
        yield from page.messages
        request.page_token = page.next_page_token
        if not request.page_token:
            return
