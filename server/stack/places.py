"""Where a stack keeps things. A stack is named by its state directory.

    state   .atlas: `env`, the secrets, the lock                                  always the invoking user's
    data    databases, streams, logs                    .atlas, or for root /var/lib/atlas-<hash>
    run     sockets and configurations, a short path    /var/tmp/atlas-<uid>-<hash>, or for root the same as data

Root's servers run as `nobody`, who cannot enter /root; hence a place outside of the checkout. The path of a unix socket
has at most 107 bytes, which a checkout's path easily exceeds; hence `run`. ATLAS_RUN_DIR replaces data and run.
"""

import hashlib
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from server.settings import Settings
from server.stack.account import directory

ROOTS_PLACE: Final = Path("/var/lib")
SHORT_PLACE: Final = Path("/var/tmp")  # noqa: S108 - _claim refuses what is not ours
SOCKET_PATH_BYTES: Final = 107
LONGEST_SOCKET: Final = "pg/.s.PGSQL.5432.lock"

_OURS: Final = (
    "postgres",
    "nats",
    "valkey",
    "envoy",
    "log",
    "bin",
    "pg",
    "kv",
    "api",
    "worker",
    "metrics",
    "nats.conf",
    "valkey.conf",
)
_STATE: Final = ("env", "secrets.json")
_PROJECT: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class PlaceError(Exception):
    """A directory cannot be used; the message names it and the variable that chooses another."""


@dataclass(frozen=True, slots=True)
class Places:
    state: Path
    data: Path
    run: Path

    @property
    def mark(self) -> str:
        """What marks the processes of this stack."""
        return str(self.run)

    @property
    def env_file(self) -> Path:
        return self.state / "env"

    @property
    def programs(self) -> Path:
        return self.run / "bin"

    @property
    def logs(self) -> Path:
        return self.data / "log"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def make(self) -> None:
        """Make what is missing. PlaceError for a directory that is somebody else's, or a path too long for sockets."""
        if len(os.fsencode(self.run / LONGEST_SOCKET)) > SOCKET_PATH_BYTES:
            raise PlaceError(f"{self.run} is too long a path for sockets: set ATLAS_RUN_DIR to a shorter one")
        root = os.geteuid() == 0
        # As root the servers are `nobody`, who must pass through to what is his; then nothing secret lies here openly.
        shared = 0o711 if root else 0o700
        for path, mode in {self.data: shared, self.run: shared, self.state: 0o700}.items():
            _claim(path, mode)
        for path, mode in (
            (self.logs, 0o711),
            (self.run / "api", 0o711),
            (self.run / "worker", 0o700),
            (self.run / "metrics", 0o700),
        ):
            directory(path, None, mode)

    def delete(self, *of_projects: Path) -> None:
        """Delete all that a stack makes, by name, what projects have in those folders, and directories that are empty
        then."""
        for place in {self.data, self.run}:
            for name in _OURS:
                _remove(place / name)
        for name in _STATE:
            _remove(self.state / name)
        for place in filter(Path.is_dir, of_projects):
            for folder in place.iterdir():
                if _PROJECT.fullmatch(folder.name):
                    _remove(folder)
        for place in {self.data, self.run} - {self.state}:
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()


def places(settings: Settings) -> Places:
    state = settings.state_dir.absolute()
    if settings.run_dir:
        run = settings.run_dir.absolute()
        return Places(state, run, run)
    name = hashlib.sha256(os.fsencode(state.resolve())).hexdigest()[:10]
    if os.geteuid() == 0:
        home = (ROOTS_PLACE if os.access(ROOTS_PLACE, os.W_OK) else SHORT_PLACE) / f"atlas-{name}"
        return Places(state, home, home)
    return Places(state, state, SHORT_PLACE / f"atlas-{os.geteuid()}-{name}")


def _claim(path: Path, mode: int) -> None:
    """Make the directory, or make sure that it is ours: /var/tmp is everybody's."""
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as why:
        raise PlaceError(f"cannot make {path}: {why.strerror}; set ATLAS_STATE_DIR or ATLAS_RUN_DIR") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PlaceError(f"{path} belongs to another user: set ATLAS_STATE_DIR or ATLAS_RUN_DIR to another place")
    path.chmod(mode)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
