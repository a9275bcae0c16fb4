"""The operating-system account the third-party servers run as.

Postgres refuses to run as root, and the others have no need to. Started by root they run as `nobody`, started by
anybody else as that user. `None` means "as ourselves" everywhere.
"""

import os
import pwd
from dataclasses import dataclass
from pathlib import Path


class AccountError(Exception):
    """This user cannot run the embedded stack; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Account:
    name: str
    uid: int
    gid: int


def servant() -> Account | None:
    """Who runs the servers: `nobody` when we are root, else None for ourselves."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise AccountError("root cannot run Postgres, and there is no user `nobody` to run it as") from None
    return Account("nobody", entry.pw_uid, entry.pw_gid)


def own_name() -> str:
    """Our own user name, which Postgres sees at the other end of its socket."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise AccountError(
            f"user id {os.geteuid()} has no name in /etc/passwd, and Postgres will not run without one: "
            "add an entry, or set ATLAS_DATABASE_URL and ATLAS_TENANT_DATABASE_URL to use another server"
        ) from None


def directory(path: Path, owner: Account | None, mode: int = 0o700) -> Path:
    """Make `path` a directory of `owner`. Mode 0700 is for data; 0711 lets others reach the sockets in it."""
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    if owner:
        os.chown(path, owner.uid, owner.gid)
    path.chmod(mode)
    return path


def private_file(path: Path, text: str, owner: Account | None = None) -> Path:
    """Write `text` to `path`, readable by `owner` alone (mode 0600); the file appears whole or not at all."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        if owner:
            os.fchown(file.fileno(), owner.uid, owner.gid)
    return draft.replace(path)


def can_run(program: Path, account: Account) -> bool:
    """Whether `account` may execute `program` and pass every directory above it (by the mode bits for others)."""
    path = program.resolve()
    return all(step.stat().st_mode & 0o001 for step in (path, *path.parents))
