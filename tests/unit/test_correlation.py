"""Headers that correlate: what is taken, and what counts as absent."""

import pytest

from server.telemetry.correlation import TraceParent, is_request_id, new_request_id, trace_parent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


def test_a_parent_is_read() -> None:
    found = trace_parent(GOOD)
    assert found == TraceParent(TRACE, SPAN, 1)
    assert found.sampled
    assert str(found) == GOOD


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)])
def test_bit_zero_of_the_flags_samples_and_all_go_on(flags: str, sampled: bool) -> None:
    found = trace_parent(f"00-{TRACE}-{SPAN}-{flags}")
    assert found is not None
    assert found.sampled is sampled
    assert str(found).endswith(f"-{flags}")


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "-".join(("01", TRACE, SPAN, "01")),
        "-".join(("ff", TRACE, SPAN, "01")),
        "-".join(("00", "0" * 32, SPAN, "01")),
        "-".join(("00", TRACE, "0" * 16, "01")),
        GOOD.upper(),
        GOOD + "-",
        GOOD + "-more",
        GOOD + "\n",
        " " + GOOD,
        f"{GOOD},{GOOD}",
        GOOD.replace("-", "_"),
        GOOD.replace("4b", "4g"),
        GOOD.replace("4b", "４b"),
        GOOD[:-1],
    ],
)
def test_what_breaks_the_rules_counts_as_absent(value: str | None) -> None:
    assert trace_parent(value) is None


@pytest.mark.parametrize("value", ["a", "x" * 128, "!~{}<script>", "a,b"])
def test_request_ids_that_go_on(value: str) -> None:
    assert is_request_id(value)


def test_our_own_request_ids_go_on() -> None:
    assert is_request_id(new_request_id())


@pytest.mark.parametrize("value", ["", "x" * 129, "a b", "a\n", "\0", "é", "a\x7f", "\u2028"])
def test_request_ids_that_are_replaced(value: str) -> None:
    assert not is_request_id(value)
