"""Where the stack is reached, and whether it serves there."""

import asyncio
import os
import socket
import time
from http.client import HTTPConnection, HTTPException
from typing import Final

from server.settings import Settings
from server.stack.part import PartFailed

HEALTHY_WITHIN_S: Final = 30.0


class PortTaken(Exception):
    """Another program listens where Envoy should."""


def require_free(settings: Settings) -> None:
    """PortTaken when Envoy could not listen."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST
        )[0]
    except socket.gaierror:
        raise PortTaken(f"ATLAS_HOST={settings.host!r} is not an IP address") from None
    with socket.socket(family, kind, proto) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as why:
            raise PortTaken(
                f"cannot listen on {settings.host} port {settings.port}: {os.strerror(why.errno or 0)}. "
                "Stop what uses it, or choose another with ATLAS_PORT (and ATLAS_HOST)"
            ) from None


def reachable_host(host: str) -> str:
    """The address by which this machine reaches a listener on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104


def shown_url(settings: Settings) -> str:
    host = reachable_host(settings.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


async def wait_healthy(settings: Settings) -> None:
    """Wait until the whole path works, through Envoy and every part. PartFailed with the last answer if it does not."""
    began_s = time.monotonic()
    answer = "no answer"
    while time.monotonic() - began_s < HEALTHY_WITHIN_S:
        status, answer = await asyncio.to_thread(_health, settings)
        if status == 200:
            return
        await asyncio.sleep(0.1)
    raise PartFailed(f"/healthz did not become healthy within {HEALTHY_WITHIN_S:g} s; its last answer: {answer[:1000]}")


def _health(settings: Settings) -> tuple[int, str]:
    connection = HTTPConnection(reachable_host(settings.host), settings.port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    except (OSError, HTTPException) as why:
        return 0, str(why)
    finally:
        connection.close()
