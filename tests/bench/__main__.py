"""`python -m tests.bench [name …]`: measure and print. Each measurement is a module here with TITLE and measure()."""

import importlib
import sys

import uvloop

from tests.bench.rows import table

ALL = ("sandbox",)


def main(names: list[str]) -> None:
    for name in names or ALL:
        module = importlib.import_module(f"tests.bench.{name}")
        print(table(module.TITLE, uvloop.run(module.measure())), flush=True)


main(sys.argv[1:])
