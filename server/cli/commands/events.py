"""`atlas events`: tell the service what happened."""

import json

import click

from atlas.events.v1 import events_service_pb2 as service
from server.cli.client import json_body
from server.cli.json_input import json_text
from server.cli.session import Session, options


@click.group()
def events() -> None:
    """Publish events, which triggers answer.

    \b
    atlas events publish order.paid --data '{"amount": 120}'
    atlas events publish order.paid --data @order.json --id order-4711
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
