"""`atlas triggers backtest`, `events lineage` and `events parked`, and what triggers are warned of."""

from pathlib import Path

import pytest

from atlas.deliveries.v1 import lineage_service_pb2 as lineage_pb
from atlas.deliveries.v1 import parked_messages_service_pb2 as parked_pb
from atlas.runs.v1 import runs_pb2
from atlas.workflows.v1 import workflows_pb2
from tests.fix_cli import KEY, PROJECT_ID, Atlas
from tests.fix_cli_events import FakeEventApi


@pytest.mark.parametrize("command", ["triggers backtest", "events lineage", "events parked"])
def test_help(command: str, atlas: Atlas) -> None:
    ran = atlas(*command.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    assert f"Usage: atlas {command}" in ran.out


def test_a_trigger_that_feeds_itself_is_told(event_api: FakeEventApi, to_event_api: Atlas) -> None:
    event_api.add("again")
    warned = {"warnings": [{"reason": "TRIGGER_FEEDS_ITSELF", "message": "It may feed itself"}]}
    trigger_id = event_api.add_trigger(event_type="a.b", target_type="function", **warned)
    ran = to_event_api("triggers", "update", trigger_id, "--enabled")
    assert ran.out == f"Changed {trigger_id}: a.b, enabled\n"
    assert ran.err == "Warning: It may feed itself\n"
    assert to_event_api("triggers", "update", trigger_id, "--enabled", "--json").err == ""


def test_a_draft_is_tested_on_the_past_in_as_many_calls_as_it_takes(
    event_api: FakeEventApi, to_event_api: Atlas
) -> None:
    given = ("--on", "a.b", "--when", "amount", "gt", "100", "--config", '{"columns": ["c"]}')
    ran = to_event_api("triggers", "backtest", *given, "--since", "2026-01-31T12:00+00:00", "--until", "1m")
    assert (ran.code, ran.err) == (0, "")
    first, *samples = ran.out.splitlines()
    assert first == "It would have fired on 3 of 20 events of its types"
    assert [line.split()[-3:] for line in samples] == [["a.b", "e1", "1"], ["a.b", "e2", "2"]]
    assert event_api.asked[-1].project_id == PROJECT_ID
    until = event_api.body.pop("until")
    assert until > "2026"
    assert {name: value for name, value in event_api.body.items() if name != "until"} == {
        "event_type": "a.b",
        "conditions": [{"field": "amount", "op": "gt", "value": 100}],
        "config": {"columns": ["c"]},
        "since": "2026-01-31T12:00:00+00:00",
        "samples": 4,
        "page_token": "more",
    }


def test_a_stored_trigger_is_tested_likewise(event_api: FakeEventApi, to_event_api: Atlas) -> None:
    told = to_event_api("triggers", "backtest", "t1", "--since", "1d", "--samples", "1", "--json").json
    assert (told["looked_at"], told["fired"], len(told["samples"])) == (20, 3, 1)
    assert (event_api.body["trigger_id"], event_api.body["samples"]) == ("t1", 0)
    assert "event_type" not in event_api.body


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--since", "1d"),
        ("t1",),
        ("t1", "--on", "a.b", "--since", "1d"),
        ("--when", "a", "eq", "1", "--since", "1d"),
        ("t1", "--config", "{}", "--since", "1d"),
        ("--on", "a.b", "--config", "[]", "--since", "1d"),
        ("t1", "--since", "1d", "--samples", "21"),
    ],
)
def test_what_cannot_be_tested(arguments: tuple[str, ...], event_api: FakeEventApi, to_event_api: Atlas) -> None:
    ran = to_event_api("triggers", "backtest", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert not event_api.asked


def test_lineage_is_a_tree(event_api: FakeEventApi, to_event_api: Atlas) -> None:
    again = lineage_pb.CausedEvent(id="e1", type="a.b", repeated_above=True)
    below = lineage_pb.CausedEvent(id="e2", type="c.d")
    below.deliveries.add(id="d2", trigger_id="t2", state="queued")
    event = lineage_pb.CausedEvent(id="e1", type="a.b", truncated=True)
    event.deliveries.add(
        id="d1", trigger_id="t1", state="done", outcome="ok", run_ids=["r1", "r2"], events=[below, again]
    )
    causes = [
        lineage_pb.CausingRun(run_id="r0", trigger_id="t0", depth=2, state="done", event_id="e0", event_type="x.y"),
        lineage_pb.CausingRun(run_id="hand", depth=1),
    ]
    event_api.lineage = lineage_pb.Lineage(event=event, causes=causes, causes_complete=True, truncated=True)
    ran = to_event_api("events", "lineage", "e1")
    assert ran.out.splitlines() == [
        "  run  run hand",
        "event x.y e0",
        "  done  trigger t0  run r0",
        "event a.b e1",
        "  done ok  trigger t1  run r1  run r2",
        "    event c.d e2",
        "      queued  trigger t2",
        "    event a.b e1  (as above)",
    ]
    assert "left out" in ran.err
    assert event_api.asked[-1].event_id == "e1"
    event_api.lineage.causes_complete = False
    assert to_event_api("events", "lineage", "e1").out.startswith("(what came before is kept no more)\n")
    assert to_event_api("events", "lineage", "e1", "--json").json["event"]["id"] == "e1"


def test_parked_messages_take_the_admin_key(
    event_api: FakeEventApi, to_event_api: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = {"subject": "atlasdb.events.odd", "reason": "No event", "body": "x", "encoding": "utf-8", "body_bytes": 1}
    event_api.parked = [parked_pb.ParkedMessage(sequence=number, **odd) for number in (7, 6)]  # type: ignore[arg-type]
    monkeypatch.setenv("SERVICE_KEY", "another")
    ran = to_event_api("events", "parked")
    assert (ran.code, event_api.asked) == (2, [])
    monkeypatch.setenv("ADMIN_KEY", KEY)
    lines = [line.split() for line in to_event_api("events", "parked").out.splitlines()]
    assert lines == [
        ["TIME", "SEQUENCE", "SUBJECT", "BYTES", "REASON"],
        ["7", "atlasdb.events.odd", "1", "No", "event"],
        ["6", "atlasdb.events.odd", "1", "No", "event"],
    ]
    monkeypatch.delenv("ADMIN_KEY")
    (tmp_path / ".atlas").mkdir()
    (tmp_path / ".atlas" / "env").write_text(f"export ATLAS_URL={event_api.url} ADMIN_KEY={KEY} SERVICE_KEY=another\n")
    found = to_event_api("events", "parked", "--limit", "1", "--json").json["messages"]
    assert [(item["sequence"], item["body"]) for item in found] == [(7.0, "x")]
    assert to_event_api("events", "parked", "--key", KEY).code == 0


def test_a_run_says_what_of_it_was_stopped(event_api: FakeEventApi, to_event_api: Atlas) -> None:
    stopped = [runs_pb2.StoppedEvent(event_id="e9", event_type="a.b", delivery_id="d9", message="8 runs led to it")]
    told = "stopped: event a.b e9, delivery d9: 8 runs led to it"
    event_api.runs["r1"] = runs_pb2.Run(id="r1", stopped_events=stopped, more_stopped_events=True)
    lines = to_event_api("run", "r1").out.splitlines()
    assert lines[-2:] == [told, "(more was stopped than is shown)"]
    event_api.workflow_runs = [workflows_pb2.WorkflowRun(id="w1", state="succeeded", stopped_events=stopped)]
    assert told in to_event_api("workflows", "show", "w1").out
