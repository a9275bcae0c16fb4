"""Runs as people read them."""

from collections.abc import Iterator

from atlas.runs.v1 import runs_pb2 as pb
from atlas.workflows.v1 import workflows_pb2
from server.cli.output import Output, when

_GOOD = ("ok", "")


def metrics_line(metrics: pb.RunMetrics) -> str:
    """What was measured, as `1.9 ms, 0.3 MiB, …`."""
    told = [f"{metrics.wall_ms:.1f} ms", f"{metrics.memory_bytes / 2**20:.1f} MiB", f"{metrics.cpu_ms:.1f} ms CPU"]
    told += [f"queued {metrics.queue_ms:.1f} ms", f"boot {metrics.boot_ms:.1f} ms", f"{metrics.host_calls} host calls"]
    if metrics.HasField("fuel_consumed"):
        told.append(f"{metrics.fuel_consumed:.0f} fuel")
    return ", ".join(told)


def outcome_of(run: pb.Run) -> str:
    return run.outcome or run.state


def row(run: pb.Run) -> tuple[object, ...]:
    """A run as a row under COLUMNS."""
    duration = f"{run.metrics.wall_ms:.1f}" if run.state == "finished" else ""
    return (when(run.created_at), run.slug, run.version or "", run.trigger, outcome_of(run), duration, run.id)


COLUMNS = ("TIME", "FUNCTION", "VERSION", "TRIGGER", "OUTCOME", "MS", "RUN")


def log_lines(run: pb.Run) -> Iterator[str]:
    """Its console, a line each, and what it threw."""
    for line in run.logs:
        yield f"  {line.at_ms:8.1f} ms  {line.level:5}  " + line.text.replace("\n", "\n" + " " * 22)
    if run.logs_truncated:
        yield "  (more was written than is kept)"
    if run.error.message:
        yield f"  {run.error.reason}: {run.error.message}"
    yield from ("    " + line.strip() for line in run.error.stack.splitlines())


def stopped_lines(found: pb.Run | workflows_pb2.WorkflowRun) -> Iterator[str]:
    """What it led to and what was stopped."""
    for each in found.stopped_events:
        yield f"stopped: event {each.event_type} {each.event_id}, delivery {each.delivery_id}: {each.message}"
    if found.more_stopped_events:
        yield "(more was stopped than is shown)"


def tell(out: Output, run: pb.Run) -> None:
    """One entry of a log: a heading, and the lines below."""
    if out.json:
        return
    good = run.outcome in _GOOD
    heading = f"{when(run.created_at)}  {run.slug} v{run.version}"
    outcome = out.style(outcome_of(run), fg="green" if good else "red", bold=not good)
    out.text(f"{heading}  {outcome}  {run.metrics.wall_ms:.1f} ms  {out.style(run.id, dim=True)}")
    for line in log_lines(run):
        out.text(line)
