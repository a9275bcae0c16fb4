"""`python -m tests.bench [name …]`: measure and print. Each measurement is a module here with TITLE and measure().

A missed goal is marked. The exit status is 1 only when something could not be measured.
"""

import importlib
import sys
import traceback

import uvloop

from tests.bench.rows import Row, table

ALL = (
    "sandbox",
    "engines",
    "wire",
    "records",
    "startup",
    "matching",
    "dispatch",
    "cron",
    "cdc",
    "commits",
    "outbox",
    "storage",
    "workflows",
)


def main(names: list[str]) -> int:
    failed = 0
    for name in names or ALL:
        module = importlib.import_module(f"tests.bench.{name}")
        try:
            rows = uvloop.run(module.measure())
        except Exception:
            traceback.print_exc()
            rows = [Row("not measured", None, "")]
        print(table(module.TITLE, rows), flush=True)
        failed = failed or int(any(row.value is None for row in rows))
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
