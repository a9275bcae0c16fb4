"""`atlas` from an event to what became of it: publish, triggers, deliveries, and a schedule that fires."""

import json
from typing import Any

import pytest

from tests.fix_cli import Program, program_in
from tests.fix_clients import RunningStack, eventually

ANSWERS = """
export default (event) => {
  if (event.data.amount === 13) throw new Error("unlucky");
  return event.data;
};
"""
MENDED = "export default (event) => event.data;\n"


@pytest.fixture
def receipt(program: Program) -> Program:
    """With a function `receipt`."""
    return with_function(program, "receipt")


def with_function(program: Program, slug: str) -> Program:
    (program.folder / f"{slug}.js").write_text(ANSWERS)
    program.run("deploy", f"{slug}.js")
    return program


@pytest.fixture(scope="module", autouse=True)
def scheduled(running_stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, str]:
    """A trigger that fires each minute, made before the other tests, which take a part of the minute."""
    program = with_function(program_in(tmp_path_factory.mktemp("scheduled"), running_stack), "scheduled")
    schedule = ("--schedule", "* * * * *", "--timezone", "Asia/Kathmandu")
    return program, str(program.json("triggers", "create", "--function", "scheduled", *schedule)["id"])


def trigger_on(program: Program, *arguments: str) -> str:
    return str(program.json("triggers", "create", "--function", "receipt", *arguments)["id"])


def settled(program: Program, trigger_id: str, state: str, within_s: float = 45.0) -> list[Any]:
    """Its deliveries, as soon as there is one in that state."""

    def there() -> Any:
        return program.json("deliveries", "--trigger", trigger_id, "--state", state)["deliveries"]

    found: list[Any] = eventually(there, within_s)
    return found


def test_an_event_runs_what_it_should_and_is_found_again(receipt: Program) -> None:
    trigger_id = trigger_on(receipt, "--on", "order.told", "--when", "amount", "gt", "100")
    listed = [line.split() for line in receipt.run("triggers").stdout.splitlines()]
    assert [trigger_id, "order.told", "function", "receipt", "1", "enabled"] in listed
    verdict = receipt.json("triggers", "explain", "order.told", "--data", '{"amount": 99}', "--trigger", trigger_id)
    assert verdict["triggers"][0]["verdict"] == "conditions_do_not_hold"
    receipt.run("events", "publish", "order.told", "--data", '{"amount": 99}')
    event_id = receipt.run("events", "publish", "order.told", "--data", '{"amount": 120.50}').stdout.strip()
    (delivery,) = settled(receipt, trigger_id, "done")
    assert (delivery["event_id"], delivery["outcome"]) == (event_id, "ok")
    shown = receipt.json("deliveries", "get", delivery["id"])
    assert shown["event"]["data"] == {"amount": 120.50}
    assert shown["history"][0]["outcome"] == "ok"
    assert "ok  run" in receipt.run("deliveries", "get", delivery["id"]).stdout
    assert f"done ok  trigger {trigger_id}  run " in receipt.run("events", "lineage", event_id).stdout
    tested = receipt.json("triggers", "backtest", trigger_id, "--since", "1h")
    assert (tested["looked_at"], tested["fired"], tested["samples"][0]["event_id"]) == (2, 1, event_id)
    draft = ("--on", "order.told", "--when", "amount", "lt", "100", "--since", "1h")
    assert receipt.json("triggers", "backtest", *draft)["fired"] == 1
    assert isinstance(receipt.json("events", "parked")["messages"], list)
    receipt.run("triggers", "delete", trigger_id)
    receipt.run("triggers", "get", trigger_id, code=3)


def test_a_trigger_that_may_feed_itself_is_named(program: Program) -> None:
    (program.folder / "again.js").write_text("export default () => atlas.events.publish('order.again', 1);\n")
    program.run("deploy", "again.js")
    made = program.run("triggers", "create", "--on", "order.>", "--function", "again", "--disabled")
    assert "Warning: The source of the function again seems to lead to order.again" in made.stderr


def test_objects_there_and_back(program: Program) -> None:
    content = bytes(range(256)) * 100
    (program.folder / "cat.jpg").write_bytes(content)
    program.run("storage", "put", "cli-photos/2026/a cat%20.jpg", "cat.jpg", "--metadata", '{"by": "Ada"}')
    (shown,) = program.json("storage", "ls", "cli-photos/2026/")["objects"]
    assert (shown["path"], shown["size"], shown["content_type"]) == ("2026/a cat%20.jpg", 25_600, "image/jpeg")
    assert program.json("storage", "get", "cli-photos/2026/a cat%20.jpg")["metadata"] == {"by": "Ada"}
    program.run("storage", "get", "cli-photos/2026/a cat%20.jpg", "-o", "copy.jpg")
    assert (program.folder / "copy.jpg").read_bytes() == content
    program.run("storage", "put", "cli-photos/2026/a cat%20.jpg", "cat.jpg", "--new", code=3)
    program.run("storage", "put", "cli-photos/note.txt", "-", stdin="hello")
    assert program.run("storage", "get", "cli-photos/note.txt").stdout == "hello"
    program.run("storage", "rm", "cli-photos/2026/a cat%20.jpg", "cli-photos/note.txt")
    program.run("storage", "get", "cli-photos/note.txt", code=3)


def test_what_is_held_runs_later_and_a_dead_letter_again(receipt: Program) -> None:
    trigger_id = trigger_on(receipt, "--on", "order.held", "--attempts", "1")
    receipt.run("triggers", "pause", trigger_id)
    receipt.run("events", "publish", "order.held", "--data", '{"amount": 13}', "--id", "unlucky")
    settled(receipt, trigger_id, "held")
    receipt.run("triggers", "resume", trigger_id)
    (dead,) = settled(receipt, trigger_id, "dead")
    assert dead["error"]["message"].endswith("Error: unlucky")
    receipt.run("deliveries", "replay", "00000000-0000-0000-0000-000000000000", code=3)
    (receipt.folder / "receipt.js").write_text(MENDED)
    receipt.run("deploy", "receipt.js")
    replay = ("deliveries", "replay", "--trigger", trigger_id, "--reason", "FUNCTION_EXCEPTION")
    assert receipt.json(*replay) == {"replayed": 1}
    (done,) = settled(receipt, trigger_id, "done")
    assert (done["id"], done["replays"]) == (dead["id"], 1)
    receipt.run("deliveries", "cancel", dead["id"], code=3)


def test_a_trigger_is_changed_and_made_of_a_file(receipt: Program) -> None:
    trigger_id = trigger_on(receipt, "--schedule", "0 6 1 1 *", "--timezone", "Asia/Tokyo", "--overlap", "skip")
    changed = receipt.json("triggers", "update", trigger_id, "--schedule", "30 6 1 1 *", "--disabled")
    assert changed["config"] == {"schedule": "30 6 1 1 *", "timezone": "Asia/Tokyo", "overlap": "skip"}
    previewed = receipt.json("triggers", "preview", trigger_id, "--count", "1")
    assert previewed["runs"][0]["local"].endswith("-01-01T06:30:00+09:00")
    shown = receipt.json("triggers", "get", trigger_id)
    kept = ("event_type", "config", "target_type", "function_id", "conditions", "enabled", "retry")
    (receipt.folder / "trigger.json").write_text(json.dumps({name: shown[name] for name in kept}))
    copied = receipt.json("triggers", "create", "--file", "trigger.json")
    assert {name: copied[name] for name in kept} == {name: shown[name] for name in kept}
    refused = receipt.run("triggers", "create", "--function", "receipt", "--schedule", "61 * * * *", code=3)
    assert "config.schedule" in refused.stderr


def test_a_schedule_fires_by_itself(scheduled: tuple[Program, str]) -> None:
    """Within the minute that it takes at most until the next one begins."""
    program, trigger_id = scheduled
    (delivery, *_) = settled(program, trigger_id, "done", within_s=75.0)
    event = program.json("deliveries", "get", delivery["id"])["event"]
    assert event["data"]["scheduled_at"] == event["time"]
    assert event["data"]["local_time"].endswith("+05:45")
    program.run("triggers", "update", trigger_id, "--disabled")
