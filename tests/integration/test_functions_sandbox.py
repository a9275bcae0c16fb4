"""A deploy through the real compiler and the real sandbox: what its author did wrong, in terms of the source."""

from collections.abc import AsyncIterator

import pytest

from engines.build import build
from engines.quickjs.engine import QuickJS
from engines.runtimes import Runtime
from server.errors import InvalidArgument
from server.functions.deploy import Deployer
from server.functions.records import Function
from server.settings import Settings
from tests.fix_functions import Node


@pytest.fixture
async def deployer(node: Node) -> AsyncIterator[Deployer]:
    engine = QuickJS(spares=1)
    await engine.start()
    runtimes = {"quickjs": Runtime(engine=engine, build=build)}
    yield Deployer(node.lifecycle, node.artifacts, runtimes=runtimes, settings=Settings())
    await engine.close()


async def deploy(deployer: Deployer, node: Node, source: str, language: str = "javascript") -> Function:
    return await deployer.deploy(
        node.project_id,
        "free",
        name="Hello",
        slug="hello",
        runtime="quickjs",
        language=language,
        source=source,
        isolation="",
    )


async def test_a_good_module_is_deployed(deployer: Deployer, node: Node) -> None:
    source = "enum Size { S = 1 }\nexport default async (input: { n: Size }) => input.n + Size.S\n"
    assert (await deploy(deployer, node, source, "typescript")).version == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("let x = 1\n\nx.y.z = 2\nexport default () => x", r"TypeError: .* \(at 3:1?\d\)$"),
        ("throw new RangeError('no')\nexport default () => 1", r"RangeError: no \(at 1:\d+\)$"),
        ("export default 42", "default export"),
        ("for (;;);\nexport default () => 1", r"its top level used \S+ m?s of \S+ m?s of (cpu|wall clock)$"),
        (
            "const a = []; for (;;) a.push('x'.repeat(1e6) + a.length)\nexport default () => a",
            r"more memory than 16 MiB$",
        ),
    ],
    ids=["typo", "throw", "no function", "loop", "memory"],
)
async def test_what_does_not_load_is_a_compilation_failure_at_a_place(
    deployer: Deployer, node: Node, source: str, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message) as caught:
        await deploy(deployer, node, source)
    assert caught.value.message.startswith("Compilation failed: the module could not be loaded: ")
    assert (caught.value.field, await node.count("functions"), node.files()) == ("source", 0, set())
