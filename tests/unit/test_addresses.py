"""Which addresses user code may reach."""

from ipaddress import ip_network

import pytest

from server.host.addresses import may_reach

EVERYTHING = [ip_network("0.0.0.0/0"), ip_network("::/0")]

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "100.63.255.255",
    "172.32.0.1",
    "2606:4700:4700::1111",
    "::ffff:1.1.1.1",
    "64:ff9b::101:101",
]

NOT_PUBLIC = [
    "127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1",
    "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.7", "203.0.113.7", "::1", "fc00::1", "fdff::1", "2001:db8::1",
    "2001:10::1", "3fff::1", "4000::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "::7f00:1",
]  # fmt: skip

NEVER = [
    "0.0.0.0", "0.1.2.3", "169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192",
    "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "fe80::1", "fe80::1%eth0", "ff02::1",
    "fd00:ec2::254", "fd20:ce::254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe",
    "2002:a9fe:a9fe::1", "2002:7f00:1::1", "2002:101:101::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2606::1%lo",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert may_reach(address, ())


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_not_public_unless_allowed(address: str) -> None:
    assert not may_reach(address, ())
    assert may_reach(address, EVERYTHING)


@pytest.mark.parametrize("address", NEVER)
def test_never(address: str) -> None:
    assert not may_reach(address, ())
    assert not may_reach(address, EVERYTHING)


def test_an_allowed_range_opens_only_itself() -> None:
    allowed = [ip_network("10.1.0.0/16")]
    assert may_reach("10.1.2.3", allowed)
    assert may_reach("::ffff:10.1.2.3", allowed)
    assert not may_reach("10.2.0.1", allowed)
