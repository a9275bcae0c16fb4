"""Attacks through sockets: out to a network, and to other descriptors."""

import os
import socket

from engines import linux
from tests.escape.armoury import SOCKET, TARGET, attack, checked


@attack
def tcp_connect() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM).connect(("127.0.0.1", int(TARGET["port"])))


@attack
def tcp_listen() -> None:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen()


@attack
def udp_send() -> object:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))


@attack
def unix_socket() -> object:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


@attack
def abstract_unix_listen() -> object:
    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).bind(b"\0escaped-%d" % os.getpid())
    return True


@attack
def netlink_socket() -> object:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)


@attack
def packet_socket() -> object:
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)


@attack
def socket_pair() -> object:
    return socket.socketpair()


@attack
def listen_on_own_socket() -> None:
    checked(linux.libc.listen(SOCKET, 1))


@attack
def receive_a_descriptor() -> object:
    os.write(SOCKET, b"more")
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=SOCKET)
    try:
        _, descriptors, _, _ = socket.recv_fds(ours, 16, 1)
    finally:
        ours.detach()
    if not descriptors:
        raise OSError("no descriptor came through")
    return descriptors
