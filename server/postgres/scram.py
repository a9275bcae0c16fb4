"""SCRAM-SHA-256 (RFC 5802, 7677), the client's half, as a pure exchange of bytes.

    client first ──▶   ◀── server first (salt, rounds)   client final (proof) ──▶   ◀── server final (signature)

For passwords of ASCII characters, for which SASLprep changes nothing; ours are hexadecimal.
"""

import base64
import hashlib
import hmac
import re
from typing import Final

MECHANISM: Final = "SCRAM-SHA-256"
MAX_ROUNDS: Final = 1_000_000
"""A server that asks for more would only burn our CPU; Postgres asks for 4,096."""

_SERVER_FIRST = re.compile(r"r=([!-+\--~]+),s=([A-Za-z0-9+/=]+),i=([0-9]{1,9})")


class ScramError(Exception):
    """The server does not speak SCRAM-SHA-256 correctly, or does not know the password."""


class Scram:
    def __init__(self, password: str, nonce: str) -> None:
        self._password = password.encode("ascii")
        self._nonce = nonce
        self._expected = b""

    @property
    def first(self) -> bytes:
        """client-first-message, without channel binding; Postgres takes the user from the startup message."""
        return f"n,,n=,r={self._nonce}".encode()

    def answer(self, server_first: bytes) -> bytes:
        """client-final-message."""
        text = server_first.decode("ascii", "replace")
        found = _SERVER_FIRST.match(text)
        if not found or not found[1].startswith(self._nonce) or found[1] == self._nonce:
            raise ScramError("the server's first message is not SCRAM")
        rounds = int(found[3])
        if not 1 <= rounds <= MAX_ROUNDS:
            raise ScramError(f"{rounds} rounds asked for, at most {MAX_ROUNDS} allowed")
        salted = hashlib.pbkdf2_hmac("sha256", self._password, base64.b64decode(found[2]), rounds)
        client_key = _hmac(salted, b"Client Key")
        without_proof = f"c=biws,r={found[1]}"
        signed = f"n=,r={self._nonce},{text},{without_proof}".encode()
        signature = _hmac(hashlib.sha256(client_key).digest(), signed)
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self._expected = b"v=" + base64.b64encode(_hmac(_hmac(salted, b"Server Key"), signed))
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    def verify(self, server_final: bytes) -> None:
        """ScramError unless the server proved that it knows the password, too."""
        if not self._expected or not hmac.compare_digest(server_final, self._expected):
            raise ScramError("the server does not know the password")


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, "sha256").digest()
