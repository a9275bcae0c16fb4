"""Who gets a connection, who waits, whose idle one is given up: with connections that are only counted."""

import asyncio

import pytest

from server.host.connections import Connections, NoConnection


class Fake:
    def __init__(self, project_id: str) -> None:
        self.project_id = project_id
        self.alive = True
        self.abandoned = False
        self.closed = asyncio.Event()

    def close(self) -> None:
        self.alive = False
        self.closed.set()

    async def wait_closed(self) -> None:
        pass

    async def abandon(self) -> None:
        self.abandoned = True
        self.alive = False


class Pool:
    def __init__(self, *, total: int = 4, per_project: int = 2, idle_s: float = 60, wait_s: float = 10) -> None:
        self.made: list[Fake] = []
        self.fail = False
        self.connections: Connections[Fake] = Connections(
            self._connect, total=total, per_project=per_project, idle_s=idle_s, wait_s=wait_s
        )

    async def _connect(self, project_id: str) -> Fake:
        if self.fail:
            raise OSError("down")
        self.made.append(Fake(project_id))
        return self.made[-1]

    async def use(self, project_id: str, until: asyncio.Event | None = None) -> Fake:
        async with self.connections.lease(project_id) as connection:
            if until:
                await until.wait()
            return connection

    @property
    def state(self) -> str:
        return repr(self.connections)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_connection_is_used_again() -> None:
    pool = Pool()
    assert await pool.use("a") is await pool.use("a")
    assert pool.state == "<Connections 0 in use, 1 idle, 0 waiting>"
    await pool.connections.close()
    assert not pool.made[0].alive
    assert pool.state == "<Connections 0 in use, 0 idle, 0 waiting>"


async def test_a_project_waits_for_its_own_limit_and_others_do_not() -> None:
    pool, go = Pool(), asyncio.Event()
    busy = [asyncio.create_task(pool.use("a", go)) for _ in range(3)]
    await settle()
    assert pool.state == "<Connections 2 in use, 0 idle, 1 waiting>"
    await pool.use("b")
    go.set()
    await asyncio.gather(*busy)
    assert len([each for each in pool.made if each.project_id == "a"]) == 2


async def test_the_oldest_idle_connection_gives_way() -> None:
    pool = Pool(total=2)
    first, second = await pool.use("a"), await pool.use("b")
    third = await pool.use("c")
    assert (first.alive, second.alive, third.alive) == (False, True, True)


async def test_a_full_house_serves_first_come_first() -> None:
    pool, go = Pool(total=1), asyncio.Event()
    busy = asyncio.create_task(pool.use("a", go))
    await settle()
    served: list[str] = []

    async def wait(name: str) -> None:
        await pool.use(name)
        served.append(name)

    waiting = [asyncio.create_task(wait(name)) for name in ("b", "c", "d")]
    await settle()
    go.set()
    await asyncio.gather(busy, *waiting)
    assert served == ["b", "c", "d"]


async def test_waiting_ends() -> None:
    pool, go = Pool(total=1, wait_s=0.01), asyncio.Event()
    busy = asyncio.create_task(pool.use("a", go))
    await settle()
    with pytest.raises(NoConnection):
        await pool.use("b")
    go.set()
    await busy
    await pool.use("b")


async def test_a_cancelled_waiter_passes_its_turn_on() -> None:
    pool, go = Pool(total=1), asyncio.Event()
    busy = asyncio.create_task(pool.use("a", go))
    await settle()
    lost, kept = asyncio.create_task(pool.use("b")), asyncio.create_task(pool.use("c"))
    await settle()
    go.set()
    await busy
    lost.cancel()  # its connection may have been granted by now
    await kept
    await asyncio.gather(lost, return_exceptions=True)
    assert pool.state == "<Connections 0 in use, 1 idle, 0 waiting>"


async def test_any_exception_abandons_the_connection() -> None:
    pool = Pool()
    with pytest.raises(KeyError):
        async with pool.connections.lease("a") as connection:
            raise KeyError
    assert connection.abandoned
    assert pool.state == "<Connections 0 in use, 0 idle, 0 waiting>"


async def test_a_failure_to_connect_frees_the_place() -> None:
    pool = Pool(total=1)
    pool.fail = True
    for _ in range(3):
        with pytest.raises(OSError, match="down"):
            await pool.use("a")
    pool.fail = False
    await pool.use("a")


async def test_a_dead_connection_is_not_handed_out() -> None:
    pool = Pool()
    first = await pool.use("a")
    first.alive = False
    assert await pool.use("a") is not first


async def test_idle_connections_end_in_time() -> None:
    pool = Pool(idle_s=0.0)
    connection = await pool.use("a")
    async with asyncio.timeout(5):
        await connection.closed.wait()
    assert pool.state == "<Connections 0 in use, 0 idle, 0 waiting>"


async def test_forget_closes_one_projects_idle_connections() -> None:
    pool = Pool()
    mine, other = await pool.use("a"), await pool.use("b")
    await pool.connections.forget("a")
    assert (mine.alive, other.alive) == (False, True)
