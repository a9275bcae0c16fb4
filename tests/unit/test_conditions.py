"""What conditions hold of what: every operator against every kind of value, and what is there or missing."""

import pytest

from server.triggers.conditions import AllOf, evaluate
from server.triggers.parsing import parse


def holds(op: str, wanted: object, actual: object) -> bool:
    return evaluate(parse([{"field": "x", "op": op, "value": wanted}]), {"data": {"x": actual}})


def holds_of(condition: object, **event: object) -> bool:
    return evaluate(parse([condition]), event)


EQUAL = [
    pytest.param(100, 100, id="integers"),
    pytest.param(100, 100.0, id="integer-and-float"),
    pytest.param(100, "100", id="number-as-postgres-sends-it"),
    pytest.param(100, "100.00", id="trailing-zeros"),
    pytest.param(100, "1e2", id="exponent"),
    pytest.param(0.1, "0.1", id="a-tenth-in-decimal"),
    pytest.param(0.1, 0.1, id="a-tenth"),
    pytest.param(0, -0.0, id="negative-zero"),
    pytest.param(0, "-0", id="negative-zero-in-text"),
    pytest.param(1e23, 10**23, id="a-double-is-the-number-it-is-written-as"),
    pytest.param(9007199254740993, "9007199254740993", id="beyond-doubles"),
    pytest.param("paid", "paid", id="strings"),
    pytest.param("100", "100", id="numeric-strings-as-strings"),
    pytest.param("", "", id="empty"),
    pytest.param("NaN", "NaN", id="nan-as-text"),
    pytest.param(True, True, id="true"),
    pytest.param(False, False, id="false"),
    pytest.param(None, None, id="null"),
    pytest.param([], [], id="empty-array"),
    pytest.param([1, "a"], [1.0, "a"], id="arrays"),
    pytest.param({"a": {"b": [1]}}, {"a": {"b": ["1"]}}, id="objects"),
    pytest.param({}, {}, id="empty-object"),
]
DIFFERENT = [
    pytest.param(100, 101, id="integers"),
    pytest.param(9007199254740993, 9007199254740992, id="neighbours-beyond-doubles"),
    pytest.param(9007199254740993, "9007199254740992", id="neighbours-beyond-doubles-in-text"),
    pytest.param(9007199254740993, 9007199254740992.0, id="neighbours-one-a-double"),
    pytest.param("100", 100, id="a-string-is-not-a-number"),
    pytest.param("100", "100.0", id="strings-are-not-read-as-numbers"),
    pytest.param(1, True, id="true-is-not-one"),
    pytest.param(True, 1, id="one-is-not-true"),
    pytest.param(False, 0, id="zero-is-not-false"),
    pytest.param(0, False, id="false-is-not-zero"),
    pytest.param(0, None, id="null-is-not-zero"),
    pytest.param(False, None, id="null-is-not-false"),
    pytest.param("", None, id="null-is-not-empty"),
    pytest.param(None, "null", id="text-null"),
    pytest.param(None, False, id="false-is-not-null"),
    pytest.param(100, " 100", id="space"),
    pytest.param(7, "07", id="leading-zero"),
    pytest.param(7, "+7", id="plus"),
    pytest.param(7, "7.", id="bare-point"),
    pytest.param(7, "0x7", id="hexadecimal"),
    pytest.param(7, "7\n", id="newline"),
    pytest.param(7, "٧", id="arabic-digit"),
    pytest.param(7, "7_0", id="underscore"),
    pytest.param(7, "7" * 1001, id="more-digits-than-a-numeric"),
    pytest.param(7, "1e9999999", id="an-exponent-of-seven-digits"),
    pytest.param(7, float("nan"), id="nan"),
    pytest.param("é", "e\u0301", id="not-normalised"),
    pytest.param("a", "A", id="case"),
    pytest.param("a", ["a"], id="an-array-is-not-its-element"),
    pytest.param([1, 2], [2, 1], id="order-of-arrays"),
    pytest.param([1], [1, 1], id="length"),
    pytest.param([True], [1], id="booleans-inside"),
    pytest.param({"a": 1}, {"a": 1, "b": 2}, id="more-members"),
    pytest.param({}, [], id="object-and-array"),
]


@pytest.mark.parametrize(("wanted", "actual"), EQUAL)
def test_equal(wanted: object, actual: object) -> None:
    assert holds("eq", wanted, actual)
    assert not holds("neq", wanted, actual)
    assert holds("in", ["other", wanted], actual)
    assert not holds("not_in", [wanted], actual)
    assert holds("contains", wanted, [None if wanted is not None else 0, actual])


@pytest.mark.parametrize(("wanted", "actual"), DIFFERENT)
def test_different(wanted: object, actual: object) -> None:
    assert not holds("eq", wanted, actual)
    assert holds("neq", wanted, actual)
    assert not holds("in", [wanted], actual)
    assert holds("not_in", [wanted], actual)
    assert not holds("contains", wanted, [actual])


LESS = [
    pytest.param(99, 100, id="integers"),
    pytest.param(-1, 0, id="negative"),
    pytest.param(99.99, 100, id="float"),
    pytest.param("99.99", 100, id="numeric-text"),
    pytest.param("9", 10, id="by-value-not-by-character"),
    pytest.param("9007199254740992", 9007199254740993, id="beyond-doubles"),
    pytest.param(9007199254740992.0, 9007199254740993, id="beyond-doubles-one-a-double"),
    pytest.param("12345678901234567890.1", 12345678901234567891, id="a-large-numeric"),
    pytest.param("-Infinity", -(10**300), id="minus-infinity"),
    pytest.param(10**300, 1e301, id="large-integer-and-double"),
    pytest.param("a", "b", id="strings"),
    pytest.param("", "a", id="empty"),
    pytest.param("10", "9", id="strings-by-code-point"),
    pytest.param("Z", "a", id="capitals-first"),
    pytest.param("\uffff", "\U0001f600", id="beyond-the-basic-plane"),
    pytest.param("2026-01-31T09:00:00Z", "2026-02-01T00:00:00Z", id="times"),
]


@pytest.mark.parametrize(("smaller", "larger"), LESS)
def test_order(smaller: object, larger: object) -> None:
    assert holds("lt", larger, smaller)
    assert holds("lte", larger, smaller)
    assert not holds("gt", larger, smaller)
    assert not holds("gte", larger, smaller)


@pytest.mark.parametrize("op", ["gte", "lte"])
@pytest.mark.parametrize(("wanted", "actual"), [(100, "100.0"), (0.1, "0.10"), ("b", "b")])
def test_the_bound_itself(op: str, wanted: object, actual: object) -> None:
    assert holds(op, wanted, actual)
    assert not holds(op[:2], wanted, actual)


@pytest.mark.parametrize("op", ["gt", "gte", "lt", "lte"])
@pytest.mark.parametrize("actual", [None, True, False, [], [1], {}, {"a": 1}, "abc", "NaN", "", float("nan"), "1,000"])
def test_nothing_else_has_an_order_with_a_number(op: str, actual: object) -> None:
    assert not holds(op, 0, actual)


@pytest.mark.parametrize("op", ["gt", "gte", "lt", "lte"])
@pytest.mark.parametrize("actual", [None, True, 0, 1.5, [], ["b"], {}])
def test_nothing_else_has_an_order_with_a_string(op: str, actual: object) -> None:
    assert not holds(op, "a", actual)


def test_infinity_of_postgres_is_above_all_numbers() -> None:
    assert holds("gt", 10**300, "Infinity")
    assert not holds("lt", 10**300, "Infinity")


@pytest.mark.parametrize(
    ("op", "wanted", "actual", "verdict"),
    [
        ("contains", "ell", "hello", True),
        ("contains", "", "hello", True),
        ("contains", "ELL", "hello", False),
        ("contains", "a", ["a", "b"], True),
        ("contains", "a", ["ab"], False),
        ("contains", 1, ["1"], True),
        ("contains", 1, "123", False),
        ("contains", [1], [[1], [2]], True),
        ("contains", "a", {"a": 1}, False),
        ("contains", "a", None, False),
        ("contains", None, [None], True),
        ("in", ["a", [1]], [1], True),
        ("in", [1, True], True, True),
        ("in", [1], True, False),
        ("in", ["a"], ["a"], False),
        ("prefix", "invoices/", "invoices/7.pdf", True),
        ("prefix", "Invoices/", "invoices/7.pdf", False),
        ("prefix", "a", ["a"], False),
        ("suffix", ".pdf", "invoices/7.pdf", True),
        ("suffix", ".pdf", 7, False),
        ("matches", "^inv.*[0-9]+", "invoices/7.pdf", True),
        ("matches", "[0-9]+", "invoices/7.pdf", True),
        ("matches", "^[0-9]+$", "invoices/7.pdf", False),
        ("matches", "^a$", "a\n", False),
        ("matches", "(?i)^É", "école", True),
        ("matches", "^.$", "é", True),
        ("matches", "7", 7, False),
        ("matches", "", "", True),
        ("exists", True, None, True),
        ("exists", False, None, False),
    ],
)
def test_the_other_operators(op: str, wanted: object, actual: object, verdict: bool) -> None:
    assert holds(op, wanted, actual) is verdict


@pytest.mark.parametrize("longest", ["a" * 4_096, "é" * 2_048])
def test_a_string_is_searched_up_to_its_bound(longest: str) -> None:
    assert holds("matches", longest[0], longest)
    assert not holds("matches", longest[0], longest + "a")


def test_a_lone_surrogate_is_searched_too() -> None:
    assert holds("matches", "b$", "\ud800b")


@pytest.mark.parametrize(
    ("op", "value", "verdict"),
    [
        ("eq", None, False),
        ("neq", None, True),
        ("neq", "a", True),
        ("gt", 0, False),
        ("gte", "", False),
        ("lt", 0, False),
        ("lte", 0, False),
        ("contains", "", False),
        ("in", [None], False),
        ("not_in", [None], True),
        ("prefix", "", False),
        ("suffix", "", False),
        ("matches", "", False),
        ("exists", True, False),
        ("exists", False, True),
        ("changed", True, False),
        ("changed", False, True),
    ],
)
@pytest.mark.parametrize("data", [{}, {"y": 1}, None, "text", 5, [], ["x"]])
def test_a_missing_field(op: str, value: object, verdict: bool, data: object) -> None:
    assert holds_of({"field": "x", "op": op, "value": value}, data=data) is verdict


NESTED = {
    "data": {"a": {"b": 1}, "a.b": 2, "items": [{"sku": "s0"}, {"sku": "s1"}], "$old": 3, "back\\slash": 4, "0": 5},
    "old": {"a": {"b": 6}},
    "type": "cdc.UPDATE.orders",
    "table": "orders",
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("a.b", 1),
        (r"a\.b", 2),
        ("items.0.sku", "s0"),
        ("items.1.sku", "s1"),
        (r"\$old", 3),
        (r"back\\slash", 4),
        ("0", 5),
        ("$old.a.b", 6),
        ("$event.type", "cdc.UPDATE.orders"),
        ("$event.table", "orders"),
        ("$event.old.a.b", 6),
        ("$event.data.a.b", 1),
        ("$old", {"a": {"b": 6}}),
    ],
)
def test_paths(field: str, value: object) -> None:
    assert holds_of({"field": field, "op": "eq", "value": value}, **NESTED)


@pytest.mark.parametrize(
    "field", ["items.sku", "items.2", "items.-1", "items.00", "items.٠", "items.0.sku.0", "a.b.c", "A.b", "b"]
)
def test_paths_that_lead_nowhere(field: str) -> None:
    assert not holds_of({"field": field, "op": "exists"}, **NESTED)


UPDATE = {
    "data": {"status": "paid", "meta": {"a": 1, "b": True}, "n": 1},
    "old": {"status": "new", "meta": {"a": 1, "b": 1}, "n": 1},
    "changed": ["status", "meta"],
}


@pytest.mark.parametrize(
    ("field", "event", "verdict"),
    [
        ("status", UPDATE, True),
        ("meta", UPDATE, True),
        ("meta.a", UPDATE, False),
        ("meta.b", UPDATE, True),
        ("meta.c", UPDATE, False),
        ("n", UPDATE, False),
        ("status", {**UPDATE, "changed": ["meta"]}, False),
        ("status", {**UPDATE, "unavailable": ["status"]}, False),
        ("status", {"data": {"status": "paid"}, "changed": ["status"]}, True),
        ("status", {"data": {"status": "paid"}, "old": {"id": 1}, "changed": ["status"]}, True),
        ("status", {"data": {"status": "paid"}, "old": {"status": "new"}}, True),
        ("status", {"data": {"status": "paid"}, "old": {"status": "paid"}}, False),
        ("status", {"data": {"status": "paid"}}, False),
        ("status", {"data": {"status": "paid"}, "changed": "status"}, False),
    ],
)
def test_changed(field: str, event: dict[str, object], verdict: bool) -> None:
    assert holds_of({"field": field, "op": "changed"}, **event) is verdict
    assert holds_of({"field": field, "op": "changed", "value": False}, **event) is not verdict


A, B, NO = ({"field": name, "op": "exists"} for name in ("a", "b", "no"))


@pytest.mark.parametrize(
    ("conditions", "verdict"),
    [
        ([], True),
        (None, True),
        ([A, B], True),
        ([A, NO], False),
        ([{"any": [NO, A]}], True),
        ([{"any": [NO]}], False),
        ([{"all": [A, B]}], True),
        ([{"all": [A, NO]}], False),
        ([{"not": NO}], True),
        ([{"not": {"any": [A, NO]}}], False),
        ([{"not": {"not": A}}, B], True),
        ([A, {"any": [{"all": [B, NO]}, {"not": NO}]}], True),
    ],
)
def test_groups(conditions: object, verdict: bool) -> None:
    assert evaluate(parse(conditions), {"data": {"a": 1, "b": None}}) is verdict


def test_a_negated_order_holds_of_what_has_none() -> None:
    assert holds_of({"not": {"field": "x", "op": "gt", "value": 1}}, data={})


def test_an_event_without_anything() -> None:
    assert not holds_of(A)
    assert evaluate(AllOf(()), {})
