"""LineageService: what `server.dispatch.consequences` found, in messages."""

from atlas.deliveries.v1 import lineage_service_pb2 as pb
from atlas.deliveries.v1 import lineage_service_pb2_grpc
from server.dispatch.consequences import Consequence, Happened, Lineages
from server.rpc.access import principal
from server.rpc.boundary import Context
from server.rpc.values import timestamp


class LineageService(lineage_service_pb2_grpc.LineageServiceServicer):
    def __init__(self, lineages: Lineages) -> None:
        self._lineages = lineages

    async def GetLineage(self, request: pb.GetLineageRequest, context: Context) -> pb.Lineage:
        found = await self._lineages.of(principal().project_id, request.event_id)
        causes = [
            pb.CausingRun(
                run_id=link.run_id,
                trigger_id=link.trigger_id,
                depth=link.depth,
                delivery_id=link.delivery_id,
                state=link.state,
                event_id=link.event_id,
                event_type=link.event_type,
            )
            for link in found.causes.links
        ]
        return pb.Lineage(
            event=_event(found.event), causes=causes, causes_complete=found.causes.whole, truncated=found.truncated
        )


def _event(found: Happened) -> pb.CausedEvent:
    return pb.CausedEvent(
        id=found.id,
        type=found.type,
        stored_at=timestamp(found.stored_at),
        deliveries=[_delivery(each) for each in found.deliveries],
        truncated=found.truncated,
        repeated_above=found.repeated,
    )


def _delivery(found: Consequence) -> pb.CausedDelivery:
    return pb.CausedDelivery(
        id=found.id,
        trigger_id=found.trigger_id,
        state=found.state,
        outcome=found.outcome,
        run_ids=found.runs,
        events=[_event(each) for each in found.events],
    )
