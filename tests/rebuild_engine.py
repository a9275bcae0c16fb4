"""Build the Wasm engine anew, from nothing, and compare it with the one in use: `make check-engine`.

Not a test of `make test`: each build takes some 40 s.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from engines.wasm.image import ensure
from server.settings import load


async def main() -> str | None:
    in_use = await ensure(load().engine_cache_dir, say=print)
    with tempfile.TemporaryDirectory() as folder:
        again = await ensure(Path(folder) / "a cache elsewhere", say=print)
    if again != in_use:
        return f"the engine is not reproducible: {in_use.sha256} in use, {again.sha256} anew"
    print(f"the same bytes: engine {in_use.sha256}, {len(in_use.wasm)} bytes")
    return None


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
