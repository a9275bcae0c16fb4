"""`atlas build --standalone`: the module runs where nothing of ours is."""

import subprocess
import sys
from pathlib import Path

import wasmtime

from engines.wasm.image import Image


def build(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-P", "-m", "server.cli", "build", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def run(module: Path, stdin: str) -> str:
    """What a plain WASI runtime gets from it on stdout."""
    asked, answered = module.with_suffix(".in"), module.with_suffix(".out")
    asked.write_text(stdin)
    config = wasmtime.WasiConfig()
    config.stdin_file, config.stdout_file = asked, answered
    engine = wasmtime.Engine()
    linker, store = wasmtime.Linker(engine), wasmtime.Store(engine)
    linker.define_wasi()
    store.set_wasi(config)
    start = linker.instantiate(store, wasmtime.Module.from_file(engine, str(module))).exports(store)["_start"]
    assert isinstance(start, wasmtime.Func)
    start(store)
    return answered.read_text()


def test_a_folder_becomes_a_module_of_its_own(tmp_path: Path, wasm_image: Image) -> None:
    (tmp_path / "add.ts").write_text("export const add = (a: number, b: number): number => a + b;\n")
    (tmp_path / "index.ts").write_text(
        "import { add } from './add';\nexport default (i: { a: number; b: number }) => ({ sum: add(i.a, i.b) });\n"
    )
    (tmp_path / "atlas.json").write_text('{"slug": "sum", "runtime": "wasm"}')
    built = build(tmp_path, "--standalone", "-o", "sum.wasm")
    assert built.returncode == 0, built.stderr
    assert run(tmp_path / "sum.wasm", '{"a": 1, "b": 2}') == '{"sum":3}\n'


def test_what_does_not_compile_is_shown_at_its_place(tmp_path: Path, wasm_image: Image) -> None:
    (tmp_path / "none.ts").write_text("export const a = 1;\n")
    built = build(tmp_path, "none.ts", "--standalone", "-o", "none.wasm")
    assert built.returncode == 3
    assert built.stderr.startswith("none.ts:1:1: error: The module has no default export")
    assert not (tmp_path / "none.wasm").exists()


def test_a_module_is_not_compiled_again(tmp_path: Path) -> None:
    (tmp_path / "made.wasm").write_bytes(b"\0asm\1\0\0\0")
    assert build(tmp_path, "made.wasm", "--standalone").returncode == 2
