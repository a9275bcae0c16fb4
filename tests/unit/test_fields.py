"""Field checks: the rule in the message, the field named, odd bytes never echoed raw."""

import pytest

from server.errors import InvalidArgument
from server.fields import parse_choice, parse_id, parse_name

ID = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"


def test_an_id_comes_back_in_lower_case() -> None:
    assert parse_id("project_id", ID.upper()) == ID


@pytest.mark.parametrize(
    "value", ["", "x", ID[:-1], ID + "0", "{" + ID + "}", "urn:uuid:" + ID, ID.replace("-", ""), ID + "\n", "ſ" * 36]
)
def test_what_is_no_uuid_is_refused(value: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^project_id is .*it must be a UUID$") as caught:
        parse_id("project_id", value)
    assert (caught.value.field, caught.value.metadata["value"]) == ("project_id", value)


@pytest.mark.parametrize("value", ["a", "Получить заказы", "x" * 100, "naïve 👩‍🚀", " padded "])
def test_good_names(value: str) -> None:
    assert parse_name("name", value) == value


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("", "name is missing; it must have 1 to 100 characters"),
        ("  ", "blank"),
        ("x" * 101, "name has 101 characters; at most 100"),
        ("a\nb", r"control character U\+000A at position 1"),
        ("a\0", r"U\+0000"),
        ("\x85x", r"U\+0085"),
        ("x\u2028", r"U\+2028"),
        ("\ud800", r"U\+D800"),
    ],
)
def test_bad_names(value: str, rule: str) -> None:
    with pytest.raises(InvalidArgument, match=rule) as caught:
        parse_name("name", value)
    assert caught.value.field == "name"


def test_an_optional_name_may_be_empty() -> None:
    assert parse_name("name", "", required=False) == ""


def test_a_choice_says_all_choices_and_cuts_what_it_quotes() -> None:
    assert parse_choice("role", "anon", ("service", "anon")) == "anon"
    with pytest.raises(InvalidArgument) as caught:
        parse_choice("role", 'ad"min' + "x" * 500, ("service", "anon"))
    assert caught.value.message == f'role is "ad\\"min{"x" * 34}…"; it must be one of service, anon'
