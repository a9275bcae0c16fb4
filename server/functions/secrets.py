"""Secrets at rest: AES-256-GCM under a key derived from the server's master key.

    sealed:  01 · 8 bytes key id · 12 bytes nonce · ciphertext and tag

The place a secret belongs to (project, function, name) is authenticated with it: a row that is copied to another
function, or renamed, does not open. The key id, derived like the key, tells another master key from damage.
"""

import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_FORMAT: Final = b"\x01"
_KEY_ID_BYTES: Final = 8
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_HEAD_BYTES: Final = len(_FORMAT) + _KEY_ID_BYTES

OVERHEAD_BYTES: Final = _HEAD_BYTES + _NONCE_BYTES + _TAG_BYTES
"""By which a sealed secret is longer than the secret's UTF-8."""


class SealBroken(Exception):
    """A secret cannot be opened; the message says why, and nothing about its value."""


class Vault:
    def __init__(self, master_key: bytes) -> None:
        """`master_key` is the server's, 32 random bytes; it is not kept."""
        self._cipher = AESGCM(_derived(master_key, b"atlas function secrets: key", 32))
        self._key_id = _derived(master_key, b"atlas function secrets: key id", _KEY_ID_BYTES)

    def seal(self, project_id: str, function_id: str, name: str, value: str) -> bytes:
        """Never the same bytes twice. `value` must be encodable as UTF-8."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, value.encode(), _place(project_id, function_id, name))
        return _FORMAT + self._key_id + nonce + sealed

    def open(self, project_id: str, function_id: str, name: str, sealed: bytes) -> str:
        """The value sealed for exactly that place, else SealBroken."""
        if len(sealed) < OVERHEAD_BYTES or not sealed.startswith(_FORMAT):
            raise SealBroken("it is damaged")
        if sealed[len(_FORMAT) : _HEAD_BYTES] != self._key_id:
            raise SealBroken("it was sealed with another master key")
        nonce, text = sealed[_HEAD_BYTES : _HEAD_BYTES + _NONCE_BYTES], sealed[_HEAD_BYTES + _NONCE_BYTES :]
        try:
            return self._cipher.decrypt(nonce, text, _place(project_id, function_id, name)).decode()
        except InvalidTag:
            raise SealBroken("it is damaged, or was sealed for another place") from None


def _place(project_id: str, function_id: str, name: str) -> bytes:
    """UUIDs have no slash, so no two places look alike."""
    return f"{project_id}/{function_id}/{name}".encode()


def _derived(master_key: bytes, purpose: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=purpose).derive(master_key)
