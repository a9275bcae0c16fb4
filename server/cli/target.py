"""Where the API is and who asks: from flags, variables, and the file `.atlas/env` that a running stack has written."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from server.cli.problems import USAGE, Problem

DEFAULT_URL: Final = "http://localhost:3000"
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`address` is host:port; `project_id` and `key` may be empty."""

    url: str
    address: str
    tls: bool
    local: bool
    project_id: str
    key: str


def resolve(url: str | None, project_id: str | None, key: str | None, *, start: Path, admin: bool = False) -> Target:
    """The target of a command; what is not given comes from the nearest file at or above `start`.

    The file's project and key go to the file's own URL only, its admin key only with what is for operators. Raises
    Problem for a URL that is none.
    """
    path = find_env(start)
    kept = read_env(path) if path else {}
    chosen = (url or kept.get("ATLAS_URL") or DEFAULT_URL).rstrip("/")
    if chosen != kept.get("ATLAS_URL", "").rstrip("/"):
        kept = {}
    parts, port = _parsed(chosen)
    host = parts.hostname or ""
    return Target(
        url=chosen,
        address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        tls=parts.scheme == "https",
        local=host in ("localhost", "127.0.0.1", "::1"),
        project_id=project_id or kept.get("PROJECT_ID", ""),
        key=key or (kept.get("ADMIN_KEY", "") if admin else kept.get("SERVICE_KEY") or kept.get("ANON_KEY", "")),
    )


def find_env(start: Path) -> Path | None:
    """The nearest `.atlas/env` at or above `start` that is the user's own or root's: it says where sources are sent."""
    for folder in (start, *start.parents):
        path = folder / ".atlas" / "env"
        try:
            if path.is_file() and path.stat().st_uid in (os.geteuid(), 0):
                return path
        except PermissionError:
            continue
    return None


def read_env(path: Path) -> Mapping[str, str]:
    """The variables of a file of `export NAME=VALUE` lines. Raises Problem when it cannot be read."""
    try:
        words = [word for line in path.read_text().splitlines() for word in shlex.split(line, comments=True)]
    except (OSError, ValueError) as why:
        raise Problem(f"{path} cannot be read: {why}", USAGE, hint="give --url, --project and --key instead") from why
    return {name: value for name, sign, value in (word.partition("=") for word in words) if sign}


def _parsed(url: str) -> tuple[SplitResult, int]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as why:
        raise _bad(url) from why
    if parts.scheme not in _PORTS or not parts.hostname or parts.path or parts.query or parts.username:
        raise _bad(url)
    return parts, port or _PORTS[parts.scheme]


def _bad(url: str) -> Problem:
    return Problem(
        f'The URL of the API is "{url}"', USAGE, hint="it must be like http://localhost:3000 or https://HOST"
    )
