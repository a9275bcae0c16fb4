"""Where the servers' programs are: inside their wheels, or hard-linked where `nobody` can run them.

A checkout under /root (0700) hides its virtual environment from `nobody`, so the programs of a server that runs as
`nobody` are then linked (on another file system: copied) into the run directory.
"""

import os
import shutil
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path

from server.stack.account import Account, can_run


def in_wheel(wheel: str, program: str) -> Path:
    """Path of an executable of an installed distribution."""
    found = distribution(wheel)
    for file in found.files or ():
        if file.name == program:
            path = Path(str(file.locate())).resolve()
            if os.access(path, os.X_OK) and not _is_script(path):
                return path
    raise FileNotFoundError(f"the package {wheel} has no program {program}; run `make setup` again")


def _is_script(path: Path) -> bool:
    """Whether it is a wrapper in Python of the same name, which a wheel's entry point makes."""
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def runnable(program: Path, root: Path, keep: Sequence[str], account: Account | None, into: Path) -> Path:
    """A path of `program` that `account` can execute.

    `keep` names what must stay together under `root` for the program to work: files or directories.
    """
    if account is None or can_run(program, account):
        return program
    version = f"{program.name}-{program.stat().st_size:x}-{program.stat().st_mtime_ns:x}"
    place = into / version
    if not place.exists():
        draft = into / f"{version}.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for name in keep:
            if (root / name).is_dir():
                shutil.copytree(root / name, draft / name, symlinks=True, copy_function=_link)
            else:
                _link(root / name, draft / name)
        for directory in (draft, *(path for path in draft.rglob("*") if path.is_dir())):
            directory.chmod(0o755)
        draft.rename(place)
    return place / program.relative_to(root)


def _link(source: str | Path, target: str | Path) -> None:
    """A hard link if others may read the file and the file system allows it, else a copy that they may read."""
    try:
        if not Path(source).stat().st_mode & 0o004:
            raise PermissionError
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
        Path(target).chmod(0o755)
