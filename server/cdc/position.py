"""Where in the write-ahead log an event comes from; it stands in a header of its message.

    Atlas-Cdc: atlas_cdc_16391_9f2c…/1a2b3c40/17        slot / LSN of the commit's record / number of the change in it

A slot's name is used once: LSNs may begin anew on a server that was made or restored, and under another slot they are
not compared. The same change has the same position whenever it is decoded.
"""

import re
from typing import Final, NamedTuple

HEADER: Final = "Atlas-Cdc"


class Position(NamedTuple):
    slot: str
    commit_lsn: int
    change: int
    """From 1."""

    def __str__(self) -> str:
        return f"{self.slot}/{self.commit_lsn:x}/{self.change}"

    @property
    def event_id(self) -> str:
        return f"{self.slot}-{self.commit_lsn:x}-{self.change}"

    def reached(self, last: "Position | None") -> bool:
        """Whether it is not after `last`, of the same slot."""
        return (
            last is not None
            and last.slot == self.slot
            and (self.commit_lsn, self.change) <= (last.commit_lsn, last.change)
        )


def parse_position(text: str) -> Position | None:
    """None for what is no position."""
    found = _POSITION.fullmatch(text)
    return Position(found[1], int(found[2], 16), int(found[3])) if found else None


def lsn_text(lsn: int) -> str:
    """As Postgres writes it: 16/B374D848."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def parse_lsn(text: str) -> int:
    """ValueError."""
    high, _, low = text.partition("/")
    return int(high, 16) << 32 | int(low, 16)


_POSITION: Final = re.compile(r"([a-z0-9_]{1,63})/([0-9a-f]{1,16})/([0-9]{1,18})")
