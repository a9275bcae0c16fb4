"""Event types that a trigger may name, and which events each of them means."""

import pytest

from server.errors import InvalidArgument
from server.triggers.patterns import matches, parse_pattern


@pytest.mark.parametrize(
    "pattern",
    [
        "cdc.INSERT.orders",
        "cdc.*.orders",
        "cdc.INSERT.*",
        "cdc.*.*",
        "cdc.INSERT.>",
        "cdc.>",
        "cdc.INSERT.two%20words",
        "cdc.TRUNCATE.orders",
        "cdc.gap",
        "auth.signup",
        "auth.login",
        "auth.*",
        "storage.upload",
        "storage.>",
        "cron",
        "order",
        "order.paid",
        "order.*.paid",
        "order.*.>",
        "CDC.insert.orders",
        "a.b.c.d.e.f.g.>",
    ],
)
def test_patterns(pattern: str) -> None:
    assert parse_pattern("event_type", pattern) == pattern


@pytest.mark.parametrize(
    ("pattern", "rule"),
    [
        ("", "is missing"),
        ("*", "first token must be written out"),
        (">", "first token must be written out"),
        ("*.INSERT.orders", "first token must be written out"),
        ("order.>.paid", "> stands for all that follows"),
        ("order..paid", "a token before and behind each dot"),
        (".order", "a token before and behind each dot"),
        ("order.", "a token before and behind each dot"),
        ("order paid", "every other byte as %XX: order%20paid"),
        ("order.pa*", "every other byte as %XX: order.pa%2A"),
        ("order.>paid", "every other byte as %XX: order.%3Epaid"),
        ("cdc.INSERT.größe", "every other byte as %XX: cdc.INSERT.gr%C3%B6%C3%9Fe"),
        ("cdc.INSERT.%6Frders", "every other byte as %XX"),
        ("order\n", "every other byte as %XX"),
        ("\ud800", "every other byte as %XX"),
        ("a.b.c.d.e.f.g.h.i", "at most 8 tokens and 255 characters"),
        ("a" * 256, "at most 8 tokens and 255 characters"),
        ("cdc", "cdc.{operation}.{table}"),
        ("cdc.*", "cdc.{operation}.{table}"),
        ("cdc.insert.orders", "INSERT, UPDATE, DELETE, TRUNCATE or *"),
        ("cdc.INSERT", "cdc.{operation}.{table}"),
        ("cdc.INSERT.orders.>", "cdc.{operation}.{table}"),
        ("cdc.INSERT.public.orders", "cdc.{operation}.{table}"),
        ("cron.hourly", "are of the type cron"),
        ("cron.>", "are of the type cron"),
        ("auth", "it lacks what happened, such as auth.login"),
        ("storage", "it lacks what happened, such as storage.upload"),
    ],
)
def test_refused(pattern: str, rule: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_pattern("event_type", pattern)
    assert caught.value.field == "event_type"
    assert rule in caught.value.message


@pytest.mark.parametrize(
    ("pattern", "event_type", "verdict"),
    [
        ("cdc.INSERT.orders", "cdc.INSERT.orders", True),
        ("cdc.INSERT.orders", "cdc.INSERT.Orders", False),
        ("cdc.INSERT.orders", "cdc.INSERT.orders.x", False),
        ("cdc.*.orders", "cdc.DELETE.orders", True),
        ("cdc.*.orders", "cdc.DELETE.users", False),
        ("cdc.*.orders", "cdc.orders", False),
        ("order.>", "order.paid", True),
        ("order.>", "order.item.added", True),
        ("order.>", "order", False),
        ("order.>", "orders.paid", False),
        ("order.*", "order.item.added", False),
        ("order.*.>", "order.item", False),
        ("order.*.>", "order.item.added", True),
        ("cron", "cron", True),
    ],
)
def test_matches(pattern: str, event_type: str, verdict: bool) -> None:
    assert matches(pattern, event_type) is verdict
