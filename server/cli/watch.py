"""Changes of files, by looking at them again and again: no daemon, no limits, the same on every file system."""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

LOOK_S: Final = 0.3

Stamps = dict[Path, tuple[int, int] | None]


def watched(files: Iterable[Path]) -> set[Path]:
    """The files and the folders they are in, where a missing import may appear; libraries are taken for constant."""
    return {path for file in files if "node_modules" not in file.parts for path in (file, file.parent)}


def stamps(paths: Iterable[Path]) -> Stamps:
    """Time and size of each; None for what is not there."""
    return {path: _stamp(path) for path in paths}


def changes(files: Callable[[], Iterable[Path]], pause: Callable[[float], object] = time.sleep) -> Iterator[None]:
    """Yields at once, and again after every burst of changes of the `files`, which are asked for anew each time.

    A burst is over when two looks see the same: an editor that writes a file in two steps causes one. What changes
    while the caller is busy is a burst, too.
    """
    seen = stamps(watched(files()))
    while True:
        begun_ns = time.time_ns() - int(LOOK_S * 1e9)
        yield
        seen = {path: seen[path] if path in seen else _old_stamp(path, begun_ns) for path in watched(files())}
        while (now := stamps(seen)) == seen:
            pause(LOOK_S)
        seen = _settled(now, pause)


def _settled(now: Stamps, pause: Callable[[float], object]) -> Stamps:
    while True:
        pause(LOOK_S)
        later = stamps(now)
        if later == now:
            return now
        now = later


def _old_stamp(path: Path, begun_ns: int) -> tuple[int, int] | None:
    """Of a file that the caller has found; None when it has changed since, so that it will be read again."""
    found = _stamp(path)
    return found if found and found[0] < begun_ns else None


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
