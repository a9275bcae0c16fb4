"""`crypto.subtle.digest` for the sandbox, by the hash modules built into Python: hashlib would load OpenSSL."""

import _sha1  # type: ignore[import-not-found, unused-ignore]
import binascii
import json

try:  # Python 3.12 and later
    from _sha2 import sha256, sha384, sha512  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    from _sha256 import sha256  # type: ignore[import-not-found, no-redef, unused-ignore]
    from _sha512 import sha384, sha512  # type: ignore[import-not-found, no-redef, unused-ignore]

_HASHES = {
    "SHA-1": _sha1.sha1,
    "SHA-256": sha256,
    "SHA-384": sha384,
    "SHA-512": sha512,
}


def answers(queue: str) -> list[str]:
    """For each [id, algorithm, data in base64] of a JSON array, the JSON text [id, 1, digest in base64, true]."""
    done = []
    for number, algorithm, data in json.loads(queue):
        digest = _HASHES[algorithm](binascii.a2b_base64(data)).digest()
        done.append(f'[{number},1,"{binascii.b2a_base64(digest, newline=False).decode()}",true]')
    return done
