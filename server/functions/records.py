"""Functions and versions as values, and the columns of the control database they are made of."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

from engines.contract import Isolation
from server.functions.settings import FunctionSettings

RuntimeName = Literal["quickjs", "wasm", "node", "deno"]
Language = Literal["javascript", "typescript", "wasm"]
"""Of what was deployed; `wasm` is a module."""

Row = dict[str, Any]

KEPT_DAYS: Final = 30
"""How long a deleted function can be restored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A slug of a project and its active version."""

    id: str
    project_id: str
    name: str
    slug: str
    runtime: RuntimeName
    entrypoint: str
    language: Language
    version: int
    isolation: Isolation
    settings: FunctionSettings
    exactly_once: bool
    env: Mapping[str, str]  # plain variables
    secret_names: Sequence[str]
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    function_id: str
    version: int
    runtime: RuntimeName
    language: Language
    entrypoint: str
    isolation: Isolation
    sha256: str  # of the code
    source_bytes: int
    note: str
    settings: FunctionSettings
    exactly_once: bool
    env: Mapping[str, str]  # plain variables
    secret_names: Sequence[str]
    active: bool
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Hashes:
    """SHA-256 of the bytes of a version."""

    code: str
    map: str | None
    script: str | None  # of Wasm: the text the module was made of
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Active:
    """A function with what it runs."""

    function: Function
    hashes: Hashes
    secrets: Mapping[str, bytes] = field(repr=False)  # sealed


_CONFIGURATION: Final = (
    "v.timeout_ms, v.memory_mb, v.concurrency, v.exactly_once, v.env,"
    " ARRAY(SELECT name FROM jsonb_object_keys(v.secrets) AS name ORDER BY name) AS secret_names"
)
FUNCTION: Final = (
    "f.id, f.project_id, f.name, f.slug, v.runtime, v.entrypoint, v.language, v.version, v.isolation,"
    f" {_CONFIGURATION}, f.created_at, f.updated_at, f.deleted_at"
)
VERSION: Final = (
    "v.function_id, v.version, v.runtime, v.language, v.entrypoint, v.isolation, v.sha256, v.source_bytes, v.note,"
    f" {_CONFIGURATION}, v.version = f.active_version AS active, v.created_at"
)
HASHES: Final = "v.sha256 AS code, v.map_sha256 AS map, v.script_sha256 AS script, v.source_sha256 AS source"

WITH_ACTIVE: Final = "functions f JOIN function_versions v ON v.function_id = f.id AND v.version = f.active_version"
WITH_VERSIONS: Final = "functions f JOIN function_versions v ON v.function_id = f.id"

KEPT: Final = f"(f.deleted_at IS NULL OR f.deleted_at > now() - interval '{KEPT_DAYS} days')"
"""There, or deleted so lately that it can be restored."""


def function_of(row: Row) -> Function:
    """From the columns FUNCTION."""
    return Function(settings=settings_of(row), **row)


def version_of(row: Row) -> Version:
    """From the columns VERSION."""
    return Version(settings=settings_of(row), **row)


def active_of(row: Row) -> Active:
    """From the columns FUNCTION, HASHES and `secrets`."""
    hashes, secrets = hashes_of(row), row.pop("secrets")
    return Active(function=function_of(row), hashes=hashes, secrets=sealed_of(secrets))


def settings_of(row: Row) -> FunctionSettings:
    """Taken out of the row."""
    return FunctionSettings(
        timeout_ms=row.pop("timeout_ms"), memory_mb=row.pop("memory_mb"), concurrency=row.pop("concurrency")
    )


def hashes_of(row: Row) -> Hashes:
    """Taken out of the row."""
    return Hashes(code=row.pop("code"), map=row.pop("map"), script=row.pop("script"), source=row.pop("source"))


def sealed_of(column: Mapping[str, str]) -> dict[str, bytes]:
    return {name: base64.b64decode(sealed) for name, sealed in column.items()}


def sealed_column(secrets: Mapping[str, bytes]) -> dict[str, str]:
    return {name: base64.b64encode(sealed).decode() for name, sealed in secrets.items()}
