"""The cause of changes to rows: what a run's transaction says of itself in a logical decoding message, ahead of them.

    content of the message "atlas.cause"       64 hexadecimal digits of seal · {"run_id", "trigger_id"?, "depth"}

Only the first of a transaction counts. A run's transaction begins with that of the server. What a tenant adds later
counts for nothing, and in a transaction of its own at most with the seal of an earlier run of the same project, for it
is here that seals are checked.
"""

import orjson

from server.errors import InvalidArgument
from server.events.envelope import Cause, parse_cause
from server.postgres.seal import Sealer

SEAL_CHARS = 64


def told(cause: Cause) -> str:
    """The text that is sealed."""
    members = {"run_id": cause.run_id, "trigger_id": cause.trigger_id, "depth": cause.depth}
    return orjson.dumps({name: value for name, value in members.items() if value is not None}).decode()


def read(content: bytes, role: str, sealer: Sealer) -> Cause | None:
    """Of a message in a transaction that changed tables in the schema `role`; None when it is not one of ours."""
    try:
        seal, text = bytes.fromhex(content[:SEAL_CHARS].decode("ascii")), content[SEAL_CHARS:].decode()
        return parse_cause(orjson.loads(text)) if sealer.is_sealed("cause", role, text, seal) else None
    except (ValueError, InvalidArgument):
        return None
