"""Templates: what they lead to, how it is spelled out, and what they may cost."""

from typing import Any

import pytest

from server.workflows.templates import Filling, Scope, TooLarge, compiled, dumped, paths

EVENT = {
    "id": "e1",
    "type": "order.paid",
    "data": {"amount": 12345678901234567890123, "type": "gift", "items": [{"sku": "a"}], "a.b": 1, "text": "x"},
}
SCOPE = Scope(
    event=EVENT,
    steps={
        "pay": {"output": {"ok": True, "none": None}, "error": None, "state": "succeeded"},
        "bad": {"output": None, "error": {"reason": "R", "message": "m"}, "state": "failed"},
    },
    run={"id": "r1"},
)


def filled(value: Any, most: int = 10_000) -> Any:
    return Filling(SCOPE, most).fill(compiled(value, "config"))


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("plain", "plain"),
        ("{{trigger}}", EVENT),
        ("{{trigger.id}}", "e1"),
        ("{{ trigger.data.amount }}", 12345678901234567890123),
        ("{{trigger.amount}}", 12345678901234567890123),
        ("{{trigger.type}}", "order.paid"),
        ("{{trigger.data.type}}", "gift"),
        ("{{trigger.items.0.sku}}", "a"),
        ("{{trigger.items.1.sku}}", None),
        (r"{{trigger.a\.b}}", 1),
        ("{{trigger.nothing.at.all}}", None),
        ("{{steps.pay.output}}", {"ok": True, "none": None}),
        ("{{steps.pay.output.ok}}", True),
        ("{{steps.bad.error.reason}}", "R"),
        ("{{steps.bad.state}}", "failed"),
        ("{{run.id}}", "r1"),
        ("{{run.id}}/{{trigger.text}}!", "r1/x!"),
        ("is {{steps.pay.output.ok}}, {{trigger.items}}, {{trigger.nothing}}.", 'is true, [{"sku":"a"}], .'),
        (" {{run.id}}", " r1"),
        (r"\{{run.id}}", "{{run.id}}"),
        (r"a\{{b {{run.id}} \{{", "a{{b r1 {{"),
        ("{ {run.id} }", "{ {run.id} }"),
        ({"{{run.id}}": ["{{run.id}}", 1, None]}, {"{{run.id}}": ["r1", 1, None]}),
    ],
)
def test_what_a_template_becomes(written: Any, means: Any) -> None:
    assert filled(written) == means


def test_what_is_filled_in_is_no_template_itself() -> None:
    scope = Scope(event={"data": {"evil": "{{run.id}}"}}, steps={}, run={"id": "r1"})
    assert Filling(scope, 100).fill(compiled("{{trigger.evil}} {{trigger.evil}}", "config")) == "{{run.id}} {{run.id}}"


def test_paths_are_found_wherever_they_are() -> None:
    assert set(paths(compiled({"a": ["x{{run.id}}", "{{steps.pay.output.x}}"], "b": 1}, "config"))) == {
        ("run", "id"),
        ("steps", "pay", "output", "x"),
    }


@pytest.mark.parametrize("written", ["{{trigger}}" * 200, ["{{trigger}}"] * 200])
def test_many_copies_end_before_they_are_made(written: Any) -> None:
    with pytest.raises(TooLarge):
        filled(written)


def test_json_keeps_digits_and_survives_lone_surrogates() -> None:
    assert dumped({"n": 10**30, "s": "\ud800é"}) == b'{"n":1000000000000000000000000000000,"s":"?\xc3\xa9"}'
