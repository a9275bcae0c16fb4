"""UUIDs as the standard library makes and reads them."""

from typing import Literal
from uuid import UUID

import pytest

from server.uuids import random_uuid, uuid_of


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("raw", [bytes(16), b"\xff" * 16, bytes(range(16)), bytes(range(0, 256, 16))])
def test_of_bytes(raw: bytes, version: Literal[4, 5]) -> None:
    assert uuid_of(raw, version) == str(UUID(bytes=raw, version=version))


def test_random_ones() -> None:
    made = {random_uuid() for _ in range(1000)}
    assert len(made) == 1000
    assert all(str(UUID(each)) == each and UUID(each).version == 4 for each in made)
