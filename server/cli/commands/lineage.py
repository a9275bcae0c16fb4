"""`atlas events lineage`: what led to an event, and what it led to, as a tree."""

from collections.abc import Iterator

import click

from atlas.deliveries.v1 import lineage_service_pb2 as pb
from server.cli.output import plain
from server.cli.session import Session, options


@click.command()
@click.argument("event_id")
@options
def lineage(session: Session, event_id: str) -> None:
    """Show what led to an event, and what it led to: deliveries, their runs, the events of those, and so on."""
    client = session.client
    request = pb.GetLineageRequest(project_id=client.project_id, event_id=event_id)
    found = client.call(client.lineage.GetLineage, request)
    if session.out.json:
        return session.out.document(plain(found))
    session.out.text("\n".join((*_causes(found), *_event(found.event, 0))))
    if found.truncated:
        session.out.note("Some of what it led to is left out; ask for the lineage of an event further down")
    return None


def _causes(found: pb.Lineage) -> Iterator[str]:
    """From the beginning on."""
    if not found.causes_complete:
        yield "(what came before is kept no more)"
    for link in reversed(found.causes):
        if link.event_id:
            yield f"event {link.event_type} {link.event_id}"
        by = f"  trigger {link.trigger_id}" if link.trigger_id else ""
        yield f"  {link.state or 'run'}{by}  run {link.run_id}"


def _event(event: pb.CausedEvent, depth: int) -> Iterator[str]:
    margin = "    " * depth
    repeated = "  (as above)" if event.repeated_above else ""
    yield f"{margin}event {event.type} {event.id}{repeated}"
    for delivery in event.deliveries:
        outcome = f" {delivery.outcome}" if delivery.outcome else ""
        runs = "".join(f"  run {run}" for run in delivery.run_ids)
        yield f"{margin}  {delivery.state}{outcome}  trigger {delivery.trigger_id}{runs}"
        for below in delivery.events:
            yield from _event(below, depth + 1)
