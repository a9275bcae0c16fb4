"""`atlas triggers backtest`: what a trigger would have fired on, in as many calls as that takes."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import click

from atlas.triggers.v1 import triggers_service_pb2 as service
from server.cli.client import Client, json_body
from server.cli.json_input import json_object
from server.cli.moments import Moment
from server.cli.output import plain, when
from server.cli.session import Session, options
from server.cli.trigger_fields import conditions_of, match_fields


@click.command()
@click.argument("trigger_id", required=False)
@match_fields
@click.option("--config", metavar="JSON|@FILE|-", help='Of the trigger, such as \'{"operations": ["UPDATE"]}\'.')
@click.option("--since", type=Moment(), required=True, metavar="TIME", help="Like 10m, 2h, 3d or 2026-01-31T12:00.")
@click.option("--until", type=Moment(), metavar="TIME", help="As --since, not included. [now]")
@click.option("--samples", type=click.IntRange(0, 20), default=5, show_default=True, help="Events to show.")
@options
def backtest(session: Session, trigger_id: str | None, samples: int, **given: Any) -> None:
    """Count and show what a trigger would have fired on, stored or not. Nothing runs.

    \b
    atlas triggers backtest 7f1c… --since 1d
    atlas triggers backtest --on order.paid --when amount gt 100 --since 2h
    """
    drawn = any(given[name] is not None and given[name] != () for name in ("event_type", "conditions", "config"))
    if (trigger_id is None) is not drawn or (drawn and given["event_type"] is None):
        raise click.UsageError("Give a trigger, or one that is not stored with --on")
    members = {"trigger_id": trigger_id} if trigger_id is not None else _draft(given)
    told = _asked(session.client, members | _times(given), samples)
    if session.out.json:
        return session.out.document(plain(told))
    session.out.text(f"It would have fired on {told.fired} of {told.looked_at} events of its types")
    for sample in told.samples:
        session.out.text(f"{when(sample.stored_at)}  {sample.event_type}  {sample.event_id}  {sample.data}")
    return None


def _draft(given: Mapping[str, Any]) -> dict[str, Any]:
    draft: dict[str, Any] = {"event_type": given["event_type"], "conditions": conditions_of(given)}
    if given["config"] is not None:
        draft["config"] = json_object(given["config"], "--config")
    return draft


def _times(given: Mapping[str, datetime | None]) -> dict[str, str]:
    return {name: moment.isoformat() for name in ("since", "until") if (moment := given[name]) is not None}


def _asked(client: Client, members: Mapping[str, Any], samples: int) -> service.BacktestResponse:
    """All calls together."""
    whole = service.BacktestResponse()
    token = ""
    while True:
        body = json.dumps({**members, "samples": samples - len(whole.samples), "page_token": token})
        request = service.BacktestTriggerHttpRequest(project_id=client.project_id, body=json_body(body))
        told = client.call(client.triggers.BacktestTriggerHttp, request)
        whole.looked_at += told.looked_at
        whole.fired += told.fired
        whole.samples.extend(told.samples)
        token = told.next_page_token
        if not token:
            return whole
