"""Imports point one way: app → rpc → … → engines → standard library; `gen` is seen by rpc and cli alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LAYERS = (
    ("server.__main__", "server.cli"),
    ("server.stack",),
    ("server.app", "server.worker"),
    ("server.parts", "server.prerequisites", "server.process"),
    ("server.rpc",),
    ("server.dispatch",),
    ("server.workflows",),
    ("server.triggers",),
    ("server.invocations",),
    ("server.functions",),
    ("server.host",),
    ("server.cdc",),
    ("server.storage", "server.events", "server.projects", "server.runs", "server.tiers"),
    ("server.postgres",),
    (
        "server.settings",
        "server.errors",
        "server.clock",
        "server.log",
        "server.tasks",
        "server.telemetry",
        "server.paging",
        "server.fields",
        "server.uuids",
        "server.valkey",
    ),
    ("engines",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
GENERATED = ("atlas", "google.api", "google.rpc")


def modules() -> Iterator[tuple[str, Path]]:
    for package in ("engines", "server"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(module: str) -> int | None:
    matches = [name for name in RANK if module == name or module.startswith(name + ".")]
    return RANK[max(matches, key=len)] if matches else None


MODULES = [pytest.param(name, path, id=name) for name, path in modules()]


@pytest.mark.parametrize(("name", "path"), MODULES)
def test_imports_point_down(name: str, path: Path) -> None:
    if name == "server":
        return
    own = layer(name)
    assert own is not None, f"{name} has no layer: add it to LAYERS"
    upward = [target for target in imports(path) if (rank := layer(target)) is not None and rank < own]
    assert not upward, f"{name} imports upward: {upward}"


@pytest.mark.parametrize(("name", "path"), MODULES)
def test_the_command_line_knows_nothing_of_the_server(name: str, path: Path) -> None:
    seen = {target for target in imports(path) if target.split(".")[0] == "server"}
    if name.startswith("server.cli"):
        assert all(target.startswith("server.cli") for target in seen), f"{name} imports {seen}"
    else:
        assert not any(target.startswith("server.cli") for target in seen), f"{name} imports the command line"


@pytest.mark.parametrize(("name", "path"), MODULES)
def test_only_rpc_and_the_command_line_see_generated_code(name: str, path: Path) -> None:
    if name.startswith(("server.rpc", "server.cli")) or name == "server.app":
        return
    seen = [target for target in imports(path) if target.split(".")[0] == "atlas" or target.startswith(GENERATED[1:])]
    assert not seen, f"{name} imports generated code: {seen}"


@pytest.mark.parametrize(("name", "path"), MODULES)
def test_nobody_imports_a_child_program(name: str, path: Path) -> None:
    if name.startswith("engines.quickjs"):
        return
    assert "engines.quickjs.child" not in set(imports(path))


@pytest.mark.parametrize(("name", "path"), MODULES)
def test_only_settings_reads_the_environment(name: str, path: Path) -> None:
    if name in ("server.settings", "server.__main__") or name.startswith("server.stack"):
        return
    tree = ast.parse(path.read_text())
    cleared = [node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "clear"]
    reads = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") and node not in cleared
    ]
    assert not reads, f"{name} reads the environment"
