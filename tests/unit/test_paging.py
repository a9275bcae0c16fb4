"""Page tokens: opaque, bound to their list, useless when changed."""

import base64
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidArgument
from server.paging import END, LATEST, MAX_BYTES, MAX_SIZE, Place, at, request

MOMENT = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)


def token_of(name: str, place: Place) -> str:
    return request(name, 1, "").page([place, place], lambda item: item).next_page_token


@given(
    moment=st.datetimes(datetime(1970, 1, 1), datetime(9998, 1, 1)).map(lambda naive: naive.replace(tzinfo=UTC)),  # noqa: DTZ001
    item_id=st.uuids().map(str),
)
def test_a_token_leads_back_to_its_place_to_the_microsecond(moment: datetime, item_id: str) -> None:
    place = at(moment, item_id)
    after = request("functions", 10, token_of("functions", place)).after
    assert (after, after.moment) == (place, moment)


def test_size_and_first_page() -> None:
    assert (request("x", 0, "").size, request("x", MAX_SIZE, "").size) == (50, 200)
    assert request("x", 0, "").after == LATEST
    assert request("x", 0, "", first=END).after == END
    assert LATEST.moment.year == 9999


def test_what_is_not_before_until_is_not_walked_through() -> None:
    ends = Place(at(MOMENT, "").order, "00000000-0000-0000-0000-000000000000")
    earlier, later = (at(MOMENT + timedelta(seconds=step), str(uuid4())) for step in (-1, 1))
    assert request("x", 0, "", until=MOMENT).after == ends
    assert request("x", 0, token_of("x", earlier), until=MOMENT).after == earlier
    assert request("x", 0, token_of("x", later), until=MOMENT).after == ends


@pytest.mark.parametrize("size", [-1, 201, 2**31 - 1, -(2**31)])
def test_a_size_out_of_range_is_refused_with_the_limit(size: int) -> None:
    with pytest.raises(InvalidArgument, match=f"page_size is {size}; it must be 1 to 200") as caught:
        request("x", size, "")
    assert caught.value.field == "page_size"


def test_the_last_page_has_no_token() -> None:
    asked = request("x", 2, "")
    assert asked.page([1, 2], lambda _: END).next_page_token == ""
    cut = asked.page([1, 2, 3], lambda _: END)
    assert (cut.items, bool(cut.next_page_token)) == ([1, 2], True)


@given(st.text(max_size=80))
def test_any_text_is_a_refusal_and_not_a_fault(text: str) -> None:
    if text:
        with pytest.raises(InvalidArgument) as caught:
            request("functions", 0, text)
        assert caught.value.field == "page_token"


def test_a_token_of_another_list_or_with_any_byte_changed_is_refused() -> None:
    token = token_of("functions of a", at(MOMENT, str(uuid4())))
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    changed = [raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1 :] for i in range(len(raw))]
    for bad in [raw[:-1], raw + b"\0", *changed]:
        with pytest.raises(InvalidArgument):
            request("functions of a", 0, base64.urlsafe_b64encode(bad).decode())
    with pytest.raises(InvalidArgument):
        request("functions of b", 0, token)


@pytest.mark.parametrize(
    ("weights", "shown"),
    [([], 0), ([1, 1, 1], 3), ([MAX_BYTES], 1), ([MAX_BYTES, 1], 1), ([MAX_BYTES + 1, 1], 1), ([1, MAX_BYTES, 0], 1)],
)
def test_a_page_is_cut_where_it_becomes_too_large_but_is_never_empty(weights: list[int], shown: int) -> None:
    asked = request("functions", 10, "")
    page = asked.page(weights, lambda weight: Place(weight, LATEST.id), weigh=lambda weight: weight)
    assert (len(page.items), page.next_page_token != "") == (shown, shown < len(weights))
