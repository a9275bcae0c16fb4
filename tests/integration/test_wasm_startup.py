"""How the Wasm engine comes up: nobody waits who need not, everybody is told, and a failure is tried again."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from engines.contract import Outcome
from engines.runtimes import EngineNotReady
from engines.wasm import image, startup
from engines.wasm.engine import Wasm
from engines.wasm.image import Image
from tests.fix_sandbox import is_alive
from tests.fix_wasm_engine import SECRET, Bench, wasm_engine


@contextlib.asynccontextmanager
async def closing(engine: Wasm) -> AsyncIterator[Wasm]:
    try:
        yield engine
    finally:
        await engine.close()


def built(found: Image) -> Callable[..., object]:
    async def ensure(cache_dir: Path, *, say: object = None) -> Image:
        return found

    return ensure


async def never(cache_dir: Path, *, say: Callable[[str], None]) -> Image:
    say("compiling quickjs.c")
    await asyncio.Event().wait()
    raise AssertionError


async def test_start_does_not_wait_and_who_needs_it_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(image, "ensure", never)
    async with closing(Wasm(cache_dir=tmp_path, secret=SECRET, patience_s=0.05)) as engine:
        with caplog.at_level(logging.INFO):
            await engine.start()
            with pytest.raises(EngineNotReady, match=r"is being built, which is done once: compiling quickjs\.c"):
                await engine.accept(b"\0asm\1\0\0\0")
        assert engine.report()["state"] == "being built: compiling quickjs.c"
        assert "compiling quickjs.c" in caplog.text


async def test_a_start_that_failed_is_tried_again_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wasm_image: Image, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(cache_dir: Path, *, say: object) -> Image:
        raise image.ImageFault("no compiler")

    monkeypatch.setattr(image, "ensure", fails)
    async with closing(wasm_engine(cache_dir=tmp_path)) as engine:
        await engine.start()
        for said in ("could not be started: no compiler", "tried again in a moment"):
            with pytest.raises(EngineNotReady, match=said):
                await engine.accept(b"\0asm\1\0\0\0")
        assert engine.report()["state"] == "failed"
        assert "cannot be built: no compiler" in caplog.text
        monkeypatch.setattr(startup, "RETRY_S", 0.0)
        monkeypatch.setattr(image, "ensure", built(wasm_image))
        assert (await Bench(engine).run("return 1")).value == b"1"
        assert engine.report()["state"] == "running"


async def test_an_empty_cache_is_filled_once_and_a_damaged_one_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wasm_image: Image
) -> None:
    monkeypatch.setattr(image, "ensure", built(wasm_image))
    for _ in range(2):
        async with closing(wasm_engine(cache_dir=tmp_path)) as engine:
            results = await asyncio.gather(*(Bench(engine).run("return 1") for _ in range(4)))
            assert [result.outcome for result in results] == [Outcome.OK] * 4
            pids = engine.pids()
        assert not any(map(is_alive, pids))
        entries = list((tmp_path / "compiled" / "engine").iterdir())
        assert len(entries) == 1
        entries[0].write_bytes(b"\0" * 5_000_000)
