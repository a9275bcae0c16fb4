"""Which addresses user code may reach: the public internet, and what the operator allows beside it. Pure.

    never       link-local and metadata services, "this network", multicast, reserved: no setting opens them
    allowed     the operator's ranges
    not public  loopback, private, shared (CGNAT), documentation, benchmarking, everything outside 2000::/3
    public      the rest

An IPv6 address that carries an IPv4 one (mapped, NAT64) is judged by that; tunnels (6to4, Teredo) are never used.
"""

import ipaddress
from collections.abc import Sequence
from typing import Final

from server.settings import Network

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _networks(*ranges: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(each) for each in ranges)


NEVER: Final = _networks(
    "0.0.0.0/8",  # this network; Linux connects 0.0.0.0 to itself
    "169.254.0.0/16",  # link-local: metadata of AWS, GCP, Azure, DigitalOcean, OpenStack, ECS
    "100.100.100.200/32",  # metadata of Alibaba Cloud
    "168.63.129.16/32",  # Azure's wire server
    "192.0.0.192/32",  # metadata of Oracle Cloud
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, and broadcast
    "::/128",
    "64:ff9b:1::/48",  # a network's own NAT64
    "2001::/32",  # Teredo
    "2002::/16",  # 6to4
    "fd00:ec2::/32",  # metadata of AWS
    "fd20:ce::254/128",  # metadata of GCP
    "fe80::/10",  # link-local
    "ff00::/8",  # multicast
)

NOT_PUBLIC: Final = _networks(
    "10.0.0.0/8",
    "100.64.0.0/10",  # shared address space (CGNAT)
    "127.0.0.0/8",
    "172.16.0.0/12",
    "192.0.0.0/24",  # IETF protocol assignments
    "192.0.2.0/24",  # documentation
    "192.88.99.0/24",  # 6to4 relays
    "192.168.0.0/16",
    "198.18.0.0/15",  # benchmarking
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "2001::/23",  # IETF protocol assignments
    "2001:db8::/32",  # documentation
    "3fff::/20",  # documentation
)

GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
CARRIERS: Final = (ipaddress.IPv6Network("::ffff:0:0/96"), ipaddress.IPv6Network("64:ff9b::/96"))


def may_reach(text: str, allowed: Sequence[Network]) -> bool:
    """Whether a connection to this address, as the resolver wrote it, is permitted."""
    if "%" in text:  # a zone makes sense for link-local addresses only
        return False
    address = _judged(ipaddress.ip_address(text))
    if _in(address, NEVER):
        return False
    if _in(address, allowed):
        return True
    if isinstance(address, ipaddress.IPv6Address) and address not in GLOBAL_UNICAST:
        return False
    return not _in(address, NOT_PUBLIC)


def _judged(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv6Address) and any(address in carrier for carrier in CARRIERS):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
