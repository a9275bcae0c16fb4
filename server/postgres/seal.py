"""Seals: what shows the tenants database, and whoever reads it later, that a text comes from a server of ours.

A tenant's role may call the functions of `server.postgres.effects`, in the same session and transaction as we do, for
that is what they are for. What it cannot make is the seal: an HMAC-SHA256 of purpose, role and text, under a key that
is derived from the master key. The database holds the key in the form its own HMAC needs, where no tenant can read it.
"""

import hashlib
import hmac
from typing import Final

BLOCK_BYTES: Final = 64
"""Of SHA-256."""


class Sealer:
    """`secret`: the master key."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.new(secret, b"effects of runs in the tenants database", hashlib.sha256).digest()

    def seal(self, purpose: str, role: str, text: str) -> bytes:
        """32 bytes; `purpose` and `role` have no line breaks."""
        return hmac.new(self._key, f"{purpose}\n{role}\n{text}".encode(), hashlib.sha256).digest()

    def is_sealed(self, purpose: str, role: str, text: str, seal: bytes) -> bool:
        return hmac.compare_digest(self.seal(purpose, role, text), seal)

    @property
    def pads(self) -> tuple[bytes, bytes]:
        """The key xored with HMAC's inner and outer pad: sha256(outer || sha256(inner || text)) is the HMAC."""
        key = self._key.ljust(BLOCK_BYTES, b"\0")
        return bytes(byte ^ 0x36 for byte in key), bytes(byte ^ 0x5C for byte in key)
