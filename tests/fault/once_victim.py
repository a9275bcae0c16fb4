"""A worker that kills itself beside the commit of an exactly_once run: `python -m tests.fault.once_victim JSON`.

JSON {control_url, nats_url, admin_url, secret, function_id, where}
"""

import asyncio
import json
import os
import signal
import sys
from types import SimpleNamespace
from typing import Any, cast

from engines.quickjs.engine import QuickJS
from server.dispatch.dispatcher import Dispatcher
from server.events.bus import EventBus
from server.functions.settings import FunctionSettings
from server.host.api import HostApi
from server.host.database import Database
from server.host.run_transaction import RunTransaction
from server.invocations.invoke import Invoker
from server.invocations.observation import Observer
from server.postgres.changes import Changes
from server.postgres.control import open_pool
from server.postgres.tenants import Tenants
from server.runs.running import Running
from server.settings import Settings
from server.triggers.cache import TriggerCache
from tests.fix_dispatch import SETTINGS
from tests.fix_sandbox import program

WHERE = ("before the commit", "after the commit")
CODE = """
  const [row] = await atlas.db.query("INSERT INTO orders (pid) VALUES ($1) RETURNING id", [ctx.invocation_id]);
  await atlas.db.query("UPDATE stock SET n = n - 1");
  return row.id"""


def real_invoker(engine: QuickJS, database: Database, function_id: str) -> Invoker:
    """Of one exactly_once function, in a real sandbox with the real host."""
    function = SimpleNamespace(
        id=function_id, runtime="quickjs", slug="hello", version=1, settings=FunctionSettings(), exactly_once=True
    )
    none = cast(Any, None)

    async def resolve(project_id: str, slug: str) -> Any:
        return SimpleNamespace(
            program=program(CODE, project=project_id),
            function=SimpleNamespace(**vars(function), project_id=project_id),
            source_map=None,
            env_json=b"{}",
            limits_for=function.settings.bound,
        )

    return Invoker(
        catalog=cast(Any, SimpleNamespace(resolve=resolve)),
        engines={"quickjs": engine},
        hosts=HostApi(database, none, none),
        settings=Settings(),
        slots=none,
        running=Running(),
        sink=cast(Any, SimpleNamespace(add=lambda record: None)),
        observer=Observer(),
    )


async def main(told: dict[str, str]) -> None:
    real = RunTransaction.commit

    async def commit(whole: RunTransaction, answer: str) -> None:
        if told["where"] == "after the commit":
            await real(whole, answer)
        os.kill(os.getpid(), signal.SIGKILL)

    cast(Any, RunTransaction).commit = commit
    tenants = Tenants(told["admin_url"], secret=bytes.fromhex(told["secret"]))
    engine, changes, bus = QuickJS(spares=1, max_children=4), Changes(told["control_url"]), EventBus(told["nats_url"])
    async with open_pool(told["control_url"], max_size=6) as pool:
        await engine.start()
        triggers = TriggerCache(pool, changes)
        dispatcher = Dispatcher(
            bus=bus,
            settings=SETTINGS,
            pool=pool,
            changes=changes,
            triggers=triggers,
            invoker=real_invoker(engine, Database(tenants), told["function_id"]),
            slots=8,
            lease_s=1.0,
        )
        await bus.start()
        await changes.start()
        await triggers.start()
        await dispatcher.start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
