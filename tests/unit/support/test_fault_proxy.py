"""Each fault of the network between processes does what it says, to old and new connections."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.fault_proxy import FaultProxy, Link


@pytest.fixture
def echo() -> Iterator[str]:
    """A server that gives back what it gets, and ends its side when the client has ended its own."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                while chunk := connection.recv(65536):
                    connection.sendall(chunk)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def link(echo: str) -> Iterator[Link]:
    with FaultProxy() as network:
        yield network.link("client-echo", echo)


def _connect(link: Link, timeout_s: float = 5) -> socket.socket:
    host, _, port = link.address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout_s)
    connection.settimeout(timeout_s)
    return connection


def _exchange(connection: socket.socket, content: bytes) -> bytes:
    connection.sendall(content)
    return _receive(connection, len(content))


def _receive(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        chunk = connection.recv(65536)
        if not chunk:
            raise ConnectionResetError("ended")
        received += chunk
    return received


def test_it_passes_both_ways_counts_and_passes_the_end_on(link: Link) -> None:
    with _connect(link) as connection:
        content = bytes(range(256)) * 4_000
        threading.Thread(target=connection.sendall, args=(content,), daemon=True).start()
        assert _receive(connection, len(content)) == content
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert (link.bytes_up, link.bytes_down, link.connections) == (len(content), len(content), 1)


def test_a_cut_resets_old_and_new_connections_until_it_heals(link: Link) -> None:
    with _connect(link) as connection:
        assert _exchange(connection, b"before") == b"before"
        link.cut()
        with pytest.raises(ConnectionError):
            _exchange(connection, b"during")
        with pytest.raises(ConnectionError), _connect(link) as new:
            _exchange(new, b"during")
        link.pass_()
        with _connect(link) as new:
            assert _exchange(new, b"after") == b"after"


def test_a_blackhole_tells_nobody_and_delivers_late(link: Link) -> None:
    with _connect(link, 0.3) as connection:
        assert _exchange(connection, b"before") == b"before"
        link.blackhole()
        carried = link.bytes_carried
        with _connect(link, 0.3) as new:
            for one in (connection, new):
                with pytest.raises(TimeoutError):
                    _exchange(one, b"during")
            assert link.bytes_carried == carried
            link.pass_()
            for one in (connection, new):
                one.settimeout(5)
                assert _receive(one, 6) == b"during"


def test_a_delay_delays_and_does_not_limit(link: Link) -> None:
    link.slow(0.2)
    with _connect(link) as connection:
        began = time.monotonic()
        content = b"x" * 2_000_000
        threading.Thread(target=connection.sendall, args=(content,), daemon=True).start()
        assert _receive(connection, len(content)) == content
        assert 0.4 <= time.monotonic() - began < 3
        link.pass_()
        began = time.monotonic()
        _exchange(connection, b"fast again")
        assert time.monotonic() - began < 0.2


def test_a_throttle_limits_all_connections_together(link: Link) -> None:
    link.throttle(1_000_000)
    began = time.monotonic()
    with _connect(link) as one, _connect(link) as two:
        for connection in (one, two):
            connection.sendall(b"x" * 200_000)
        for connection in (one, two):
            _receive(connection, 200_000)
    assert 0.35 <= time.monotonic() - began < 2


def test_connections_can_be_broken_once(link: Link) -> None:
    with _connect(link) as connection:
        _exchange(connection, b"before")
        link.break_connections()
        with pytest.raises(ConnectionError):
            _exchange(connection, b"after")
    with _connect(link) as connection:
        assert _exchange(connection, b"new") == b"new"


def test_nobody_behind_it_ends_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with FaultProxy() as network:
        link = network.link("nobody", f"127.0.0.1:{port}")
        with _connect(link) as connection, pytest.raises(ConnectionError):
            _exchange(connection, b"hello")
