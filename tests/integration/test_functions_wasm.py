"""Versions of the wasm runtime, made of source or of a module; and what of any version can be downloaded."""

from pathlib import Path

import pytest

from server.errors import InvalidArgument, NotFound, Unavailable
from server.functions.artifacts import sha256_of
from server.functions.configuration import Reconfiguration
from server.functions.fields import MAX_MODULE_BYTES
from tests.fix_functions import WASM, Node

SOURCE = "export default () => 1"
MODULE = WASM + b"compiled elsewhere"


async def test_source_becomes_a_module_with_its_script_beside_it(node: Node, other_node: Node) -> None:
    made = await node.deploy(SOURCE, runtime="wasm", language="typescript")
    assert (made.runtime, made.entrypoint, made.language) == ("wasm", "hello.wasm", "typescript")
    script = f"/* typescript hello.ts */ {SOURCE}".encode()
    resolved = await node.catalog.resolve(node.project_id, "hello")
    assert (resolved.program.code, resolved.program.script) == (WASM + script, script)
    assert node.files() == {
        f"{sha256_of(WASM + script)}.wasm",
        f"{sha256_of(script)}.script",
        f"{sha256_of(resolved.source_map or b'')}.map",
        f"{sha256_of(SOURCE.encode())}.source",
    }
    assert (await other_node.catalog.resolve(node.project_id, "hello")).program == resolved.program
    assert other_node.files() < node.files()


async def test_a_module_is_deployed_as_it_is(node: Node) -> None:
    made = await node.deploy("", runtime="wasm", module=MODULE)
    assert (made.entrypoint, made.language) == ("hello.wasm", "wasm")
    resolved = await node.catalog.resolve(node.project_id, "hello")
    assert (resolved.program.code, resolved.program.script) == (MODULE + b" accepted", b"")
    assert (await node.registry.version(node.project_id, made.id, 1)).source_bytes == len(MODULE)


async def test_old_versions_take_their_scripts_along(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.functions.lifecycle.KEPT_VERSIONS", 1)
    await node.deploy("1", runtime="wasm")
    await node.deploy("2", runtime="wasm")
    assert await node.count("artifacts") == len(node.files()) == 4


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"source": "x"}, "module", "Both source and module are given"),
        ({"runtime": "quickjs"}, "runtime", 'runtime is "quickjs"; a module needs the runtime "wasm"'),
        ({"language": "javascript"}, "language", "a module is deployed without one"),
        ({"module": WASM + b"x" * MAX_MODULE_BYTES}, "module", "has 2097160 bytes; at most 2097152 (2 MiB)"),
        ({"module": b"ELF"}, "module", "The module was refused. It does not begin with"),
        ({"module": WASM + b"THROWS"}, "module", "Compilation failed: the module could not be loaded"),
        ({"module": b""}, "source", "The source is empty"),
    ],
)
async def test_what_is_no_module_changes_nothing(
    node: Node, fields: dict[str, object], field: str, message: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await node.deploy(**{"source": "", "runtime": "wasm", "module": MODULE, **fields})  # type: ignore[arg-type]
    assert (caught.value.field, message in caught.value.message) == (field, True), caught.value.message
    assert (await node.count("functions"), node.files()) == (0, set())


async def test_the_largest_module_is_accepted(node: Node) -> None:
    module = WASM + bytes(MAX_MODULE_BYTES - len(WASM))
    await node.deploy("", runtime="wasm", module=module)


async def test_an_engine_that_is_being_built_is_told_and_changes_nothing(node: Node) -> None:
    with pytest.raises(Unavailable, match="being built") as caught:
        await node.deploy("BUILDING", runtime="wasm")
    assert (caught.value.retry_after_ms, await node.count("functions"), node.files()) == (5_000, 0, set())


async def test_create_takes_a_module_that_is_there(node: Node) -> None:
    put(node, "mine.wasm", MODULE)
    made = await node.create("mine.wasm", runtime="wasm")
    assert (made.entrypoint, made.language) == ("mine.wasm", "wasm")
    with pytest.raises(NotFound, match=r'^Wasm module not found: there is no file "other.wasm"'):
        await node.create("other.wasm", runtime="wasm", slug="other")
    with pytest.raises(InvalidArgument, match='a module needs the runtime "wasm"'):
        await node.create("mine.wasm", runtime="quickjs", slug="other")


async def test_every_form_of_a_wasm_version_can_be_downloaded(node: Node) -> None:
    made = await node.deploy(SOURCE, runtime="wasm", language="typescript")
    script = f"/* typescript hello.ts */ {SOURCE}".encode()
    for form, filename, content_type, data in (
        ("", "hello-v1.ts", "application/typescript; charset=utf-8", SOURCE.encode()),
        ("source", "hello-v1.ts", "application/typescript; charset=utf-8", SOURCE.encode()),
        ("artifact", "hello-v1.wasm", "application/wasm", WASM + script),
        ("standalone", "hello-v1.wasm", "application/wasm", WASM + b"alone: " + script + WASM + script),
    ):
        found = await node.downloads.get(node.project_id, made.id, 1, form)
        assert (found.filename, found.content_type, found.data) == (filename, content_type, data)


async def test_a_module_stands_alone_as_it_was_deployed(node: Node) -> None:
    made = await node.deploy("", runtime="wasm", module=MODULE)
    for form, data in (("source", MODULE), ("standalone", MODULE), ("artifact", MODULE + b" accepted")):
        found = await node.downloads.get(node.project_id, made.id, 1, form)
        assert (found.filename, found.content_type, found.data) == ("hello-v1.wasm", "application/wasm", data)


async def test_why_there_is_no_standalone_form_is_told(node: Node) -> None:
    made = await node.deploy("DYNAMIC", runtime="wasm")
    with pytest.raises(InvalidArgument, match=r'no form "standalone"\. Its engine is another one'):
        await node.downloads.get(node.project_id, made.id, 1, "standalone")
    await node.deploy("ABSENT", runtime="wasm")
    with pytest.raises(Unavailable, match=r"^Its engine is being built"):
        await node.downloads.get(node.project_id, made.id, 2, "standalone")


async def test_script_versions_have_no_standalone_form_and_unknown_ones_none(node: Node) -> None:
    made = await node.deploy(SOURCE)
    await node.deploy("export default () => 2")
    assert (await node.downloads.get(node.project_id, made.id, 1, "")).data == SOURCE.encode()
    artifact = await node.downloads.get(node.project_id, made.id, 2, "artifact")
    assert (artifact.filename, artifact.content_type) == ("hello-v2.js", "text/javascript; charset=utf-8")
    for form, message in (("standalone", 'runtime "quickjs" has no form "standalone"'), ("zip", 'form is "zip"')):
        with pytest.raises(InvalidArgument, match=message) as caught:
            await node.downloads.get(node.project_id, made.id, 1, form)
        assert caught.value.field == "form"
    with pytest.raises(NotFound, match="no version 3"):
        await node.downloads.get(node.project_id, made.id, 3, "")
    with pytest.raises(InvalidArgument, match="versions count from 1"):
        await node.downloads.get(node.project_id, made.id, 0, "")


async def test_downloads_come_from_the_shared_copy_when_this_disk_has_none(node: Node, other_node: Node) -> None:
    made = await node.deploy(SOURCE, change=Reconfiguration(env={"A": "1"}))
    await node.lifecycle.delete(node.project_id, made.id)
    assert (await other_node.downloads.get(node.project_id, made.id, 1, "source")).data == SOURCE.encode()


def put(node: Node, name: str, data: bytes) -> None:
    folder: Path = node.root / node.project_id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
