"""What a version runs with beside its code, and how the next version's comes from the active one's.

    active Configuration + Reconfiguration ── reconfigured ──▶ next Configuration

A name is a plain variable or a secret, never both. Values of secrets are in no message and in no repr.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from server.errors import InvalidArgument
from server.fields import shown
from server.functions.records import RuntimeName
from server.functions.secrets import OVERHEAD_BYTES
from server.functions.settings import NONE, FunctionSettings

MAX_VARIABLES: Final = 128
"""Plain variables and secrets together."""

MAX_NAME_CHARS: Final = 128
MAX_BYTES: Final = 64 * 1024
"""UTF-8 of all names and values together."""

Seal = Callable[[str, str], bytes]
"""Seals the value of the secret of that name."""

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """Of one version."""

    settings: FunctionSettings = NONE
    exactly_once: bool = False  # a run is one transaction, and done once for all attempts at it
    env: Mapping[str, str] = field(default_factory=dict)  # plain variables
    secrets: Mapping[str, bytes] = field(default_factory=dict)  # sealed


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconfiguration:
    """What changes from one version to the next. None leaves what there is."""

    settings: FunctionSettings | None = None
    exactly_once: bool | None = None
    env: Mapping[str, str] | None = None  # all plain variables from now on
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)  # to add or replace
    remove_secrets: Collection[str] = ()

    def check(self) -> None:
        """InvalidArgument unless every name and value is allowed on its own."""
        for where, variables in (("env", self.env or {}), ("secrets", self.secrets)):
            _require_few(where, len(variables))
            for name, value in variables.items():
                _check_name(where, name)
                _check_value(where, name, value)
        if both := sorted({*self.secrets} & {*self.remove_secrets}):
            raise InvalidArgument("remove_secrets", f"The secret {both[0]} is to be set and to be removed; choose one")


UNCHANGED: Final = Reconfiguration()


def reconfigured(active: Configuration, change: Reconfiguration, runtime: RuntimeName, seal: Seal) -> Configuration:
    """The next version's configuration. InvalidArgument for what does not fit to the active one's or to the runtime, or
    is too much."""
    if unknown := sorted({*change.remove_secrets} - {*active.secrets}):
        raise InvalidArgument(
            "remove_secrets",
            f"The function has no secret {shown(unknown[0])}, so it cannot be removed",
            name=unknown[0][:MAX_NAME_CHARS],
        )
    env = active.env if change.env is None else change.env
    kept = {name: sealed for name, sealed in active.secrets.items() if name not in change.remove_secrets}
    _require_apart(env, kept, change)
    secrets = kept | {name: seal(name, value) for name, value in change.secrets.items()}
    _require_moderate("secrets" if change.secrets else "env", env, secrets)
    exactly_once = active.exactly_once if change.exactly_once is None else change.exactly_once
    if exactly_once and runtime == "wasm":
        whose = "" if change.exactly_once else " of the active version"
        raise InvalidArgument(
            "exactly_once",
            f'exactly_once{whose} is true; it must be false with the runtime "wasm", whose functions have no database',
            runtime=runtime,
        )
    return Configuration(
        settings=active.settings if change.settings is None else change.settings,
        exactly_once=exactly_once,
        env=env,
        secrets=secrets,
    )


def _require_apart(env: Mapping[str, str], kept: Mapping[str, bytes], change: Reconfiguration) -> None:
    if both := sorted({*env} & {*change.secrets}):
        raise InvalidArgument(
            "secrets",
            f"{both[0]} is a plain variable of the function; take it out of env to make it a secret",
            name=both[0],
        )
    if both := sorted({*env} & {*kept}):
        raise InvalidArgument(
            "env", f"{both[0]} is a secret of the function; remove the secret to make it a plain variable", name=both[0]
        )


def _require_moderate(where: str, env: Mapping[str, str], secrets: Mapping[str, bytes]) -> None:
    _require_few(where, len(env) + len(secrets))
    size = sum(len(name) + len(value.encode()) for name, value in env.items())
    size += sum(len(name) + len(sealed) - OVERHEAD_BYTES for name, sealed in secrets.items())
    if size > MAX_BYTES:
        raise InvalidArgument(
            where,
            f"Variables and secrets have {size} bytes together; at most {MAX_BYTES} (64 KiB) are allowed",
            used=str(size),
            allowed=str(MAX_BYTES),
        )


def _require_few(where: str, count: int) -> None:
    if count > MAX_VARIABLES:
        raise InvalidArgument(
            where,
            f"There are {count} variables and secrets; at most {MAX_VARIABLES} are allowed together",
            used=str(count),
            allowed=str(MAX_VARIABLES),
        )


def _check_name(where: str, name: str) -> None:
    if len(name) > MAX_NAME_CHARS or not _NAME.fullmatch(name):
        raise InvalidArgument(
            where,
            f"{where} has the name {shown(name)}; names are letters, digits and underscores, do not begin with a digit"
            f" and have 1 to {MAX_NAME_CHARS} characters",
            name=name[:MAX_NAME_CHARS],
        )


def _check_value(where: str, name: str, value: str) -> None:
    if len(value) > MAX_BYTES:
        why = f"has {len(value)} characters; at most {MAX_BYTES} bytes are allowed for all together"
    elif "\0" in value:
        why = f"has the character U+0000 at position {value.index(chr(0))}, which no variable may have"
    elif (place := _half_a_pair(value)) is not None:
        why = f"has half of a surrogate pair at position {place}"
    else:
        return
    raise InvalidArgument(where, f"The value of {name} in {where} {why}", name=name)


def _half_a_pair(value: str) -> int | None:
    try:
        value.encode()
    except UnicodeEncodeError as why:
        return why.start
    return None
