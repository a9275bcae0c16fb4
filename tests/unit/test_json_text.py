"""The judge of large texts agrees with the parser of small ones."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.json_text import is_json

WORDS = ("1", "-0", "01", "1.", ".5", "1e5", "1e", "NaN", "null", "true", '"a"', "\\n", "\\u12", "é")
FRAGMENTS = st.sampled_from([*'[]{},:"\\ \t\n\x00\x01', *WORDS])


def parses(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


@given(st.lists(FRAGMENTS, max_size=12).map("".join))
async def test_it_agrees_with_the_parser(text: str) -> None:
    assert await is_json(text.encode()) is parses(text.encode())


@given(st.binary(max_size=12))
async def test_it_agrees_about_bytes(text: bytes) -> None:
    assert await is_json(text) is parses(text)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (b"[" + b"[]," * 1_000_000 + b"1]", True),
        (b"[" + b"[]," * 1_000_000 + b"]", False),
        (b'"' + b"x" * 3_000_000 + b'"', True),
        (b'"' + b"x" * 3_000_000, False),
        (b'"\\ud800"', True),
        (b'"\xed\xa0\x80"', False),
        (b"[" * 100_000 + b"]" * 100_000, False),
    ],
)
async def test_large_and_odd_texts(text: bytes, verdict: bool) -> None:
    assert await is_json(text) is verdict
