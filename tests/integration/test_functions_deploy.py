"""Deploying on a real Postgres and disk: every refusal changes nothing, every success is a version everywhere."""

import asyncio
from typing import Any

import pytest

from engines.build import build
from engines.contract import Outcome
from engines.runtimes import Runtime
from server.errors import AlreadyExists, AtlasError, InvalidArgument, NotFound, Unavailable, Unimplemented
from server.functions import releases
from server.functions.artifacts import sha256_of
from server.functions.deploy import Deployer
from server.functions.fields import MAX_SOURCE_BYTES
from server.settings import Settings
from tests.fix_functions import Node, add_project

UNKNOWN = "00000000-0000-4000-8000-000000000000"


async def assert_nothing_changed(node: Node) -> None:
    tables = ("functions", "function_versions", "artifacts")
    assert ([await node.count(table) for table in tables], node.files()) == ([0, 0, 0], set())


async def test_a_deploy_makes_the_function_and_its_files(node: Node) -> None:
    made = await node.deploy("export default () => 1", name="Say hello")
    assert (made.project_id, made.name, made.slug, made.runtime) == (node.project_id, "Say hello", "hello", "quickjs")
    assert (made.entrypoint, made.language, made.version, made.isolation) == ("hello.js", "javascript", 1, "warm")
    assert await node.registry.get(node.project_id, made.id.upper()) == made
    resolved = await node.catalog.resolve(node.project_id, "hello")
    assert (resolved.function, resolved.program.key) == (made, (node.project_id, made.id, 1))
    assert resolved.program.code == b"/* javascript hello.js */ export default () => 1"
    assert node.files() == {
        f"{sha256_of(resolved.program.code)}.js",
        f"{sha256_of(resolved.source_map or b'')}.map",
        f"{sha256_of(b'export default () => 1')}.source",
    }


async def test_typescript_and_isolation(node: Node) -> None:
    made = await node.deploy(language="typescript", isolation="fresh")
    assert (made.entrypoint, made.language, made.isolation) == ("hello.ts", "typescript", "fresh")
    assert (await node.catalog.resolve(node.project_id, "hello")).program.isolation == "fresh"


async def test_the_load_check_has_the_limits_of_the_tier_and_a_key_of_its_own(node: Node) -> None:
    await node.deploy()
    await node.deploy()
    (first, limits), (second, _) = node.engine.checked
    assert (limits.wall_ms, limits.memory_bytes) == (5_000, 16 * 1024 * 1024)
    assert first.key != second.key


BAD_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"name": ""}, "name", "name is missing"),
    ({"name": "x" * 101}, "name", "name has 101 characters"),
    ({"slug": ""}, "slug", 'Slug must be alphanumeric: "" may have'),
    ({"slug": "a b"}, "slug", 'Slug must be alphanumeric: "a b" may have'),
    ({"slug": "../up"}, "slug", "Slug must be alphanumeric"),
    ({"slug": "hello\n"}, "slug", "Slug must be alphanumeric"),
    ({"slug": "größe"}, "slug", "Slug must be alphanumeric"),
    ({"slug": "x" * 64}, "slug", "Slug must be alphanumeric"),
    ({"runtime": ""}, "runtime", 'runtime is ""; it must be one of quickjs, wasm, node, deno'),
    ({"runtime": "QuickJS"}, "runtime", 'runtime is "QuickJS"'),
    ({"language": "python"}, "language", 'language is "python"; it must be one of javascript, typescript'),
    ({"isolation": "none"}, "isolation", 'isolation is "none"; it must be one of warm, fresh'),
    ({"source": ""}, "source", "The source is empty"),
    ({"source": " \n "}, "source", "The source is empty"),
    ({"source": "\ud800"}, "source", "The source is not UTF-8: byte 0 is 0xed"),
    ({"source": "é" * (MAX_SOURCE_BYTES // 2) + "x"}, "source", "has 1048577 bytes of UTF-8; at most 1048576 (1 MiB)"),
    ({"name": "", "slug": "a b", "source": ""}, "name", "name is missing"),
]


@pytest.mark.parametrize(("fields", "field", "message"), BAD_FIELDS)
async def test_bad_fields_are_named_and_change_nothing(
    node: Node, fields: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await node.deploy(**fields)
    assert (caught.value.field, message in caught.value.message) == (field, True), caught.value.message
    await assert_nothing_changed(node)


async def test_the_largest_source_is_accepted(node: Node) -> None:
    await node.deploy("x" * MAX_SOURCE_BYTES)
    (version,) = (await node.registry.versions(node.project_id, (await _only(node)).id)).items
    assert version.source_bytes == MAX_SOURCE_BYTES


@pytest.mark.parametrize("runtime", ["node", "deno"])
async def test_runtimes_that_do_not_work_here_say_what_does(node: Node, runtime: str) -> None:
    with pytest.raises(
        Unimplemented, match=f'The runtime "{runtime}" does not work on this server; use quickjs or wasm'
    ):
        await node.deploy(runtime=runtime)
    await assert_nothing_changed(node)


async def test_syntax_errors_name_line_and_column(node: Node) -> None:
    with pytest.raises(InvalidArgument, match=r"^Compilation failed: 3:14: Unexpected 3$") as caught:
        await node.deploy("SYNTAX")
    error = caught.value
    assert (error.field, error.reason) == ("source", "COMPILATION_FAILED")
    assert error.metadata == {"line": "3", "column": "14", "line_text": "let x = = 1"}
    await assert_nothing_changed(node)


async def test_many_syntax_errors_are_cut(node: Node) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await node.deploy("SYNTAX25")
    assert caught.value.message.count("Unexpected") == 10
    assert caught.value.message.endswith("; and 15 more")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("THROWS", "Compilation failed: the module could not be loaded: TypeError: no default export"),
        ("LOOPS", "Compilation failed: the module could not be loaded: its top level used 5 s of 5 s of wall clock"),
    ],
)
async def test_what_does_not_load_is_not_deployed(node: Node, source: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await node.deploy(source)
    assert (caught.value.message, caught.value.reason) == (message, "COMPILATION_FAILED")
    await assert_nothing_changed(node)


async def test_a_full_sandbox_is_not_the_sources_fault(node: Node) -> None:
    with pytest.raises(Unavailable) as caught:
        await node.deploy("CROWDED")
    assert (caught.value.reason, caught.value.retry_after_ms) == (Outcome.OVERLOADED.name, 1000)
    await assert_nothing_changed(node)


async def test_a_disk_that_cannot_be_written_is_said_and_changes_nothing(node: Node) -> None:
    node.root.write_text("a file where the folder should be")
    with pytest.raises(Unavailable, match="cannot store the function"):
        await node.deploy()
    assert await node.count("functions") == 0


async def test_an_unknown_project_is_not_found(node: Node) -> None:
    node.project_id = UNKNOWN
    with pytest.raises(NotFound, match=UNKNOWN):
        await node.deploy()


async def test_the_same_slug_again_is_the_next_version_even_of_the_same_source(node: Node) -> None:
    first = await node.deploy(name="One")
    second = await node.deploy(name="Two")
    assert (second.id, second.version, second.name) == (first.id, 2, "Two")
    assert (second.created_at, second.updated_at > first.updated_at) == (first.created_at, True)
    assert await node.count("artifacts") == 3, "the same bytes are kept once"


async def test_deploys_at_the_same_time_leave_no_gap_and_one_function(node: Node, other_node: Node) -> None:
    made = await asyncio.gather(
        *((node, other_node)[number % 2].deploy(f"export default () => {number}") for number in range(12))
    )
    assert sorted(function.version for function in made) == list(range(1, 13))
    assert len({function.id for function in made}) == 1
    assert (await _only(node)).version == 12
    last = next(number for number, function in enumerate(made) if function.version == 12)
    assert await node.code() == await other_node.code() == f"/* javascript hello.js */ export default () => {last}"


async def test_the_function_limit_is_said_and_holds_for_new_slugs_only(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releases, "MAX_FUNCTIONS", 2)
    for slug in ("a", "b", "a"):
        await node.deploy(slug=slug)
    with pytest.raises(AtlasError, match="The project has 2 functions, which is the most") as caught:
        await node.deploy(slug="c")
    assert caught.value.code == "resource_exhausted"
    node.project_id = await add_project(node.pool)
    await node.deploy(slug="c")


async def test_old_versions_go_with_their_bytes(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.functions.lifecycle.KEPT_VERSIONS", 2)
    for number in range(4):
        made = await node.deploy(f"export default () => {number}")
    assert [item.version for item in (await node.registry.versions(node.project_id, made.id)).items] == [4, 3]
    assert await node.count("artifacts") == len(node.files()) == 2 * 2 + 1, "two codes, two sources, one map"


async def test_create_takes_a_file_that_is_there(node: Node) -> None:
    folder = node.root / node.project_id
    folder.mkdir(parents=True)
    (folder / "mine.mts").write_text("export default () => 7")
    made = await node.create("mine.mts")
    assert (made.entrypoint, made.language, made.version) == ("mine.mts", "typescript", 1)
    (folder / "mine.mts").write_text("changed later")
    assert await node.code() == "/* typescript mine.mts */ export default () => 7"
    with pytest.raises(AlreadyExists, match='The slug "hello" is taken'):
        await node.create("mine.mts")


@pytest.mark.parametrize(
    "entrypoint",
    [
        "",
        "../hello.js",
        "/etc/passwd.js",
        "a/b.js",
        ".hidden.js",
        "hello",
        "hello.js\n",
        "x" * 121 + ".js",
    ],
)
async def test_create_takes_plain_file_names_only(node: Node, entrypoint: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await node.create(entrypoint)
    assert caught.value.field == "entrypoint"
    await assert_nothing_changed(node)


async def test_create_refuses_what_is_missing_linked_large_or_not_text(node: Node) -> None:
    with pytest.raises(NotFound, match=r'^JS source not found: there is no file "hello.js"'):
        await node.create("hello.js")
    folder = node.root / node.project_id
    folder.mkdir(parents=True)
    (folder / "link.js").symlink_to("/etc/passwd")
    (folder / "large.js").write_bytes(b"x" * (MAX_SOURCE_BYTES + 1))
    (folder / "bytes.js").write_bytes(b"let \xff")
    (folder / "empty.js").write_bytes(b"")
    with pytest.raises(NotFound):
        await node.create("link.js")
    (folder / "broken.js").write_text("SYNTAX")
    (folder / "throws.js").write_text("THROWS")
    for name, message in (
        ("broken.js", "failed: 3:14"),
        ("throws.js", "failed: the module"),
        ("large.js", "1048577 bytes"),
        ("bytes.js", "byte 4 is 0xff"),
        ("empty.js", "empty"),
    ):
        with pytest.raises(InvalidArgument, match=message) as caught:
            await node.create(name)
        assert caught.value.field == "entrypoint"
    assert await node.count("functions") == 0


async def _only(node: Node) -> Any:
    (function,) = (await node.registry.list(node.project_id)).items
    return function


async def test_with_the_real_compiler_a_syntax_error_is_told_in_lines_of_the_source(node: Node) -> None:
    deployer = real_deployer(node)
    source = "type Order = { id: number }\n\nexport default (order: Order) => {\n  return order.id +;\n}\n"
    with pytest.raises(InvalidArgument, match=r'^Compilation failed: 4:20: Unexpected ";"') as caught:
        await deploy_typescript(deployer, node, source)
    assert caught.value.metadata == {"line": "4", "column": "20", "line_text": "  return order.id +;"}
    with pytest.raises(InvalidArgument, match=r"^Compilation failed: 1:1: The module has no default export"):
        await deploy_typescript(deployer, node, "export const x: number = 1")
    await assert_nothing_changed(node)


async def test_with_the_real_compiler_types_are_gone_from_what_runs(node: Node) -> None:
    await deploy_typescript(real_deployer(node), node, "export default (input: number): number => input + 1")
    code = await node.code()
    assert (": number" in code, "input + 1" in code) == (False, True)


def real_deployer(node: Node) -> Deployer:
    runtimes = {"quickjs": Runtime(engine=node.engine, build=build)}
    return Deployer(node.lifecycle, node.artifacts, runtimes=runtimes, settings=Settings())


async def deploy_typescript(deployer: Deployer, node: Node, source: str) -> None:
    await deployer.deploy(
        node.project_id,
        None,
        name="Hello",
        slug="hello",
        runtime="quickjs",
        language="typescript",
        source=source,
        isolation="",
    )
