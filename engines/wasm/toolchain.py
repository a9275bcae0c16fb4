"""Compiles the guest: the C sources of the pinned quickjs-ng sdist and ours, by the pinned zig, to two modules.

    engine    no imports; what a function's own module links to
    command   a WASI preview 1 command around the same, for the standalone form

The same inputs give the same bytes, wherever and whenever: `fingerprint` names them all. Nothing is downloaded here;
`make setup` puts the sdist that lock/guest.txt names, with its hash, beside the virtual environment's own files.
"""

import hashlib
import importlib.metadata
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Final

from engines.wasm import abi, guest

Say = Callable[[str], None]

SDIST_DIR: Final = Path(sys.prefix) / "share" / "atlas"
_LOCK = Path(__file__).resolve().parents[2] / "lock" / "guest.txt"
_QUICKJS = ("quickjs", "libregexp", "libunicode", "dtoa")
_SHARED = ("shim", "natives", "wasi", "sha")
_MODULES = {"engine": _SHARED, "command": (*_SHARED, "command")}
_TARGET = ("-target", "wasm32-wasi", "-mexec-model=reactor", "-O2")
_COMPILE = (
    *("-DNDEBUG", "-D_GNU_SOURCE", "-fno-sanitize=undefined", "-fvisibility=hidden", "-w"),
    f"-DINPUT_AREA_BYTES={abi.INPUT_AREA_BYTES}",
    f"-DCONTEXT_AREA_BYTES={abi.CONTEXT_AREA_BYTES}",
)
_LINK = (
    *("-Wl,-z,stack-size=1048576", "-Wl,--export=__stack_pointer", "-Wl,--export=atlas_request"),
    *("-Wl,--strip-debug", "-s"),
)


class ToolchainFault(Exception):
    """The guest cannot be compiled here; the message says what is missing or broken."""


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """A hash of all that the modules are made of. Raises ToolchainFault when the sdist is not there."""
    parts = {name: path.read_bytes() for name, path in guest.C_SOURCES.items()}
    parts["prelude"] = guest.prelude_script().encode()
    parts["flags"] = repr((_QUICKJS, _MODULES, _TARGET, _COMPILE, _LINK)).encode()
    parts["sdist"] = _sdist()[1].encode()
    parts["zig"] = importlib.metadata.version("ziglang").encode()
    whole = hashlib.sha256()
    for name in sorted(parts):
        whole.update(hashlib.sha256(name.encode() + b"\0" + parts[name]).digest())
    return whole.hexdigest()


def compile_guest(work: Path, *, say: Say) -> dict[str, bytes]:
    """Both modules by name, not yet initialised. `work` is an empty directory, left full. Some 40 s on two cores."""
    unpack(work)
    (work / "prelude.js").write_text(guest.prelude_script(), encoding="utf-8")
    for name, path in guest.C_SOURCES.items():
        (work / name).write_bytes(path.read_bytes())

    def compile_one(name: str) -> None:
        say(f"compiling {name}.c")
        _zig(work, *_TARGET, *_COMPILE, "-c", f"{name}.c", "-o", f"{name}.o")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, (*_QUICKJS, *_MODULES["command"])))
    made = {}
    for module, own in _MODULES.items():
        say(f"linking {module}.wasm")
        objects = [f"{name}.o" for name in (*own, *_QUICKJS)]
        exports = ("-Wl,--export=atlas_program",) if module == "command" else ()
        _zig(work, *_TARGET, *objects, *_LINK, *exports, "-o", f"{module}.wasm")
        made[module] = (work / f"{module}.wasm").read_bytes()
    return made


def unpack(work: Path) -> None:
    """The C sources of QuickJS-NG into `work`: plain files, whatever else the archive holds."""
    with tarfile.open(_sdist()[0]) as archive:
        for member in archive:
            path = Path(member.name)
            if member.isfile() and path.parent.name == "upstream-quickjs" and path.suffix in (".c", ".h"):
                content = archive.extractfile(member)
                assert content is not None
                (work / path.name).write_bytes(content.read())


def _sdist() -> tuple[Path, str]:
    """The sdist and its hash, checked against the lock file."""
    locked = re.findall(r"--hash=sha256:([0-9a-f]{64})", _LOCK.read_text(encoding="utf-8"))
    for path in sorted(SDIST_DIR.glob("*.tar.gz")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest in locked:
            return path, digest
    raise ToolchainFault(f"the C sources of the Wasm engine are not in {SDIST_DIR}; `make setup` puts them there")


def _zig(work: Path, *arguments: str) -> None:
    folders = dict.fromkeys(("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR", "HOME"), str(work / "zig"))
    command = [sys.executable, "-I", "-m", "ziglang", "cc", *arguments]
    done = subprocess.run(command, cwd=work, env=folders, capture_output=True, check=False)
    if done.returncode:
        raise ToolchainFault(f"zig failed: {done.stderr.decode('utf-8', 'replace')[-2000:]}")
