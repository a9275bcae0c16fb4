"""The parts' log files: kept small, and their warnings shown on the terminal."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 32 * 1024 * 1024


def rotate(logs: Path, max_bytes: int = MAX_BYTES) -> None:
    """Move what is in a full log to `<name>.log.1`. Its writers append, so they go on at the new beginning."""
    for log in logs.glob("*.log"):
        if log.stat().st_size > max_bytes:
            with log.open("r+b") as file:
                log.with_name(log.name + ".1").write_bytes(file.read())
                file.truncate(0)


class Warnings:
    """Follows JSON logs; `read` says each warning and error that was written since the last call."""

    def __init__(self, logs: Iterable[Path], say: Callable[[str], None]) -> None:
        self._offsets = {log: log.stat().st_size if log.exists() else 0 for log in logs}
        self._say = say

    def read(self) -> None:
        for log, offset in self._offsets.items():
            if not log.exists():
                continue
            size = log.stat().st_size
            if size < offset:  # rotated
                offset = 0
            with log.open("rb") as file:
                file.seek(offset)
                data = file.read(1 << 20)
            whole = data.rfind(b"\n") + 1
            if not whole and len(data) == 1 << 20:
                whole = len(data)
            self._offsets[log] = offset + whole
            for line in data[:whole].splitlines():
                if text := warning_of(line):
                    self._say(f"! {log.stem}: {text}")


def warning_of(line: bytes) -> str | None:
    """The sentence of a JSON log line of level warning or error."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or entry.get("level") not in ("warning", "error"):
        return None
    return f"{entry['level']}: {entry.get('message')}" + (f" [{entry['action']}]" if entry.get("action") else "")
