"""A process that relays changes until it is killed: `python -m tests.fault.cdc_relay TENANTS_URL NATS_URL`."""

import asyncio
import sys
from pathlib import Path

import uvloop

from server import log
from server.cdc.relay import Relay
from server.events.bus import EventBus
from server.postgres.tenants import Tenants
from server.settings import Settings
from server.telemetry.metrics import Metrics

SECRET = bytes(32)


async def main(tenants_url: str, nats_url: str) -> None:
    log.configure("info")
    settings = Settings(events_keep_hours=1, events_keep_mb=2048)
    tenants = Tenants(tenants_url, secret=SECRET, other_databases=())
    bus = EventBus(nats_url)
    while True:
        try:
            await bus.start()
            break
        except Exception:
            await asyncio.sleep(0.1)
    await Relay(tenants, bus, settings, Metrics()).start()
    await asyncio.Event().wait()


def peak_bytes(pid: int) -> int:
    """Of resident memory since it started."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
