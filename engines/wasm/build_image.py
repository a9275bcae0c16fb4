"""The program that builds the engine image: `python -m engines.wasm.build_image CACHE_DIR`, progress on stdout.

It is a process of its own so that it can be killed as a whole, and so that nobody who serves requests waits for it. It
ends with its starter: when its stdin ends, it and its compilers are killed. Any number of them build once, because
each holds the lock of the cache while it looks and builds; a directory that was not renamed to its final name is
unfinished, whoever left it, and is removed by the next.
"""

import fcntl
import os
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path

from engines.wasm import image, toolchain
from engines.wasm.snapshot import snapshot

_UNFINISHED = "building-"
_KEPT = 4  # images: of this checkout as it is, and as it lately was


def main(cache_dir: Path) -> None:
    os.nice(10)
    os.umask(0o077)
    threading.Thread(target=_end_with_starter, daemon=True).start()
    image.private_directory(cache_dir)
    lock = os.open(cache_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _say("waiting for another process that builds it")
        fcntl.flock(lock, fcntl.LOCK_EX)
    if image.peek(cache_dir) is not None:
        return
    for left in cache_dir.glob(_UNFINISHED + "*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=cache_dir) as folder:
        _build(Path(folder), image.directory(cache_dir))
    prune(cache_dir)


def prune(cache_dir: Path) -> None:
    """Remove all images but the latest few."""
    latest = sorted(cache_dir.glob("image-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in latest[_KEPT:]:
        shutil.rmtree(old)


def _build(folder: Path, final: Path) -> None:
    work, done = folder / "work", folder / "done"
    work.mkdir()
    done.mkdir(mode=0o700)
    for name, wasm in toolchain.compile_guest(work, say=_say).items():
        _say(f"initialising {name}.wasm")
        with (done / f"{name}.wasm").open("wb") as file:
            file.write(snapshot(wasm, run=image.SET_UP, keep=image.EXPORTS[name]))
            file.flush()
            os.fsync(file.fileno())
    if final.exists():  # not one that `peek` believes
        final.rename(folder / "distrusted")
    done.rename(final)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _end_with_starter() -> None:
    while os.read(0, 1024):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except (toolchain.ToolchainFault, image.ImageFault, image.Distrusted) as fault:
        sys.exit(str(fault))
