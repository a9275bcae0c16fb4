"""The rule set handed to each landlock ABI: all that the ABI knows, and nothing that it would refuse."""

import struct

import pytest

from engines import landlock
from engines.jail import WORKER_SLOTS, uid_block


@pytest.mark.parametrize(
    ("abi", "words"),
    [
        (1, (0x1FFF,)),
        (2, (0x3FFF,)),
        (3, (0x7FFF,)),
        (4, (0x7FFF, 3)),
        (5, (0xFFFF, 3)),
        (6, (0xFFFF, 3, 3)),
        (7, (0xFFFF, 3, 3)),
        (99, (0xFFFF, 3, 3)),
    ],
)
def test_ruleset_of_an_abi(abi: int, words: tuple[int, ...]) -> None:
    assert landlock.ruleset(abi) == struct.pack(f"={len(words)}Q", *words)


@pytest.mark.parametrize("pid", [1, 2, 77, 499_999, 500_000, 4_194_304])
def test_uids_of_a_supervisor_are_nobodys_else(pid: int) -> None:
    uids = uid_block(pid)
    assert len(uids) == WORKER_SLOTS
    assert uids.start >= 2_000_000
    assert uids.stop < 2**31
    assert not set(uids) & set(uid_block(pid + 1))
