"""Projects and their keys on a real Postgres; schemas are a fake behind the door that Tenants has."""

import asyncio
import dataclasses
import re
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from server.errors import InvalidArgument, NotFound, Unavailable
from server.postgres.changes import Changes
from server.postgres.control import Pool, transaction
from server.postgres.tenants import Tenants
from server.projects import Keyring, Projects
from server.projects.api_keys import digest

UNKNOWN = "00000000-0000-4000-8000-000000000000"


class FakeSchemas:
    """Schemas in a set, and a crash on demand."""

    def __init__(self) -> None:
        self.schemas: set[str] = set()
        self.fail_provision: Exception | None = None
        self.fail_drop: Exception | None = None
        self.provisioning = asyncio.Event()
        self.proceed = asyncio.Event()
        self.proceed.set()

    async def provision(self, project_id: str) -> None:
        self.schemas.add(project_id)
        self.provisioning.set()
        await self.proceed.wait()
        if self.fail_provision is not None:
            raise self.fail_provision

    async def drop(self, project_id: str) -> None:
        if self.fail_drop is not None:
            raise self.fail_drop
        self.schemas.discard(project_id)


@pytest.fixture
def schemas() -> FakeSchemas:
    return FakeSchemas()


@pytest.fixture
def removed() -> list[str]:
    """Projects whose other belongings were removed."""
    return []


@pytest.fixture
def keyring(pool: Pool, changes: Changes) -> Keyring:
    return Keyring(pool, changes)


@pytest.fixture
async def projects(
    pool: Pool, changes: Changes, keyring: Keyring, schemas: FakeSchemas, removed: list[str]
) -> Projects:
    async def remove(project_id: str) -> None:
        removed.append(project_id)

    await changes.start()
    return Projects(pool, changes, schemas, [remove])


async def leftovers(pool: Pool) -> list[str]:
    async with transaction(pool) as conn:
        cursor = await conn.execute("SELECT project_id FROM project_leftovers")
        return [row[0] for row in await cursor.fetchall()]


async def test_create_get_and_its_schema(projects: Projects, schemas: FakeSchemas, pool: Pool) -> None:
    made = await projects.create("Shop", "pro")
    assert (made.name, made.tier, made.created_at) == ("Shop", "pro", made.updated_at)
    assert made.schema == f"proj_{made.id.replace('-', '')}"
    assert schemas.schemas == {made.id}
    assert await projects.get(made.id.upper()) == made
    assert (await projects.create("No tier", None)).tier is None
    assert await leftovers(pool) == []


@pytest.mark.parametrize(
    ("name", "tier", "field"), [("", None, "name"), ("a\nb", None, "name"), ("ok", "gold", "tier"), ("ok", "", "tier")]
)
async def test_bad_input_changes_nothing(
    projects: Projects, schemas: FakeSchemas, pool: Pool, name: str, tier: str | None, field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await projects.create(name, tier)
    assert caught.value.field == field
    assert (schemas.schemas, await leftovers(pool), (await projects.list()).items) == (set(), [], [])


async def test_ids_are_checked_everywhere(projects: Projects) -> None:
    calls: list[Any] = [
        lambda value: projects.get(value),
        lambda value: projects.update(value, name="x"),
        lambda value: projects.delete(value),
        lambda value: projects.create_key(value, "anon", ""),
        lambda value: projects.list_keys(value),
        lambda value: projects.revoke_key(value, UNKNOWN),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument, match=r'^project_id is "nope"; it must be a UUID'):
            await call("nope")
        with pytest.raises(NotFound) as caught:
            await call(UNKNOWN)
        assert UNKNOWN in caught.value.message


async def test_list_is_newest_first_and_stable_while_projects_are_made(projects: Projects) -> None:
    made = [(await projects.create(f"{number}", None)).id for number in range(5)]
    first = await projects.list(2)
    later = await projects.create("later", None)
    second = await projects.list(2, first.next_page_token)
    third = await projects.list(2, second.next_page_token)
    seen = [project.id for page in (first, second, third) for project in page.items]
    assert (seen, third.next_page_token) == (made[::-1], "")
    assert (await projects.list()).items[0] == later


async def test_equal_moments_do_not_lose_anyone(projects: Projects, pool: Pool) -> None:
    made = {(await projects.create(f"{number}", None)).id for number in range(4)}
    async with transaction(pool) as conn:
        await conn.execute("UPDATE projects SET created_at = '2026-01-01T00:00:00.000001Z'")
    seen, token = [], ""
    for _ in made:
        page = await projects.list(1, token)
        seen += [project.id for project in page.items]
        token = page.next_page_token
    assert (sorted(seen), token) == (sorted(made), "")


async def test_a_token_of_another_list_is_refused(projects: Projects) -> None:
    for _ in range(2):
        await projects.create("x", None)
    one, other = (await projects.list()).items
    for project in (one, other):
        for _ in range(2):
            await projects.create_key(project.id, "anon", "")
    token = (await projects.list_keys(one.id, 1)).next_page_token
    assert len((await projects.list_keys(one.id, 1, token)).items) == 1
    for call in (projects.list(1, token), projects.list_keys(other.id, 1, token)):
        with pytest.raises(InvalidArgument) as caught:
            await call
        assert caught.value.field == "page_token"


async def test_update_tells_absent_from_empty(projects: Projects) -> None:
    made = await projects.create("Shop", "free")
    assert (await projects.update(made.id, name="Store")).tier == "free"
    assert (await projects.update(made.id, tier="enterprise")).name == "Store"
    cleared = await projects.update(made.id, tier="")
    assert (cleared.name, cleared.tier) == ("Store", None)
    assert cleared.updated_at > made.updated_at
    with pytest.raises(InvalidArgument, match="name is missing"):
        await projects.update(made.id, name="")


async def test_delete_removes_all_of_it(
    projects: Projects, keyring: Keyring, schemas: FakeSchemas, removed: list[str], pool: Pool
) -> None:
    made, kept = await projects.create("gone", None), await projects.create("kept", None)
    _, secret = await projects.create_key(made.id, "service", "")
    assert await keyring.authenticate(secret)
    await projects.delete(made.id)
    assert await keyring.authenticate(secret) is None
    assert (schemas.schemas, removed, await leftovers(pool)) == ({kept.id}, [made.id], [])
    with pytest.raises(NotFound):
        await projects.delete(made.id)


async def test_a_failed_provisioning_shows_nothing_and_is_swept(
    projects: Projects, schemas: FakeSchemas, pool: Pool
) -> None:
    schemas.fail_provision = OSError("disk full")
    with pytest.raises(OSError, match="disk full"):
        await projects.create("half", None)
    assert (await projects.list()).items == []
    assert await projects.sweep() == [], "it is too young: its maker could still be at work"
    assert len(await projects.sweep(older_than_s=0)) == 1
    assert (schemas.schemas, await leftovers(pool)) == (set(), [])


async def test_a_failed_removal_still_deletes_and_is_swept(
    projects: Projects, schemas: FakeSchemas, removed: list[str], pool: Pool
) -> None:
    made = await projects.create("gone", None)
    schemas.fail_drop = OSError("tenants database away")
    await projects.delete(made.id)
    assert await leftovers(pool) == [made.id]
    schemas.fail_drop = None
    assert await projects.sweep(older_than_s=0) == [made.id]
    assert (schemas.schemas, removed, await leftovers(pool)) == (set(), [made.id], [])


async def test_whoever_provisions_longer_than_the_sweep_waits_is_told(projects: Projects, schemas: FakeSchemas) -> None:
    schemas.proceed.clear()
    creating = asyncio.create_task(projects.create("slow", None))
    await schemas.provisioning.wait()
    assert len(await projects.sweep(older_than_s=0)) == 1
    schemas.proceed.set()
    with pytest.raises(Unavailable):
        await creating
    assert (await projects.list()).items == []


async def test_two_sweeps_at_once_do_not_fight(projects: Projects, schemas: FakeSchemas, removed: list[str]) -> None:
    schemas.fail_provision = OSError()
    for _ in range(3):
        with pytest.raises(OSError):  # noqa: PT011 - any will do
            await projects.create("half", None)
    swept = await asyncio.gather(projects.sweep(older_than_s=0), projects.sweep(older_than_s=0))
    assert len(removed) == len(swept[0]) + len(swept[1]) == 3


async def test_a_key_is_shown_once_and_stored_as_a_hash(projects: Projects, pool: Pool) -> None:
    made = await projects.create("Shop", None)
    key, secret = await projects.create_key(made.id, "service", "CI")
    assert re.fullmatch(r"atlas_service_[0-9A-Za-z]{43}", secret)
    assert (key.role, key.name, key.revoked_at) == ("service", "CI", None)
    assert secret.startswith(key.prefix)
    assert len(key.prefix) == len("atlas_service_") + 6
    assert list((await projects.list_keys(made.id)).items) == [key]
    async with transaction(pool) as conn:
        cursor = await conn.execute("SELECT k::text, sha256 FROM api_keys k")
        ((text, stored),) = await cursor.fetchall()
    assert (secret not in text, stored) == (True, digest(secret))


@pytest.mark.parametrize(("role", "name", "field"), [("admin", "", "role"), ("", "", "role"), ("anon", "\0", "name")])
async def test_bad_key_fields(projects: Projects, role: str, name: str, field: str) -> None:
    made = await projects.create("Shop", None)
    with pytest.raises(InvalidArgument) as caught:
        await projects.create_key(made.id, role, name)
    assert caught.value.field == field
    assert (await projects.list_keys(made.id)).items == []


async def test_revoking_is_for_good_and_idempotent(projects: Projects) -> None:
    made, other = await projects.create("Shop", None), await projects.create("Other", None)
    key, _ = await projects.create_key(made.id, "anon", "")
    with pytest.raises(NotFound, match="no API key"):
        await projects.revoke_key(other.id, key.id)
    with pytest.raises(InvalidArgument, match="key_id"):
        await projects.revoke_key(made.id, "x")
    revoked = await projects.revoke_key(made.id, key.id)
    assert revoked == dataclasses.replace(key, revoked_at=revoked.revoked_at)
    assert revoked.revoked_at is not None
    assert await projects.revoke_key(made.id, key.id) == revoked


async def test_revoking_and_new_tiers_hold_on_every_process_at_once(
    projects: Projects, pool: Pool, control_url: str
) -> None:
    elsewhere = Changes(control_url)
    keyring = Keyring(pool, elsewhere)
    await elsewhere.start()
    try:
        made = await projects.create("Shop", "free")
        key, secret = await projects.create_key(made.id, "anon", "")
        principal = await keyring.authenticate(secret)
        assert principal is not None
        assert (principal.project_id, principal.role, principal.tier, principal.key_id) == (
            made.id,
            "anon",
            "free",
            key.id,
        )
        await projects.update(made.id, tier="pro")
        assert await keyring.authenticate(secret) == dataclasses.replace(principal, tier="pro")
        await projects.revoke_key(made.id, key.id)
        assert await keyring.authenticate(secret) is None
    finally:
        await elsewhere.close()


async def test_every_change_that_takes_rights_away_is_fenced(
    projects: Projects, changes: Changes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fenced: list[None] = []

    async def fence() -> None:
        fenced.append(None)

    monkeypatch.setattr(changes, "fence", fence)
    made = await projects.create("Shop", "pro")
    key, _ = await projects.create_key(made.id, "anon", "")
    assert fenced == []
    await projects.update(made.id, tier="free")
    await projects.revoke_key(made.id, key.id)
    await projects.delete(made.id)
    assert len(fenced) == 3


async def test_what_is_no_key_asks_no_database(keyring: Keyring, pool: Pool) -> None:
    await pool.close()
    for secret in ("", "x", "atlas_admin_" + "a" * 43, "atlas_anon_" + "a" * 42, "\ud800" * 50, "a" * 10_000):
        assert await keyring.authenticate(secret) is None


async def test_a_crowd_of_unknown_keys_costs_few_queries(projects: Projects, keyring: Keyring, pool: Pool) -> None:
    made = await projects.create("Shop", None)
    _, secret = await projects.create_key(made.id, "service", "")
    before = pool.get_stats()["requests_num"]
    crowd = [keyring.authenticate(f"atlas_anon_{uuid4().hex:a<43}") for _ in range(400)]
    *unknown, known = await asyncio.gather(*crowd, keyring.authenticate(secret))
    assert set(unknown) == {None}
    assert known is not None
    assert pool.get_stats()["requests_num"] - before <= 20  # three, and some when a busy machine makes memory doubtful


async def test_a_lost_database_is_unavailable_and_not_unknown(projects: Projects, keyring: Keyring, pool: Pool) -> None:
    made = await projects.create("Shop", None)
    _, secret = await projects.create_key(made.id, "service", "")
    await pool.close()
    with pytest.raises(Unavailable) as caught:
        await keyring.authenticate(secret)
    assert caught.value.retry_after_ms


async def test_with_real_schemas_a_project_comes_and_goes(
    pool: Pool, changes: Changes, tenants: Tenants, postgres_url: str
) -> None:
    projects = Projects(pool, changes, tenants)
    await changes.start()
    made = await projects.create("Shop", None)
    assert await roles(postgres_url, made.schema) == 1
    await projects.delete(made.id)
    assert (await roles(postgres_url, made.schema), await leftovers(pool)) == (0, [])


async def roles(url: str, name: str) -> int:
    async with await psycopg.AsyncConnection.connect(url) as conn:
        cursor = await conn.execute("SELECT FROM pg_roles WHERE rolname = %s", [name])
        return cursor.rowcount
