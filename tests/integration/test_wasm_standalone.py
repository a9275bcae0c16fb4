"""The standalone form, run by the wasmtime package as any WASI preview 1 command is: files for its three streams."""

import json
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pytest
import wasmtime

from engines.wasm import binary
from engines.wasm.abi import Status
from engines.wasm.artifact import standalone
from tests.fix_wasm import Guest


class Exited(NamedTuple):
    status: int
    stdout: str
    stderr: str


def command_of(guest: Guest, source: str) -> bytes:
    status, bytecode = guest.compile(source)
    assert status is Status.RETURNED
    return standalone(guest.image, bytecode)


@lru_cache(maxsize=1)
def compiled(command: bytes) -> tuple[wasmtime.Engine, wasmtime.Module]:
    """Takes a second."""
    engine = wasmtime.Engine()
    return engine, wasmtime.Module(engine, command)


def execute(command: bytes, stdin: bytes, folder: Path) -> Exited:
    (folder / "stdin").write_bytes(stdin)
    streams = wasmtime.WasiConfig()
    streams.stdin_file, streams.stdout_file, streams.stderr_file = (folder / n for n in ("stdin", "stdout", "stderr"))
    engine, module = compiled(command)
    with wasmtime.Store(engine) as store:
        store.set_wasi(streams)
        linker = wasmtime.Linker(engine)
        linker.define_wasi()
        start = linker.instantiate(store, module).exports(store)["_start"]
        assert isinstance(start, wasmtime.Func)
        status = 0
        try:
            start(store)
        except wasmtime.ExitTrap as exit_:
            status = exit_.code
    return Exited(status, *((folder / name).read_text() for name in ("stdout", "stderr")))


_SOURCE = """
export default async function (input) {
  console.log("called with", input);
  if (input === 0) return nothing;
  if (input === 1) return new Response("é", { status: 201 });
  if (input === 2) return new Response(new Uint8Array([255]));
  if (input === 3) return new Promise(() => {});
  return { input, year: new Date().getUTCFullYear() > 2023, id: crypto.randomUUID().length };
}"""


@pytest.mark.parametrize(
    ("stdin", "status", "stdout", "stderr"),
    [
        (b'{"a":"\xc3\xa9"}', 0, {"input": {"a": "é"}, "year": True, "id": 36}, "called with { a: 'é' }\n"),
        (b"", 0, {"input": None, "year": True, "id": 36}, "called with null\n"),
        (
            b"1",
            0,
            {"status": 201, "headers": [["content-type", "text/plain;charset=UTF-8"]], "body": "é"},
            "called with 1\n",
        ),
        (b"2", 0, {"status": 200, "headers": [], "body_base64": "/w=="}, "called with 2\n"),
        (b"0", 1, None, "called with 0\nReferenceError: nothing is not defined\n    at default (<input>:5:"),
        (b"3", 1, None, "called with 3\nthe function's promise never settles\n"),
        (b"{", 1, None, "TypeError: The input is not one JSON value\n"),
    ],
)
def test_streams_and_exit_status(
    guest: Guest, tmp_path: Path, stdin: bytes, status: int, stdout: object, stderr: str
) -> None:
    exited = execute(command_of(guest, _SOURCE), stdin, tmp_path)
    assert exited.status == status
    assert exited.stderr.startswith(stderr)
    assert "<input>:1:" not in exited.stderr
    assert (json.loads(exited.stdout) if exited.stdout else None) == stdout


def test_input_and_program_of_many_pages(guest: Guest, tmp_path: Path) -> None:
    source = f"const long = '{'x' * 300_000}'; export default (input) => [input.length, long.length]"
    exited = execute(command_of(guest, source), b'"' + b"y" * 1_000_000 + b'"', tmp_path)
    assert exited == (0, "[1000000,300000]\n", "")


def test_a_module_that_does_not_load(guest: Guest, tmp_path: Path) -> None:
    exited = execute(command_of(guest, "throw new RangeError('top'); export default () => 1"), b"null", tmp_path)
    assert (exited.status, exited.stdout) == (1, "")
    assert exited.stderr.startswith("RangeError: top\n")


def test_it_imports_wasi_alone_and_is_the_same_every_time(guest: Guest) -> None:
    command = command_of(guest, _SOURCE)
    assert command == command_of(guest, _SOURCE)
    module = wasmtime.Module(wasmtime.Engine(), command)
    assert {item.module for item in module.imports} == {"wasi_snapshot_preview1"}
    assert {item.name for item in module.imports} == {
        "fd_read",
        "fd_write",
        "proc_exit",
        "clock_time_get",
        "random_get",
    }
    assert [export.name for export in binary.exports(command)] == ["memory", "_start"]
