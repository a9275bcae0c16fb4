"""Whatever a header holds, it is read as the one thing it says, or counts as absent; nothing is raised."""

from hypothesis import given
from hypothesis import strategies as st

from server.telemetry.correlation import is_request_id, trace_parent

ALPHABET = st.sampled_from("0123456789abcdefABCDEF-g \n０")
ALMOST = st.tuples(
    st.sampled_from(("00", "01", "ff", "0", "000")),
    st.text(ALPHABET, min_size=31, max_size=33) | st.just("0" * 32),
    st.text(ALPHABET, min_size=15, max_size=17) | st.just("0" * 16),
    st.text(ALPHABET, min_size=1, max_size=3),
).map("-".join)


@given(st.text() | ALMOST)
def test_a_parent_that_is_taken_is_written_as_it_came(value: str) -> None:
    found = trace_parent(value)
    if found is not None:
        assert str(found) == value
        assert int(found.trace_id, 16)
        assert int(found.span_id, 16)


@given(
    st.integers(1, 2**128 - 1).map("{:032x}".format),
    st.integers(1, 2**64 - 1).map("{:016x}".format),
    st.integers(0, 255).map("{:02x}".format),
)
def test_every_valid_parent_is_taken(trace: str, span: str, flags: str) -> None:
    found = trace_parent(f"00-{trace}-{span}-{flags}")
    assert found is not None
    assert (found.trace_id, found.span_id, found.flags) == (trace, span, int(flags, 16))


@given(st.text(max_size=200))
def test_a_request_id_that_goes_on_is_short_and_visible(value: str) -> None:
    expected = 1 <= len(value) <= 128 and all("!" <= character <= "~" for character in value)
    assert is_request_id(value) is expected
