"""Which delivery is which: one for each pair of trigger and event, whoever meets the pair and however often."""

from uuid import UUID, uuid5


def delivery_id(trigger_id: str, event_id: str) -> str:
    """The UUID of the pair. A trigger belongs to one project, and an event's id is unique there."""
    return str(uuid5(UUID(trigger_id), event_id))
