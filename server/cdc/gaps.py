"""`cdc.gap` events: changes that no event tells of, said to the projects whose they may be."""

from datetime import UTC, datetime
from typing import Final

import orjson
from psycopg import AsyncConnection

from server.cdc import slot
from server.cdc.changes import Outgoing
from server.cdc.outlet import MAX_BATCH, Outlet
from server.cdc.rows import SOURCE
from server.events.envelope import Event, encode
from server.events.json_text import Json
from server.postgres.tenants import project_of
from server.telemetry.metrics import Metrics

TYPE: Final = "cdc.gap"


async def tell(admin: AsyncConnection, outlet: Outlet, metrics: Metrics) -> None:
    """Publish the gap that is noted, if there is one, before any change that comes after it. By who has the slot."""
    gap = await slot.noted_gap(admin)
    if gap is None:
        return
    position = slot.position_of(gap)
    data = Json(orjson.dumps({"reason": gap.reason, "since": gap.since, "until": gap.until}).decode(), None)
    told: list[Outgoing] = []
    for project_id in [gap.project_id] if gap.project_id else map(project_of, await slot.projects(admin)):
        if project_id is None:
            continue
        event = Event(
            id=f"{position.event_id}-gap",
            type=TYPE,
            project_id=project_id,
            time=datetime.now(UTC),
            source=SOURCE,
            data=data,
        )
        told.append(Outgoing(project_id, event.id, TYPE, "gap", position, encode(event)))
    last = await outlet.last()
    if last is None or not position.reached(last):
        for first in range(0, len(told), MAX_BATCH):
            await outlet.store(told[first : first + MAX_BATCH])
    metrics.cdc_gaps().add()
    await slot.gap_told(admin)
