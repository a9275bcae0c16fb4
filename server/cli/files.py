"""Bytes into a file or to stdout."""

from pathlib import Path

from server.cli.output import Output
from server.cli.problems import USAGE, Problem


def write(out: Output, path: Path | None, data: bytes) -> None:
    """To stdout without a path. Raises Problem when it cannot be written."""
    if path is None:
        return out.data(data)
    try:
        path.write_bytes(data)
    except OSError as why:
        raise Problem(f"{path} cannot be written: {why.strerror}", USAGE) from why
    if out.json:
        return out.document({"file": str(path), "bytes": len(data)})
    return out.text(f"Wrote {path}, {len(data)} bytes")
