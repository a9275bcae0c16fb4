"""`atlas triggers`: which events run what."""

import json
from collections.abc import Iterator
from typing import Any

import click

from atlas.triggers.v1 import triggers_pb2 as pb
from atlas.triggers.v1 import triggers_service_pb2 as service
from server.cli.client import Client, json_body
from server.cli.commands.backtest import backtest
from server.cli.json_input import json_text, object_text
from server.cli.output import plain
from server.cli.session import Session, options
from server.cli.trigger_fields import body_of, schedule_fields, schedule_of, trigger_fields

PAGE: int = 200
SPELLED = {True: "holds", False: "does not hold"}


@click.group(invoke_without_command=True)
@options
@click.pass_context
def triggers(context: click.Context, session: Session) -> None:
    """List triggers; make, change and question them.

    \b
    atlas triggers create --on order.paid --function receipt --when amount gt 100
    atlas triggers create --schedule "0 6 * * *" --timezone Europe/Berlin --function report
    atlas triggers explain order.paid --data '{"amount": 99}'
    atlas triggers backtest --on order.paid --when amount gt 100 --since 1d
    atlas triggers pause 7f1c…
    """
    if context.invoked_subcommand is not None:
        return None
    found = list(_every(session.client))
    if session.out.json:
        return session.out.document({"triggers": found})
    slugs = {function.id: function.slug for function in session.client.every_function()} if found else {}
    rows = ((item["id"], _event(item), _target(item, slugs), len(item["conditions"]), _state(item)) for item in found)
    return session.out.table(("TRIGGER", "EVENT", "TARGET", "CONDITIONS", "STATE"), rows)


@triggers.command()
@click.argument("trigger_id")
@options
def get(session: Session, trigger_id: str) -> None:
    """Show one trigger, as JSON that `create --file` takes when `id` and times are left out."""
    session.out.document(_get(session.client, trigger_id))


@triggers.command()
@trigger_fields
@click.option("--paused", is_flag=True, help="Hold its events from the start.")
@options
def create(session: Session, paused: bool, **given: Any) -> None:
    """Create a trigger; it is in force when this returns.

    \b
    atlas triggers create --on cdc.INSERT.orders --function receipt --when amount gt 100
    atlas triggers create --schedule @hourly --overlap skip --workflow 0192…
    atlas triggers create --file trigger.json
    """
    client = session.client
    body = body_of(client, given, dict)
    if given["schedule"] is not None:
        body.setdefault("event_type", "cron")
    if paused:
        body["paused"] = True
    request = service.CreateTriggerHttpRequest(project_id=client.project_id, body=json_body(json.dumps(body)))
    _tell(session, client.call_json(client.triggers.CreateTriggerHttp, request), "Created")


@triggers.command()
@click.argument("trigger_id")
@trigger_fields
@options
def update(session: Session, trigger_id: str, **given: Any) -> None:
    """Change what is given and leave the rest."""
    client = session.client
    body = body_of(client, given, lambda: _get(client, trigger_id))
    if not body:
        raise click.UsageError("Nothing is given that could be changed")
    request = service.UpdateTriggerHttpRequest(
        project_id=client.project_id, trigger_id=trigger_id, body=json_body(json.dumps(body))
    )
    _tell(session, client.call_json(client.triggers.UpdateTriggerHttp, request), "Changed")


@triggers.command()
@click.argument("trigger_id")
@options
def delete(session: Session, trigger_id: str) -> None:
    """Delete a trigger for good."""
    client = session.client
    request = service.DeleteTriggerRequest(project_id=client.project_id, trigger_id=trigger_id)
    client.call(client.triggers.DeleteTrigger, request)
    if session.out.json:
        return session.out.document({"deleted": trigger_id})
    return session.out.text(f"Deleted {trigger_id}")


@triggers.command()
@click.argument("trigger_id")
@options
def pause(session: Session, trigger_id: str) -> None:
    """Hold its events until it is resumed; `update --disabled` drops them."""
    client = session.client
    request = service.PauseTriggerHttpRequest(project_id=client.project_id, trigger_id=trigger_id)
    _tell(session, client.call_json(client.triggers.PauseTriggerHttp, request), "Paused")


@triggers.command()
@click.argument("trigger_id")
@options
def resume(session: Session, trigger_id: str) -> None:
    """Run what was held, and what comes."""
    client = session.client
    request = service.ResumeTriggerHttpRequest(project_id=client.project_id, trigger_id=trigger_id)
    _tell(session, client.call_json(client.triggers.ResumeTriggerHttp, request), "Resumed")


@triggers.command()
@click.argument("event_type", required=False, metavar="[TYPE]")
@click.option("--data", "-d", default="null", metavar="JSON|@FILE|-", help="What the event tells.")
@click.option("--event", metavar="JSON|@FILE|-", help="The whole event instead, with `type`, `data`, `old` and so on.")
@click.option("--trigger", default="", metavar="ID", help="Only this trigger.")
@options
def explain(session: Session, event_type: str | None, data: str, event: str | None, trigger: str) -> None:
    """Say what an event would do to every trigger, condition by condition. Nothing runs."""
    if (event_type is None) == (event is None):
        raise click.UsageError("Give the type of the event, or all of it with --event")
    if event is not None:
        text = object_text(event, "--event")
    else:
        text = f'{{"type": {json.dumps(event_type)}, "data": {json_text(data, "--data")}}}'
    body = json_body(f'{{"event": {text}, "trigger_id": {json.dumps(trigger)}}}')
    client = session.client
    request = service.ExplainEventHttpRequest(project_id=client.project_id, body=body)
    told = client.call(client.triggers.ExplainEventHttp, request)
    if session.out.json:
        return session.out.document(plain(told))
    for item in told.triggers:
        session.out.text("\n".join(_explained(item)))
    if told.left_out:
        session.out.note(f"{told.left_out} more triggers are left out; name one with --trigger")
    return None


@triggers.command()
@click.argument("trigger_id", required=False)
@schedule_fields
@click.option("--count", type=click.IntRange(1, 100), default=5, show_default=True)
@options
def preview(session: Session, trigger_id: str | None, count: int, **given: Any) -> None:
    """When a cron trigger fires next, or a schedule that is not stored would."""
    config = schedule_of(given)
    if (trigger_id is None) == (not config):
        raise click.UsageError("Give a trigger, or a --schedule")
    client = session.client
    if trigger_id is not None:
        asked = service.PreviewTriggerRequest(project_id=client.project_id, trigger_id=trigger_id, count=count)
        told = client.call(client.triggers.PreviewTrigger, asked)
    else:
        body = json_body(json.dumps({"config": config, "count": count}))
        request = service.PreviewScheduleHttpRequest(project_id=client.project_id, body=body)
        told = client.call(client.triggers.PreviewScheduleHttp, request)
    if session.out.json:
        return session.out.document(plain(told))
    return session.out.table(("UTC", told.timezone), ((run.at.ToJsonString(), run.local) for run in told.runs))


triggers.add_command(backtest)


def _every(client: Client) -> Iterator[dict[str, Any]]:
    request = service.ListTriggersHttpRequest(project_id=client.project_id, page_size=PAGE)
    while True:
        page = client.call_json(client.triggers.ListTriggersHttp, request)
        yield from page["triggers"]
        request.page_token = page["next_page_token"]
        if not request.page_token:
            return


def _get(client: Client, trigger_id: str) -> dict[str, Any]:
    request = service.GetTriggerHttpRequest(project_id=client.project_id, trigger_id=trigger_id)
    found: dict[str, Any] = client.call_json(client.triggers.GetTriggerHttp, request)
    return found


def _tell(session: Session, trigger: dict[str, Any], done: str) -> None:
    if session.out.json:
        return session.out.document(trigger)
    session.out.text(f"{done} {trigger['id']}: {_event(trigger)}, {_state(trigger)}")
    for warning in trigger.get("warnings", ()):
        session.out.note(f"Warning: {warning['message']}")
    return None


def _event(trigger: dict[str, Any]) -> str:
    config = trigger["config"]
    schedule = (config["schedule"], config.get("timezone", "UTC")) if "schedule" in config else ()
    return " ".join((trigger["event_type"], *schedule))


def _target(trigger: dict[str, Any], slugs: dict[str, str]) -> str:
    function_id = trigger.get("function_id")
    if function_id is None:
        return f"workflow {trigger['workflow_id']}"
    return f"function {slugs.get(function_id, function_id)}"


def _state(trigger: dict[str, Any]) -> str:
    if not trigger["enabled"]:
        return "disabled"
    return "paused" if trigger["paused"] else "enabled"


def _explained(item: pb.ExplainedTrigger) -> Iterator[str]:
    yield f"{item.trigger_id}  {item.event_type}  {item.verdict}: {item.why}"
    for each in item.conditions:
        yield f"  {each.at}  {each.field} {each.op} {each.wanted}  {SPELLED[each.holds]}: {each.why}"
