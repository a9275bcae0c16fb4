"""A process that starts while its servers are away waits for them."""

import asyncio

import pytest

from server import prerequisites
from server.settings import Settings
from tests.fix_runs import OwnNats


def settings(postgres_url: str, nats_url: str) -> Settings:
    return Settings(database_url=postgres_url, tenant_database_url=postgres_url, nats_url=nats_url)


async def test_it_returns_when_all_answer(postgres_url: str, nats_url: str) -> None:
    await prerequisites.present(settings(postgres_url, nats_url))


async def test_it_waits_for_one_that_comes_later(postgres_url: str, own_nats: OwnNats) -> None:
    own_nats.stop()
    waiting = asyncio.create_task(prerequisites.present(settings(postgres_url, own_nats.url)))
    await asyncio.wait([waiting], timeout=3 * prerequisites.AGAIN_S)
    assert not waiting.done()
    await asyncio.to_thread(own_nats.start)
    await waiting


async def test_it_gives_up_with_what_was_wrong(postgres_url: str, own_nats: OwnNats) -> None:
    own_nats.stop()
    with pytest.raises(prerequisites.ABSENT):
        await prerequisites.present(settings(postgres_url, own_nats.url), patience_s=0.3)


async def test_a_database_that_does_not_answer_is_awaited_too(postgres_url: str, nats_url: str) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    with pytest.raises(prerequisites.ABSENT, match="refused"):
        await prerequisites.present(settings(nowhere, nats_url), patience_s=0.3)
