"""What was stopped of what a run led to, in the message of the run."""

from atlas.runs.v1 import runs_pb2 as pb
from atlas.workflows.v1 import workflows_pb2
from server.dispatch.stopped import Found


def fill_stopped(run: pb.Run | workflows_pb2.WorkflowRun, found: Found) -> None:
    run.more_stopped_events = found.more
    run.stopped_events.extend(
        pb.StoppedEvent(
            event_id=each.event_id,
            event_type=each.event_type,
            trigger_id=each.trigger_id,
            delivery_id=each.delivery_id,
            message=each.message,
        )
        for each in found.stopped
    )
