"""The fields of a trigger on the command line, and the body of a request that they make."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from server.cli.client import Client
from server.cli.json_input import json_object

Command = TypeVar("Command", bound=Callable[..., Any])

_KEYS: Final = ("schedule", "timezone", "catch_up_s", "overlap")

_SCHEDULE: Final = (
    click.option("--schedule", metavar="CRON", help="Of cron: five fields, or a name such as @hourly."),
    click.option("--timezone", metavar="ZONE", help="Of the schedule, such as Europe/Berlin. [UTC]"),
    click.option("--catch-up", "catch_up_s", type=int, metavar="SECONDS", help="Make good what was missed. [0]"),
    click.option("--overlap", type=click.Choice(("allow", "skip", "queue")), help="While one is not finished. [allow]"),
)

_MATCH: Final = (
    click.option("--on", "event_type", metavar="TYPE", help="The events, such as order.paid or cdc.INSERT.orders."),
    click.option(
        "--when",
        "conditions",
        type=(str, str, str),
        multiple=True,
        metavar="FIELD OP VALUE",
        help="A condition; all of several must hold. VALUE is JSON, or else a text.",
    ),
)

_OPTIONS: Final = (
    click.option("--file", "-f", metavar="FILE|-", help="All of it as a JSON object; options replace its members."),
    *_MATCH[:1],
    *_SCHEDULE,
    click.option("--function", "slug", metavar="SLUG", help="What answers them: this function."),
    click.option("--workflow", metavar="ID|NAME", help="What answers them: this workflow."),
    *_MATCH[1:],
    click.option("--enabled/--disabled", default=None, help="Events of a disabled trigger are dropped. [enabled]"),
    click.option("--attempts", type=int, help="How often a failure is tried, in all. [5]"),
    click.option("--order-key", metavar="PATH", help="Strict order of events that have the same there; '' for none."),
    click.option("--concurrency", type=int, help="How many at a time; 0 for no limit of its own."),
)


def trigger_fields(command: Command) -> Command:
    return _with(_OPTIONS, command)


def schedule_fields(command: Command) -> Command:
    return _with(_SCHEDULE, command)


def match_fields(command: Command) -> Command:
    """Which events are meant."""
    return _with(_MATCH, command)


def _with(found: tuple[Callable[[Command], Command], ...], command: Command) -> Command:
    for option in reversed(found):
        command = option(command)
    return command


def body_of(client: Client, given: Mapping[str, Any], present: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The members that are given; of `config` and `retry` also those of the trigger as it is.

    `present` answers it, if it is needed. Raises Problem for a file that is none, UsageError for two targets.
    """
    file = given["file"]
    body = {} if file is None else json_object(file if file == "-" else f"@{file}", "--file")
    if given["slug"] is not None and given["workflow"] is not None:
        raise click.UsageError("A trigger has one target: give --function or --workflow")
    if given["slug"] is not None:
        body |= {"target_type": "function", "function_id": client.function(given["slug"]).id}
    if given["workflow"] is not None:
        body |= {"target_type": "workflow", "workflow_id": client.workflow_id(given["workflow"])}
    if given["conditions"]:
        body["conditions"] = conditions_of(given)
    if given["order_key"] is not None:
        body["order_key"] = given["order_key"] or None
    if given["concurrency"] is not None:
        body["concurrency"] = given["concurrency"] or None
    body |= {name: given[name] for name in ("event_type", "enabled") if given[name] is not None}
    if config := schedule_of(given):
        body["config"] = _beside(body, present, "config") | config
    if given["attempts"] is not None:
        body["retry"] = _beside(body, present, "retry") | {"attempts": given["attempts"]}
    return body


def conditions_of(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [_condition(*words) for words in given["conditions"]]


def schedule_of(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: given[key] for key in _KEYS if given[key] is not None}


def _beside(body: Mapping[str, Any], present: Callable[[], Mapping[str, Any]], name: str) -> dict[str, Any]:
    found = body[name] if name in body else present().get(name)
    return dict(found) if isinstance(found, dict) else {}


def _condition(field: str, op: str, value: str) -> dict[str, Any]:
    try:
        wanted = json.loads(value)
    except (ValueError, RecursionError):
        wanted = value
    return {"field": field, "op": op, "value": wanted}
