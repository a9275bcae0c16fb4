"""`atlas.storage`: objects of the project, as user code puts, reads, lists and deletes them."""

import base64
import binascii
from collections.abc import Mapping
from typing import Final

import orjson

from engines.contract import HostError
from server.errors import AtlasError, Internal, NotFound, Unavailable
from server.events.envelope import Cause, spelled
from server.host import arguments
from server.storage.records import Slice, StoredObject
from server.storage.storage import Part, Storage

MAX_BODY_BYTES: Final = 5 * 1024 * 1024
"""Of one call, each way: as base64 it has to fit into a frame."""


class ObjectCalls:
    """For all projects of a process. Arguments are hostile; HostError says what is wrong with them.

    Codes: invalid_argument, unavailable, and the reasons of `server.storage` in lower case, such as storage_full.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def put(self, project_id: str, args: bytes, cause: Cause | None = None) -> bytes:
        name = "atlas.storage.put"
        bucket, path, body, options = arguments.read(name, args, least=3, most=4)
        given = arguments.options(name, "options", options, frozenset(("content_type", "metadata", "overwrite")))
        overwrite, metadata = given.get("overwrite"), given.get("metadata")
        if overwrite is not None and not isinstance(overwrite, bool):
            raise arguments.invalid(name, f"overwrite must be a boolean, got {arguments.kind(overwrite)}")
        try:
            stored = await self._storage.put(
                project_id,
                arguments.string(name, "bucket", bucket),
                arguments.string(name, "path", path),
                _body(name, body),
                content_type=arguments.string(name, "content_type", given.get("content_type") or ""),
                metadata=b"" if metadata is None else orjson.dumps(metadata),
                overwrite=overwrite is not False,
                cause=cause,
            )
        except AtlasError as why:
            raise _refusal(name, why) from None
        return orjson.dumps(_told(stored))

    async def get(self, project_id: str, args: bytes) -> bytes:
        """The object with its content, null when there is none."""
        name = "atlas.storage.get"
        bucket, path, options = arguments.read(name, args, least=2, most=3)
        part = _part(name, arguments.options(name, "options", options, frozenset(("offset", "length"))))
        try:
            found = await self._storage.get(
                project_id, arguments.string(name, "bucket", bucket), arguments.string(name, "path", path), part
            )
        except NotFound:
            return b"null"
        except AtlasError as why:
            raise _refusal(name, why) from None
        return orjson.dumps({**_told(found.object), "body_base64": base64.b64encode(found.content).decode()})

    async def list(self, project_id: str, args: bytes) -> bytes:
        name = "atlas.storage.list"
        bucket, options = arguments.read(name, args, least=1, most=2)
        given = arguments.options(name, "options", options, frozenset(("prefix", "limit", "cursor")))
        try:
            page = await self._storage.list(
                project_id,
                arguments.string(name, "bucket", bucket),
                prefix=arguments.string(name, "prefix", given.get("prefix") or ""),
                page_size=_whole(name, "limit", given.get("limit"), 1) or 0,
                page_token=arguments.string(name, "cursor", given.get("cursor") or ""),
            )
        except AtlasError as why:
            raise _refusal(name, why) from None
        return orjson.dumps({"objects": list(map(_told, page.objects)), "cursor": page.next_page_token or None})

    async def delete(self, project_id: str, args: bytes, cause: Cause | None = None) -> bytes:
        """Whether there was one."""
        name = "atlas.storage.delete"
        bucket, path = arguments.read(name, args, least=2, most=2)
        wanted = arguments.string(name, "bucket", bucket), arguments.string(name, "path", path)
        try:
            await self._storage.delete(project_id, *wanted, cause=cause)
        except NotFound:
            return b"false"
        except AtlasError as why:
            raise _refusal(name, why) from None
        return b"true"


def _body(name: str, value: object) -> bytes:
    try:
        body = base64.b64decode(arguments.string(name, "body", value), validate=True)
    except (binascii.Error, ValueError):
        raise arguments.invalid(name, "body is not base64") from None
    if len(body) > MAX_BODY_BYTES:
        raise HostError(
            "storage_body_limit", f"{name}: the body has {len(body)} bytes, {MAX_BODY_BYTES} are allowed in one call"
        )
    return body


def _part(name: str, given: Mapping[str, object]) -> Part:
    """What to read of an object; HostError when that is too much for one call."""
    offset = _whole(name, "offset", given.get("offset"), 0) or 0
    length = _whole(name, "length", given.get("length"), 0)

    def part(stored: StoredObject) -> Slice | None:
        wanted = Slice(offset, stored.size_bytes if length is None else length).within(stored.size_bytes)
        if wanted.length > MAX_BODY_BYTES:
            raise HostError(
                "storage_body_limit",
                f"{name}: {wanted.length} bytes, {MAX_BODY_BYTES} are allowed in one call; read it in parts"
                " with offset and length",
            )
        return None if wanted.length == stored.size_bytes else wanted

    return part


def _whole(name: str, field: str, value: object, least: int) -> int | None:
    if value is None:
        return None
    number = arguments.number(name, field, value)
    if number != int(number) or not least <= number < 2**31:
        raise arguments.invalid(name, f"{field} is {number:g}; it must be a whole number of at least {least}")
    return int(number)


def _refusal(name: str, why: AtlasError) -> HostError:
    if isinstance(why, Internal):
        raise why
    if isinstance(why, Unavailable):
        code = "unavailable"
    else:
        code = "invalid_argument" if why.reason == "INVALID_FIELD" else why.reason.lower()
    return HostError(code, f"{name}: {why.message}")


def _told(stored: StoredObject) -> dict[str, object]:
    return {
        "bucket": stored.bucket,
        "path": stored.path,
        "size": stored.size_bytes,
        "content_type": stored.content_type,
        "checksum": stored.checksum,
        "etag": stored.etag,
        "metadata": orjson.Fragment(stored.metadata.text),
        "created_at": spelled(stored.created_at),
        "updated_at": spelled(stored.updated_at),
    }
