"""An event as conditions see it."""

from server.events.envelope import Event, spelled
from server.triggers.paths import Envelope


def envelope_of(event: Event) -> Envelope:
    """Its members under the names that they have in the stream, with `data` and `old` as Python has them. What the
    event does not have is not in it."""
    change, cause = event.change, event.cause
    members: Envelope = {
        "id": event.id,
        "type": event.type,
        "project_id": event.project_id,
        "time": spelled(event.time),
        "source": event.source,
        "subject": event.subject,
        "trigger_id": event.trigger_id,
        "cause": None
        if cause is None
        else {"run_id": cause.run_id, "trigger_id": cause.trigger_id, "depth": cause.depth},
    }
    if change is not None:
        members |= {
            "op": change.op,
            "schema": change.schema,
            "table": change.table,
            "changed": list(change.changed),
            "unavailable": list(change.unavailable),
            "lsn": change.lsn,
            "old": None if change.old is None else change.old.value,
        }
    return {name: value for name, value in members.items() if value is not None} | {"data": event.data.value}
