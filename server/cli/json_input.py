"""JSON on the command line: as it is written there, `@FILE`, or `-` for stdin."""

import json
import sys
from pathlib import Path
from typing import Any

from server.cli.problems import USAGE, Problem


def json_text(given: str, option: str) -> str:
    """The text, exactly as it was written. Raises Problem for what is not JSON; `option` is where it stood."""
    return _read(given, option)[0]


def object_text(given: str, option: str) -> str:
    """The same of a JSON object alone."""
    text, value, where = _read(given, option)
    _require_object(value, where)
    return text


def json_object(given: str, option: str) -> dict[str, Any]:
    """The value of a JSON object. Raises Problem likewise."""
    _, value, where = _read(given, option)
    return _require_object(value, where)


def _require_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Problem(f"{where} is not a JSON object", USAGE)
    return value


def _read(given: str, option: str) -> tuple[str, Any, str]:
    """The text, its value, and what to call it in a message."""
    if given == "-":
        text, where = sys.stdin.read(), "stdin"
    elif given.startswith("@"):
        text, where = _file(Path(given[1:])), given[1:]
    else:
        text, where = given, option
    try:
        return text, json.loads(text, parse_constant=_refuse), where
    except json.JSONDecodeError as why:
        raise Problem(f"{where} is not JSON: {why.msg} at {why.lineno}:{why.colno}", USAGE) from why
    except (ValueError, RecursionError) as why:
        raise Problem(f"{where} is not an input: {why}", USAGE) from why


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as why:
        raise Problem(f"{path} cannot be read: {why}", USAGE) from why
