"""Sealed secrets: open in their own place with their own key, and nowhere else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.functions.secrets import OVERHEAD_BYTES, SealBroken, Vault

KEY, OTHER_KEY = bytes(32), bytes([1]) * 32
PLACE = ("11111111-0000-4000-8000-000000000000", "22222222-0000-4000-8000-000000000000", "TOKEN")
VAULT = Vault(KEY)
TEXT = st.text(st.characters(codec="utf-8"))


@given(TEXT)
def test_what_was_sealed_opens_and_is_as_long_as_it_should_be(value: str) -> None:
    sealed = VAULT.seal(*PLACE, value)
    assert Vault(KEY).open(*PLACE, sealed) == value
    assert len(sealed) == len(value.encode()) + OVERHEAD_BYTES


def test_the_value_cannot_be_read_and_equal_values_look_different() -> None:
    one, two = (VAULT.seal(*PLACE, "hunter2" * 9) for _ in range(2))
    assert one != two
    assert b"hunter2" not in one + two


@pytest.mark.parametrize("part", range(3))
def test_a_sealed_secret_cannot_be_moved(part: int) -> None:
    project, function, name = (text[:-1] + "1" if number == part else text for number, text in enumerate(PLACE))
    with pytest.raises(SealBroken, match="sealed for another place"):
        VAULT.open(project, function, name, VAULT.seal(*PLACE, "v"))


def test_another_master_key_is_told_from_damage() -> None:
    with pytest.raises(SealBroken, match="it was sealed with another master key"):
        Vault(OTHER_KEY).open(*PLACE, VAULT.seal(*PLACE, "v"))


@given(st.data())
def test_no_byte_can_be_changed_or_cut(data: st.DataObject) -> None:
    sealed = bytearray(VAULT.seal(*PLACE, "value"))
    place = data.draw(st.integers(0, len(sealed) - 1))
    cut = bytes(sealed[:place])
    sealed[place] ^= data.draw(st.integers(1, 255))
    for broken in (bytes(sealed), cut):
        with pytest.raises(SealBroken) as caught:
            VAULT.open(*PLACE, broken)
        assert "value" not in str(caught.value)


def test_neither_key_nor_value_is_in_a_repr_or_an_error() -> None:
    assert KEY.hex() not in repr(VAULT)
    assert not any(isinstance(part, bytes) and KEY in part for part in vars(VAULT).values())
