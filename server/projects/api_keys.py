"""API keys: 256 random bits behind a readable prefix, stored as a hash and shown once."""

import hashlib
import re
import secrets
import string
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, cast, get_args

from psycopg.rows import class_row

from server.errors import NotFound
from server.fields import parse_choice, parse_id, parse_name
from server.paging import Page, at, request
from server.postgres.control import Connection
from server.tiers import Tier

Role = Literal["service", "anon"]

_ALPHABET: Final = string.digits + string.ascii_letters
_RANDOM_CHARS: Final = 43  # of base 62: 256 bits
_PREFIX_CHARS: Final = 6  # of those, shown in lists
_SECRET: Final = re.compile(r"atlas_(?:service|anon)_[0-9A-Za-z]{43}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    id: str
    project_id: str
    role: Role
    name: str
    prefix: str
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who calls: what an API key stands for."""

    project_id: str
    role: Role
    tier: Tier | None
    key_id: str


def parse_role(value: str) -> Role:
    return cast(Role, parse_choice("role", value, get_args(Role)))


def new_secret(role: Role) -> str:
    return f"atlas_{role}_" + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_CHARS))


def digest(secret: str) -> bytes | None:
    """What is stored of a secret, or None for text that can be none.

    A plain hash is enough and costs nothing: the secret has 256 random bits, which nobody guesses.
    """
    return hashlib.sha256(secret.encode()).digest() if _SECRET.fullmatch(secret) else None


_COLUMNS: Final = "id, project_id, role, name, prefix, created_at, revoked_at"


async def insert(conn: Connection, project_id: str, role: str, name: str) -> tuple[ApiKey, str]:
    """A new key and its secret. psycopg.errors.ForeignKeyViolation for an unknown project."""
    parsed_role, parsed_name = parse_role(role), parse_name("name", name, required=False)
    secret = new_secret(parsed_role)
    prefix = secret[: len(f"atlas_{parsed_role}_") + _PREFIX_CHARS]
    cursor = await conn.cursor(row_factory=class_row(ApiKey)).execute(
        "INSERT INTO api_keys (project_id, role, name, prefix, sha256) VALUES (%s, %s, %s, %s, %s)"
        f" RETURNING {_COLUMNS}",
        [project_id, parsed_role, parsed_name, prefix, digest(secret)],
    )
    key = await cursor.fetchone()
    assert key is not None
    return key, secret


async def newest(conn: Connection, project_id: str, page_size: int, page_token: str) -> Page[ApiKey]:
    """The project's keys, revoked ones included."""
    asked = request(f"keys of {project_id}", page_size, page_token)
    cursor = await conn.cursor(row_factory=class_row(ApiKey)).execute(
        f"SELECT {_COLUMNS} FROM api_keys WHERE project_id = %s AND (created_at, id) < (%s, %s)"
        " ORDER BY created_at DESC, id DESC LIMIT %s",
        [project_id, asked.after.moment, asked.after.id, asked.size + 1],
    )
    return asked.page(await cursor.fetchall(), lambda key: at(key.created_at, key.id))


async def revoke(conn: Connection, project_id: str, key_id: str) -> ApiKey:
    """The key, revoked now or before. NotFound when the project has no such key."""
    cursor = await conn.cursor(row_factory=class_row(ApiKey)).execute(
        "UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE id = %s AND project_id = %s"
        f" RETURNING {_COLUMNS}",
        [parse_id("key_id", key_id), project_id],
    )
    if (key := await cursor.fetchone()) is None:
        raise NotFound(
            f"The project has no API key {key_id}",
            reason="KEY_NOT_FOUND",
            metadata={"key_id": key_id, "project_id": project_id},
        )
    return key


async def principals(conn: Connection, digests: Collection[bytes]) -> dict[bytes, Principal]:
    """Who the valid keys among these digests stand for."""
    cursor = await conn.execute(
        "SELECT k.sha256, k.project_id, k.role, p.tier, k.id FROM api_keys k JOIN projects p ON p.id = k.project_id"
        " WHERE k.sha256 = ANY(%s) AND k.revoked_at IS NULL",
        [list(digests)],
    )
    return {
        sha256: Principal(project_id=project_id, role=role, tier=tier, key_id=key_id)
        for sha256, project_id, role, tier, key_id in await cursor.fetchall()
    }
