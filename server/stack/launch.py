"""Which parts a stack has, from its settings, and their start."""

import asyncio
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from server.settings import Settings
from server.stack import api, bootstrap, envoy, nats, postgres, valkey, worker
from server.stack.account import own_name, servant
from server.stack.credentials import Credentials
from server.stack.part import Part
from server.stack.places import Places
from server.stack.progress import ready
from server.stack.supervisor import Supervisor

MOST_API_PROCESSES: Final = 4


async def start_servers(settings: Settings, home: Places, secrets: Credentials, supervisor: Supervisor) -> Settings:
    """Start those servers whose variable points nowhere; the settings with the URLs of all."""
    account = servant()
    parts: list[Part] = []
    server_url = ""
    if not (settings.database_url and settings.tenant_database_url):
        own_name()
        data, sockets = home.data / "postgres", home.run / "pg"
        began_s = time.monotonic()
        first = not (data / "cluster").exists()
        bin_dir = await asyncio.to_thread(postgres.prepare, data, sockets, home.programs, account)
        if first:
            ready("postgres", time.monotonic() - began_s, "new cluster")
        parts.append(postgres.part(data, sockets, bin_dir, home.log("postgres"), account))
        server_url = postgres.url(sockets, "postgres")
        settings = replace(
            settings,
            database_url=settings.database_url or postgres.url(sockets, bootstrap.CONTROL),
            tenant_database_url=settings.tenant_database_url or postgres.url(sockets, bootstrap.TENANTS),
        )
    if not settings.nats_url:
        port = nats.free_port()
        parts.append(
            nats.part(
                data=home.data / "nats",
                port=port,
                config=home.run / "nats.conf",
                programs=home.programs,
                log=home.log("nats"),
                token=secrets.nats_token,
                account=account,
            )
        )
        settings = replace(settings, nats_url=nats.url(port, secrets.nats_token))
    if not settings.redis_url:
        path = home.run / "kv" / "valkey.sock"
        parts.append(
            valkey.part(
                data=home.data / "valkey",
                socket=path,
                config=home.run / "valkey.conf",
                programs=home.programs,
                log=home.log("valkey"),
                password=secrets.valkey_password,
                account=account,
            )
        )
        settings = replace(settings, redis_url=valkey.url(path, secrets.valkey_password))
    await _start_together(parts, supervisor)
    if server_url:
        await bootstrap.create_databases(server_url)
    return settings


async def start_own(settings: Settings, home: Places, supervisor: Supervisor) -> list[Path]:
    """API and worker processes, then Envoy; the log files of the former two."""
    account = envoy.front_account(settings.port)
    counts = home.run / "metrics"
    shutil.rmtree(counts, ignore_errors=True)
    settings = replace(settings, metrics_dir=counts)
    count = settings.api_processes or min(len(os.sched_getaffinity(0)), MOST_API_PROCESSES)
    sockets = [home.run / "api" / f"{number}.sock" for number in range(count)]
    parts = [
        api.part(f"api-{number}", replace(settings, api_socket=path), home.log(f"api-{number}"), account)
        for number, path in enumerate(sockets)
    ]
    for number in range(settings.worker_processes):
        name = f"worker-{number}"
        path = home.run / "worker" / f"{number}.sock"
        parts.append(worker.part(name, replace(settings, worker_socket=path), home.log(name)))
    await _start_together(parts, supervisor)
    front = envoy.Front(
        host=settings.host,
        port=settings.port,
        api_sockets=sockets,
        admin_socket=home.run / "envoy" / "admin.sock",
        access_log=home.log("access"),
        descriptors=envoy.descriptors(),
    )
    door = envoy.part(
        front=front, home=home.run / "envoy", programs=home.programs, log=home.log("envoy"), account=account
    )
    await _start_together([door], supervisor)
    return [part.log for part in parts]


async def _start_together(parts: list[Part], supervisor: Supervisor) -> None:
    async def start(part: Part) -> None:
        ready(part.name, await supervisor.start(part))

    tasks = [asyncio.create_task(start(part), name=f"start {part.name}") for part in parts]
    try:
        for task in asyncio.as_completed(tasks):
            await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
