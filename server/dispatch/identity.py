"""Which delivery is which: one for each pair of trigger and event, whoever meets the pair and however often."""

import hashlib
from functools import lru_cache
from uuid import UUID

from server.uuids import uuid_of


def delivery_id(trigger_id: str, event_id: str) -> str:
    """As `uuid5` makes it of the pair. A trigger belongs to one project, and an event's id is unique there."""
    digest = hashlib.sha1(_bytes(trigger_id) + event_id.encode(), usedforsecurity=False).digest()
    return uuid_of(digest[:16], 5)


@lru_cache(maxsize=65_536)
def _bytes(trigger_id: str) -> bytes:
    return UUID(trigger_id).bytes
