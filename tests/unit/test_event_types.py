"""Event types: what is a token, one spelling for every name, and families that tenants cannot publish."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidArgument
from server.events.types import (
    MAX_TOKENS,
    MAX_TYPE_CHARS,
    escape,
    family,
    is_event_type,
    parse_event_type,
    parse_publishable,
    unescape,
)

GOOD = ["order.paid", "a", "cdc.INSERT.orders", "auth.signup", "storage.upload", "cron", "a-b_C.9", "x%2Ey", "x%C3%A4"]
BAD = [
    *("", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", ">", "a\n", "a\0b", "ä", "a%2", "a%", "%zz", "a%2e"),
    *("%41", "%2D", "%5F", "%30", "%7A", "a/b", "$JS.API", "a" * (MAX_TYPE_CHARS + 1), "a." * MAX_TOKENS + "a"),
]


@pytest.mark.parametrize("value", GOOD)
def test_types(value: str) -> None:
    assert is_event_type(value)
    assert parse_event_type("event_type", value) == value


@pytest.mark.parametrize("value", BAD)
def test_what_is_no_type_is_refused_by_name(value: str) -> None:
    assert not is_event_type(value)
    with pytest.raises(InvalidArgument, match="event_type") as caught:
        parse_event_type("event_type", value)
    assert caught.value.field == "event_type"


@pytest.mark.parametrize("value", ["cdc.INSERT.orders", "cdc", "cron", "cron.tick"])
def test_reserved_families_are_ours(value: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_publishable("type", value)
    assert caught.value.reason == "EVENT_TYPE_RESERVED"


@pytest.mark.parametrize("value", ["auth.signup", "storage.upload", "cdcx.a", "order.cdc", "cronjob"])
def test_other_families_are_the_tenants(value: str) -> None:
    assert parse_publishable("type", value) == value


@given(st.text(min_size=1, max_size=20))
def test_every_name_is_one_token_and_comes_back(name: str) -> None:
    token = escape(name)
    assert is_event_type(f"cdc.INSERT.{token}")
    assert "." not in token
    assert unescape(token) == name


@given(st.text(alphabet="aZ0_-.%2DE5F4", max_size=12))
def test_a_type_has_one_spelling(value: str) -> None:
    canonical = all(re.fullmatch(r"[\w%-]+", token, re.ASCII) for token in value.split("."))
    try:
        canonical = canonical and all(escape(unescape(token)) == token for token in value.split("."))
    except ValueError:
        return  # bytes that are no UTF-8, which a table's name in another encoding may have
    assert is_event_type(value) == (canonical and value.count(".") < MAX_TOKENS)


def test_the_longest_name_of_a_table_fits() -> None:
    assert is_event_type(f"cdc.TRUNCATE.{escape('ä' * 31)}")
    assert family("cdc.TRUNCATE.x") == "cdc"


@pytest.mark.parametrize("name", ["", "\ud800"])
def test_what_has_no_token(name: str) -> None:
    with pytest.raises(ValueError, match=r"empty|surrogates"):
        escape(name)
