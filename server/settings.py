"""The environment, read once and checked whole. Nothing else in the server looks at `os.environ`.

Every variable is a field here: its name is `ATLAS_` and the field's in upper case, its type says how it is read, its
default is used when the variable is unset or empty. `load` reports every bad variable at once.
"""

import dataclasses
import ipaddress
import os
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class SettingsError(Exception):
    """One line per bad variable, each naming variable, value and rule."""


def _doc(text: str, *, low: int | None = None, high: int | None = None) -> dict[str, object]:
    return {"doc": text, "low": low, "high": high}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    # The specification's variables
    functions_dir: Path = field(default=Path("./functions-data"), metadata=_doc("Artifact storage path on disk"))
    functions_max_execution_ms: int = field(
        default=10_000,
        metadata=_doc("Wall clock limit of a project without a tier, milliseconds", low=10, high=600_000),
    )
    functions_max_memory_mb: int = field(
        default=128,
        metadata=_doc("Memory limit of a project without a tier, MiB", low=8, high=4096),
    )
    nats_url: str = field(
        default="",
        metadata=_doc(
            "NATS server URL (for trigger dispatch), e.g. `nats://localhost:4222`; unset: the embedded server"
        ),
    )

    # Where the other servers are; each unset one is started by `up`
    database_url: str = field(default="", metadata=_doc("Control plane Postgres URL"))
    tenant_database_url: str = field(
        default="",
        metadata=_doc(
            "Tenants Postgres URL, a superuser's of a server with wal_level=logical; the owner's (with CREATEROLE) "
            "works, without events of tables"
        ),
    )
    redis_url: str = field(default="", metadata=_doc("Valkey or Redis URL, for atlas.kv"))

    # The service
    port: int = field(default=3000, metadata=_doc("Port of Envoy: REST, gRPC and gRPC-web", low=1, high=65535))
    host: str = field(default="127.0.0.1", metadata=_doc("Address Envoy listens on; 0.0.0.0 to serve other machines"))
    api_processes: int = field(default=0, metadata=_doc("API processes; 0 is one per core, at most 4", low=0, high=64))
    admin_key: str = field(default="", metadata=_doc("Admin key, at least 32 characters; `up` makes one when unset"))
    master_key: str = field(
        default="",
        metadata=_doc(
            "Master key, 64 hex digits: tenants' database passwords derive from it; `up` makes one when unset"
        ),
    )
    state_dir: Path = field(
        default=Path(".atlas"),
        metadata=_doc("State of the embedded stack and the file `env`"),
    )
    run_dir: Path | None = field(
        default=None,
        metadata=_doc("Sockets and server data; a short path. Default: derived from user and checkout"),
    )
    api_socket: Path | None = field(default=None, metadata=_doc("Unix socket an `api` process serves on (set by `up`)"))
    worker_socket: Path | None = field(
        default=None, metadata=_doc("Unix socket by which a `worker` process tells that it works (set by `up`)")
    )
    log_level: str = field(default="info", metadata=_doc("debug, info, warning or error"))

    worker_processes: int = field(
        default=1, metadata=_doc("Worker processes: asynchronous runs, run records", low=1, high=64)
    )

    events_keep_hours: int = field(
        default=72, metadata=_doc("How long events are kept, run or not, hours", low=1, high=8760)
    )
    events_keep_mb: int = field(
        default=1024,
        metadata=_doc(
            "How much of them is kept, MiB; when it is full of events not yet run, publishing is refused",
            low=16,
            high=1_000_000,
        ),
    )
    dead_letters_keep_days: int = field(
        default=30,
        metadata=_doc("How long dead letters are kept, days, and at least as long as events", low=1, high=3650),
    )

    max_event_depth: int = field(
        default=8,
        metadata=_doc("How many runs one event may lead to, each by an event of the one before", low=1, high=100),
    )

    # Stored objects
    storage_backend: str = field(
        default="disk",
        metadata=_doc(
            "Where contents of stored objects are: `disk`, or `jetstream` when machines share no file system"
        ),
    )
    storage_dir: Path = field(
        default=Path("./storage-data"), metadata=_doc("Contents of stored objects on disk, shared by all processes")
    )
    storage_quota_mb: int = field(
        default=1024, metadata=_doc("What the objects of one project may hold, MiB", low=1, high=1_000_000)
    )

    # What operators see
    runs_keep_hours: int = field(
        default=72, metadata=_doc("How long records of runs, and workflow runs, are kept, hours", low=1, high=8760)
    )
    runs_keep_mb: int = field(
        default=256,
        metadata=_doc("How much of each is kept of one project, MiB; the oldest go", low=1, high=1_000_000),
    )
    metrics_dir: Path | None = field(
        default=None,
        metadata=_doc("Where the processes of a machine count, for one scrape address (set by `up`)"),
    )
    otlp_endpoint: str = field(
        default="",
        metadata=_doc("OTLP over HTTP: where spans go, e.g. `http://localhost:4318`; unset: nowhere"),
    )

    # Functions
    engine_cache_dir: Path = field(
        default=Path("build/engines"),
        metadata=_doc("The built Wasm engine and compiled modules: native code, only ours to write"),
    )
    javy: str = field(
        default="",
        metadata=_doc(
            "Path of a `javy` binary that compiles for runtime `wasm` instead of our own compiler; unset: PATH"
        ),
    )
    functions_max_cpu_ms: int = field(
        default=0,
        metadata=_doc(
            "CPU limit of every invocation, milliseconds; 0 is as much as the wall clock", low=0, high=600_000
        ),
    )
    functions_max_fetch_calls: int = field(
        default=25,
        metadata=_doc("Fetch calls of a project without a tier", low=0, high=10_000),
    )
    functions_max_fuel: int = field(
        default=1_000_000_000,
        metadata=_doc("Wasm fuel of a project without a tier", low=1),
    )
    functions_queue_ms: int = field(
        default=5_000,
        metadata=_doc("How long an invocation may wait for a free sandbox, milliseconds", low=0, high=60_000),
    )
    sandbox_max_children: int = field(
        default=128,
        metadata=_doc("Sandbox processes of one API process, spares included", low=1, high=4096),
    )
    sandbox_max_children_per_project: int = field(
        default=32,
        metadata=_doc("Sandbox processes of one project in one API process", low=1, high=4096),
    )
    sandbox_spares: int = field(
        default=0,
        metadata=_doc("Blank sandboxes an API process keeps ready; 0 is cores + 2", low=0, high=64),
    )
    fetch_allow_cidrs: tuple[Network, ...] = field(
        default=(),
        metadata=_doc("Private address ranges atlas.fetch may reach, comma-separated CIDRs; metadata ranges never"),
    )
    unsafe_sandbox: bool = field(
        default=False,
        metadata=_doc("Serve although the sandbox self-test failed. For development on odd kernels only"),
    )


def variable(name: str) -> str:
    """The environment variable of a field."""
    return f"ATLAS_{name.upper()}"


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from the environment, or SettingsError naming every variable that is wrong."""
    source = os.environ if environ is None else environ
    hints = typing.get_type_hints(Settings)
    values: dict[str, object] = {}
    problems: list[str] = []
    for item in dataclasses.fields(Settings):
        raw = source.get(variable(item.name), "").strip()
        if not raw:
            continue
        try:
            values[item.name] = _parse(raw, hints[item.name], item.metadata.get("low"), item.metadata.get("high"))
        except ValueError as why:
            problems.append(f"{variable(item.name)}={raw!r}: {why}")
    if values.get("log_level", "info") not in ("debug", "info", "warning", "error"):
        problems.append(f"ATLAS_LOG_LEVEL={values['log_level']!r}: must be debug, info, warning or error")
    if values.get("storage_backend", "disk") not in ("disk", "jetstream"):
        problems.append(f"ATLAS_STORAGE_BACKEND={values['storage_backend']!r}: must be disk or jetstream")
    if "admin_key" in values and len(str(values["admin_key"])) < 32:
        problems.append("ATLAS_ADMIN_KEY: must have at least 32 characters (the value is not shown)")
    if "master_key" in values and not re.fullmatch(r"[0-9a-fA-F]{64}", str(values["master_key"])):
        problems.append("ATLAS_MASTER_KEY: must be 64 hexadecimal digits (the value is not shown)")
    if problems:
        raise SettingsError("\n".join(problems))
    return Settings(**values)  # type: ignore[arg-type]


def _parse(raw: str, hint: object, low: int | None, high: int | None) -> object:
    if isinstance(hint, types.UnionType):
        hint = next(arm for arm in typing.get_args(hint) if arm is not type(None))
    if hint is bool:
        if raw.lower() not in ("0", "1", "true", "false"):
            raise ValueError("must be 1 or 0")
        return raw.lower() in ("1", "true")
    if hint is int:
        try:
            number = int(raw)
        except ValueError:
            raise ValueError("must be a whole number") from None
        if (low is not None and number < low) or (high is not None and number > high):
            raise ValueError(f"must be between {low} and {high}" if high is not None else f"must be at least {low}")
        return number
    if hint == tuple[Network, ...]:
        return tuple(ipaddress.ip_network(item.strip()) for item in raw.split(","))
    return Path(raw) if hint is Path else raw
