"""A worker process of its own that runs steps of workflows, to be killed: `workflow_worker.py DATABASE_URL NATS_URL`.

Every attempt is written down before it does anything. Leases are short, so that what it leaves is taken over soon.
"""

import asyncio
import random
import sys

from server.events.bus import EventBus
from server.postgres.control import Pool, open_pool, transaction
from server.workflows import claims, queue, worker
from server.workflows.nodes.condition import ConditionNode
from server.workflows.nodes.delay import DelayNode
from server.workflows.nodes.step import Attempt, NodeType, Output
from server.workflows.worker import StepWorker

LEASE_S = 3.0
RENEW_S = 0.4
SWEEP_S = 0.1


class Noted:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def run(self, attempt: Attempt) -> Output:
        async with transaction(self._pool) as conn:
            await conn.execute(
                "INSERT INTO noted (run_id, node_id, at) VALUES (%s, %s, clock_timestamp())",
                [attempt.run_id, attempt.node.id],
            )
        await asyncio.sleep(random.uniform(0.05, 0.3))
        return Output(json=b'"done"')


async def main(database_url: str, nats_url: str) -> None:
    queue.LEASE_S = LEASE_S  # type: ignore[misc]
    worker.SWEEP_S = SWEEP_S  # type: ignore[misc]
    claims.RENEW_EVERY_S = RENEW_S  # type: ignore[misc]
    async with open_pool(database_url) as pool:
        bus = EventBus(nats_url)
        await bus.start()
        types: dict[str, NodeType] = {"kv": Noted(pool), "condition": ConditionNode(), "delay": DelayNode()}
        await StepWorker(pool, bus, types, concurrency=8).start()
        print("working", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
