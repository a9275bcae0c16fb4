"""A process that runs a transaction with an event and a mark, and is killed where it is told to be.

argv: JSON {admin_url, secret, project_id, nats_url, run_id, event_id, where}
"""

import asyncio
import json
import os
import signal
import sys
from typing import Any, cast

import orjson

from engines.contract import Limits
from server.events.bus import EventBus
from server.events.publisher import Publisher
from server.host.api import HostApi, InvocationHost
from server.host.database import Database
from server.host.origin import Origin
from server.host.publishing import Publishing
from server.postgres.tenants import Tenants
from server.settings import Settings


async def main(told: dict[str, Any]) -> None:
    tenants = Tenants(told["admin_url"], secret=bytes.fromhex(told["secret"]))
    bus = EventBus(told["nats_url"])
    await bus.start()
    none = cast(Any, None)
    api = HostApi(Database(tenants), none, none, publishing=Publishing(Publisher(bus, Settings()), bus))
    limits = Limits(wall_ms=20_000, cpu_ms=1_000, memory_bytes=1, fetch_calls=0)
    origin = Origin(run_id=told["run_id"], event_id=told["event_id"], trigger_id=told["run_id"])
    host = api.for_invocation(told["project_id"], limits, origin=origin)

    def die_at(place: str) -> None:
        if told["where"] == place:
            os.kill(os.getpid(), signal.SIGKILL)

    held = asyncio.create_task(ask(host, "tx.open", 1, {"exactly_once": ""}))
    await asyncio.sleep(0)
    begun = await ask(host, "tx.begin", 1)
    if begun is not None:
        await held
        print(json.dumps(begun))
        return
    await ask(host, "tx.query", 1, "INSERT INTO t VALUES (1)")
    await ask(host, "events.publish", "order.paid", 1, None, 1)
    die_at("before the commit")
    await ask(host, "tx.commit", 1, "done")
    die_at("after the commit")
    await held
    print(json.dumps({"value": "new"}))


async def ask(host: InvocationHost, op: str, *args: object) -> Any:
    return orjson.loads(await host.call(op, orjson.dumps(args)))


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
