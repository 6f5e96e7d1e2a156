"""What the kernel tells of connections between processes, and by zone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.sockets import ZoneSockets, connections, require_ss

_ECHO = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    while chunk := connection.recv(65536):
        connection.sendall(chunk)
"""


@pytest.fixture
def other() -> Iterator[tuple[int, socket.socket]]:
    """A process that gives back what it gets, and the connection to it."""
    require_ss()
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = subprocess.Popen([sys.executable, "-c", _ECHO, str(server.getsockname()[1])])
        connection, _ = server.accept()
    with connection:
        yield process.pid, connection
    assert process.wait(10) == 0


def _exchange(connection: socket.socket, size: int) -> None:
    connection.sendall(b"x" * size)
    left = size
    while left:
        left -= len(connection.recv(65536))


@pytest.mark.parametrize("zone", ["a", "b"])
def test_bytes_count_both_ways_from_the_first_look_on(other: tuple[int, socket.socket], zone: str) -> None:
    pid, connection = other
    _exchange(connection, 5_000)
    sockets = ZoneSockets({os.getpid(): "a", pid: zone})
    sockets.look()
    assert sum(sockets.within.values()) == sum(sockets.across.values()) == 0
    assert not sockets.across
    _exchange(connection, 1_000)
    sockets.look()
    _exchange(connection, 500)
    sockets.look()
    pair = (min(pid, os.getpid()), max(pid, os.getpid()))
    counted, other_kind = (sockets.within, sockets.across) if zone == "a" else (sockets.across, sockets.within)
    assert counted == {pair: 3_000}
    assert not other_kind


def test_a_new_connection_across_zones_is_named_before_it_carries_anything() -> None:
    require_ss()
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = subprocess.Popen([sys.executable, "-c", _ECHO, str(server.getsockname()[1])])
        sockets = ZoneSockets({os.getpid(): "a", process.pid: "b"})
        connection, _ = server.accept()
        with connection:
            sockets.look()
            assert list(sockets.across.values()) == [0]
    assert process.wait(10) == 0


def test_processes_of_no_zone_are_not_counted(other: tuple[int, socket.socket]) -> None:
    _, connection = other
    sockets = ZoneSockets({os.getpid(): "a"})
    _exchange(connection, 1_000)
    sockets.look()
    assert not sockets.within
    assert not sockets.across


def test_java_shows_ipv4_addresses_in_its_own_way() -> None:
    require_ss()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET6) as client:
        client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        client.connect((f"::ffff:{server.getsockname()[0]}", server.getsockname()[1]))
        accepted, peer = server.accept()
        with accepted:
            own = f"{peer[0]}:{peer[1]}"
            assert [ends for ends in connections() if own in (ends.low, ends.high)]
