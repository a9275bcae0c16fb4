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
    """Publish the gap that is noted, if there is one, before any change that comes after it. By who has the slot.

    Each event has a position of its own, so that a crash in between leaves none out and doubles none.
    """
    gap = await slot.noted_gap(admin)
    if gap is None:
        return
    data = Json(orjson.dumps({"reason": gap.reason, "since": gap.since, "until": gap.until}).decode(), None)
    ids = [gap.project_id] if gap.project_id else [project_of(schema) for schema in await slot.projects(admin)]
    first, now = slot.position_of(gap), datetime.now(UTC)
    last = await outlet.last()
    untold: list[Outgoing] = []
    for number, project_id in enumerate(ids):
        position = first._replace(change=first.change + number)
        if project_id is None or position.reached(last):
            continue
        event = Event(id=f"{first.event_id}-gap", type=TYPE, project_id=project_id, time=now, source=SOURCE, data=data)
        untold.append(Outgoing(project_id, event.id, TYPE, "gap", position, encode(event)))
    for number in range(0, len(untold), MAX_BATCH):
        await outlet.store(untold[number : number + MAX_BATCH])
    metrics.cdc_gaps().add()
    await slot.gap_told(admin)
