"""Every change of what runs: one transaction that all processes hear of, then a fence.

    publish · amend ──▶ new version, active      delete ──▶ kept KEPT_DAYS without its slug ──▶ swept
    activate · rollback ──▶ another one active   undelete ──▶ back as it was

When a method returns, every process acts on the change.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from engines.contract import Isolation
from server.errors import AlreadyExists, NotFound
from server.fields import parse_id, shown
from server.functions import history
from server.functions.artifacts import Artifacts
from server.functions.configuration import UNCHANGED, Configuration, Reconfiguration, Seal, reconfigured
from server.functions.records import KEPT, Function
from server.functions.registry import function_with, no_version, parse_version
from server.functions.releases import (
    KEPT_VERSIONS,
    Release,
    active_configuration,
    add_function,
    delete_function,
    forget_versions,
    id_under,
    insert_revision,
    insert_version,
    next_version,
    require_room,
    take_turn,
)
from server.functions.secrets import Vault
from server.postgres.changes import Changes
from server.postgres.control import Connection, Pool, transaction

MAX_DELETED: Final = 1_000
"""Deleted functions of one project that are kept; when there are more, the longest deleted go at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Amendment:
    """What changes of a function while its code stays. None leaves what there is."""

    name: str | None = None
    isolation: Isolation | None = None
    note: str = ""  # about the new version
    change: Reconfiguration = UNCHANGED

    @property
    def makes_version(self) -> bool:
        return self.isolation is not None or self.note != "" or self.change != UNCHANGED


class Lifecycle:
    def __init__(self, pool: Pool, changes: Changes, artifacts: Artifacts, vault: Vault) -> None:
        self._pool = pool
        self._changes = changes
        self._artifacts = artifacts
        self._vault = vault

    async def check(self, project_id: str, release: Release, change: Reconfiguration, *, new: bool = False) -> None:
        """Raise now what `publish` would raise, as far as that can be known; nothing is changed."""
        async with transaction(self._pool) as conn:
            function_id = await id_under(conn, project_id, release.slug)
            if function_id is None:
                reconfigured(Configuration(), change, release.runtime, self._seal(project_id, ""))
            elif new:
                raise _slug_taken(release.slug)
            else:
                active = await active_configuration(conn, function_id)
                reconfigured(active, change, release.runtime, self._seal(project_id, function_id))

    async def publish(
        self, project_id: str, release: Release, change: Reconfiguration = UNCHANGED, *, new: bool = False
    ) -> Function:
        """Store the release as the next version of its slug and activate it; the files are on the disk already.

        AlreadyExists when `new` and the slug is taken; ResourceExhausted above MAX_FUNCTIONS; InvalidArgument when the
        change does not fit to the configuration of the version that is active by now.
        """
        async with self._turn(project_id) as conn:
            function_id = await id_under(conn, project_id, release.slug)
            if function_id is None:
                active = Configuration()
                function_id = await add_function(conn, project_id, release.name, release.slug)
            elif new:
                raise _slug_taken(release.slug)
            else:
                active = await active_configuration(conn, function_id)
            configured = reconfigured(active, change, release.runtime, self._seal(project_id, function_id))
            version = await next_version(conn, function_id, release.name)
            await insert_version(conn, project_id, function_id, version, release, configured)
            await history.note(conn, function_id, version)
            unused = await forget_versions(conn, project_id, function_id, up_to=version - KEPT_VERSIONS)
            function = await self._announced(conn, project_id, function_id)
        await self._changes.fence()
        await self._artifacts.remove(project_id, unused)
        return function

    async def amend(self, project_id: str, function_id: str, amendment: Amendment) -> Function:
        """A new version with the same code, activated; or only a new name. InvalidArgument as for `publish`."""
        function_id = parse_id("function_id", function_id)
        async with self._turn(project_id) as conn:
            before = await function_with(conn, project_id, function_id)
            unused = await self._revise(conn, before, amendment) if amendment.makes_version else ()
            if amendment.name is not None:
                await conn.execute(
                    "UPDATE functions SET name = %s, updated_at = now() WHERE id = %s", [amendment.name, function_id]
                )
            function = await self._announced(conn, project_id, function_id)
        await self._changes.fence()
        await self._artifacts.remove(project_id, unused)
        return function

    async def _revise(self, conn: Connection, before: Function, amendment: Amendment) -> list[str]:
        active = await active_configuration(conn, before.id)
        configured = reconfigured(active, amendment.change, before.runtime, self._seal(before.project_id, before.id))
        version = await next_version(conn, before.id, None)
        await insert_revision(
            conn,
            before.id,
            version,
            of=before.version,
            note=amendment.note,
            isolation=amendment.isolation,
            configured=configured,
        )
        await history.note(conn, before.id, version)
        return [*await forget_versions(conn, before.project_id, before.id, up_to=version - KEPT_VERSIONS)]

    async def activate(self, project_id: str, function_id: str, version: int) -> Function:
        """Let new invocations run that version. Idempotent. NotFound when there is no such version."""
        function_id = parse_id("function_id", function_id)
        parse_version(version)
        async with self._turn(project_id) as conn:
            before = await function_with(conn, project_id, function_id)
            cursor = await conn.execute(
                "SELECT FROM function_versions WHERE function_id = %s AND version = %s", [function_id, version]
            )
            if cursor.rowcount == 0:
                raise no_version(function_id, version)
            if before.version != version:
                await _point_at(conn, function_id, version)
                await history.note(conn, function_id, version)
            function = await self._announced(conn, project_id, function_id)
        await self._changes.fence()
        return function

    async def rollback(self, project_id: str, function_id: str) -> Function:
        """Let new invocations run the version that was active before the present one; again: the one before that.

        FailedPrecondition when there was none, or when it is kept no more.
        """
        function_id = parse_id("function_id", function_id)
        async with self._turn(project_id) as conn:
            await function_with(conn, project_id, function_id)
            await _point_at(conn, function_id, await history.step_back(conn, function_id))
            function = await self._announced(conn, project_id, function_id)
        await self._changes.fence()
        return function

    async def delete(self, project_id: str, function_id: str) -> None:
        """Delete the function: its slug is free, and it can be restored for KEPT_DAYS. Idempotent within them."""
        function_id = parse_id("function_id", function_id)
        async with self._turn(project_id) as conn:
            function = await function_with(conn, project_id, function_id, deleted=True)
            await conn.execute(
                "UPDATE functions SET deleted_at = now() WHERE id = %s AND deleted_at IS NULL", [function_id]
            )
            await self._announce(conn, function)
            cursor = await conn.execute(
                "SELECT id FROM functions WHERE project_id = %s AND deleted_at IS NOT NULL"
                " ORDER BY deleted_at DESC, id OFFSET %s",
                [project_id, MAX_DELETED],
            )
            surplus = [row[0] for row in await cursor.fetchall()]
            unused = [sha256 for each in surplus for sha256 in await delete_function(conn, project_id, each)]
        await self._changes.fence()
        await self._artifacts.remove(project_id, unused)

    async def undelete(self, project_id: str, function_id: str) -> Function:
        """Restore a deleted function with the version that was active; one that is there stays as it is.

        NotFound after KEPT_DAYS, AlreadyExists when its slug is taken, ResourceExhausted above MAX_FUNCTIONS.
        """
        function_id = parse_id("function_id", function_id)
        async with self._turn(project_id) as conn:
            before = await function_with(conn, project_id, function_id, deleted=True)
            if before.deleted_at is not None:
                if await id_under(conn, project_id, before.slug) is not None:
                    raise _slug_taken(before.slug)
                await require_room(conn, project_id)
                await conn.execute(
                    "UPDATE functions SET deleted_at = NULL, updated_at = now() WHERE id = %s", [function_id]
                )
            function = await self._announced(conn, project_id, function_id)
        await self._changes.fence()
        return function

    async def sweep(self) -> None:
        """Remove what is kept no more: functions deleted long ago, and from this machine's disk what has no version."""
        async with transaction(self._pool) as conn:
            cursor = await conn.execute(f"SELECT f.project_id, f.id FROM functions f WHERE NOT {KEPT}")
            expired = await cursor.fetchall()
        for project_id, function_id in expired:
            await self._remove(project_id, function_id)
        for project_id, hashes in (await self._artifacts.unattended()).items():
            async with transaction(self._pool) as conn:
                cursor = await conn.execute(
                    "SELECT sha256 FROM artifacts WHERE project_id = %s AND sha256 = ANY(%s)",
                    [project_id, [*hashes]],
                )
                known = {row[0] for row in await cursor.fetchall()}
            await self._artifacts.remove(project_id, set(hashes) - known)

    async def _remove(self, project_id: str, function_id: str) -> None:
        """Remove a function for good, unless another process did."""
        try:
            async with self._turn(project_id) as conn:
                unused = await delete_function(conn, project_id, function_id)
        except NotFound:  # the whole project has gone
            return
        await self._artifacts.remove(project_id, unused)

    @asynccontextmanager
    async def _turn(self, project_id: str) -> AsyncIterator[Connection]:
        async with transaction(self._pool) as conn:
            await take_turn(conn, project_id)
            yield conn

    async def _announced(self, conn: Connection, project_id: str, function_id: str) -> Function:
        function = await function_with(conn, project_id, function_id)
        await self._announce(conn, function)
        return function

    async def _announce(self, conn: Connection, function: Function) -> None:
        await self._changes.announce(conn, "function", f"{function.project_id}/{function.slug}")

    def _seal(self, project_id: str, function_id: str) -> Seal:
        return lambda name, value: self._vault.seal(project_id, function_id, name, value)


async def _point_at(conn: Connection, function_id: str, version: int) -> None:
    await conn.execute(
        "UPDATE functions SET active_version = %s, updated_at = now() WHERE id = %s", [version, function_id]
    )


def _slug_taken(slug: str) -> AlreadyExists:
    return AlreadyExists(
        f"The slug {shown(slug)} is taken by another function of the project; deploy to it instead",
        reason="SLUG_TAKEN",
        metadata={"slug": slug},
        field="slug",
    )
