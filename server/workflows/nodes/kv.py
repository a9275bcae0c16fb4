"""kv: reads or writes a key of the project, as atlas.kv does.

config  {"op": "get", "key"} · {"op": "set", "key", "value", "ttl_seconds"?} · {"op": "delete", "key"}
output  get: the value or null · set: null · delete: whether there was one
"""

from typing import Any, Final, Protocol

import orjson

from engines.contract import HostError
from server.errors import InvalidArgument
from server.host.keyvalue import MAX_KEY_BYTES, MAX_TTL_S
from server.workflows import fields
from server.workflows.nodes.step import Attempt, Output, StepFailed
from server.workflows.templates import compiled

TIMEOUT_S: Final = 10.0
OPS: Final = {
    "get": ("op", "key"),
    "set": ("op", "key", "value", "ttl_seconds"),
    "delete": ("op", "key"),
}


class Keys(Protocol):
    """`server.host.keyvalue.KeyValue`."""

    async def get(self, project_id: str, key: object) -> bytes: ...
    async def set(self, project_id: str, key: object, value: object, ttl_s: float | None) -> None: ...
    async def delete(self, project_id: str, key: object) -> bool: ...


def parse(config: object, field: str) -> Any:
    given = fields.members(config, field, OPS["set"], required=("op", "key"), of="the configuration of a kv node")
    op = fields.choice(given["op"], f"{field}.op", tuple(OPS))
    required = ("op", "key", "value") if op == "set" else ("op", "key")
    fields.members(config, field, OPS[op], required=required, of=f"the configuration of a kv node that does {op}")
    key = fields.templated(given["key"], f"{field}.key")
    if fields.is_fixed(key) and not 1 <= len(key.encode("utf-8", "replace")) <= MAX_KEY_BYTES:
        raise InvalidArgument(f"{field}.key", f"{field}.key must have 1 to {MAX_KEY_BYTES} bytes as UTF-8")
    found: dict[str, Any] = {"op": op, "key": key}
    if op == "set":
        found["value"] = compiled(given["value"], f"{field}.value")
        if given.get("ttl_seconds") is not None:
            found["ttl_seconds"] = fields.number(
                given["ttl_seconds"], f"{field}.ttl_seconds", low=0.001, high=MAX_TTL_S
            )
    return found


class KeyValueNode:
    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def run(self, attempt: Attempt) -> Output:
        try:
            return Output(json=await self._done(attempt.project_id, attempt.input))
        except HostError as why:
            away = why.code == "unavailable"
            raise StepFailed(
                f"KV_{why.code.upper()}", why.message, again=why.code != "invalid_argument", no_room=away
            ) from why
        except (TypeError, ValueError):  # of orjson: beyond 64 bits, or half of a surrogate pair
            raise StepFailed("KV_INVALID_ARGUMENT", "The key or value has what JSON in the store cannot hold") from None

    async def _done(self, project_id: str, config: Any) -> bytes:
        if config["op"] == "get":
            return await self._keys.get(project_id, config["key"])
        if config["op"] == "delete":
            return orjson.dumps(await self._keys.delete(project_id, config["key"]))
        await self._keys.set(project_id, config["key"], config["value"], config.get("ttl_seconds"))
        return b"null"
