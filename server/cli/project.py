"""What is deployed: a folder with `atlas.json`, or one file with the same told by its name."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from server.cli.problems import USAGE, Problem

CONFIG: Final = "atlas.json"
RUNTIMES: Final = ("quickjs", "wasm", "node", "deno")
SETTINGS: Final = ("timeout_ms", "memory_mb", "concurrency")

_TEXTS: Final = ("slug", "name", "runtime", "entry", "isolation")
_FIELDS: Final = (*_TEXTS, "settings", "exactly_once", "env")


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """`entry` is a file; empty texts are left to the server. None is what the file does not say."""

    entry: Path
    slug: str
    name: str = ""
    runtime: str = "quickjs"
    isolation: str = ""
    settings: Mapping[str, int] | None = None
    exactly_once: bool | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    config: Path | None = None


def load(path: Path) -> Project:
    """The project of a folder or of a single file. Raises Problem that names file and field."""
    if path.is_dir():
        return _of_folder(path)
    if not path.exists():
        raise Problem(f"There is no {path}", USAGE)
    stem = path.resolve().parent.name if path.stem == "index" else path.stem
    runtime = "wasm" if path.suffix == ".wasm" else "quickjs"
    return Project(entry=path, slug=slug_of(stem), runtime=runtime)


def slug_of(text: str) -> str:
    """The nearest valid slug."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")[:63] or "function"


def _of_folder(folder: Path) -> Project:
    config = folder / CONFIG
    if not config.exists():
        raise Problem(f"There is no {config}", USAGE, hint="make a function with `atlas init`, or name a source file")
    data = _read(config)
    if unknown := [name for name in data if name not in _FIELDS]:
        raise _wrong(config, unknown[0], f"is not known; there are {', '.join(_FIELDS)}")
    for name in _TEXTS:
        if not isinstance(data.get(name, ""), str):
            raise _wrong(config, name, "must be a string")
    settings = _mapping(config, data, "settings", int)
    if settings and (unknown := [name for name in settings if name not in SETTINGS]):
        raise _wrong(config, f"settings.{unknown[0]}", f"is not known; there are {', '.join(SETTINGS)}")
    if settings and (large := [name for name, value in settings.items() if not 0 <= value < 2**31]):
        raise _wrong(config, f"settings.{large[0]}", f"is {settings[large[0]]}, which no limit can be")
    exactly_once = data.get("exactly_once")
    if not isinstance(exactly_once, bool | None):
        raise _wrong(config, "exactly_once", "must be true or false")
    env = _mapping(config, data, "env", str)
    entry = folder / (data.get("entry") or "index.ts")
    if not entry.is_file():
        raise _wrong(config, "entry", f"is {json.dumps(str(data.get('entry', 'index.ts')))}, and there is no such file")
    return Project(
        entry=entry,
        slug=data.get("slug") or slug_of(folder.resolve().name),
        name=data.get("name", ""),
        runtime=data.get("runtime") or "quickjs",
        isolation=data.get("isolation", ""),
        settings=settings,
        exactly_once=exactly_once,
        env=env or {},
        config=config,
    )


def _read(config: Path) -> dict[str, Any]:
    try:
        data = json.loads(config.read_text())
    except json.JSONDecodeError as why:
        raise Problem(f"{config}:{why.lineno}:{why.colno}: {why.msg}", USAGE) from why
    except (OSError, UnicodeDecodeError) as why:
        raise Problem(f"{config} cannot be read: {why}", USAGE) from why
    if not isinstance(data, dict):
        raise Problem(f"{config} must hold one JSON object", USAGE)
    return data


def _mapping(config: Path, data: Mapping[str, Any], name: str, kind: type) -> dict[str, Any] | None:
    """An object of values of one type, or None."""
    if (value := data.get(name)) is None:
        return None
    if not isinstance(value, dict):
        raise _wrong(config, name, "must be an object")
    for key, item in value.items():
        if type(item) is not kind:
            raise _wrong(config, f"{name}.{key}", f"must be {'a whole number' if kind is int else 'a string'}")
    return value


def _wrong(config: Path, name: str, text: str) -> Problem:
    return Problem(f"{config}: {name} {text}", USAGE)
