"""Handshakes: who gets in, who does not and how that is told, and what those who misbehave cost the others."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent.context import Call
from agent.tls_channel import HANDSHAKE_BYTES, OPEN_BYTES
from agent.wire import apis
from tests.support.certificates import Authority
from tests.support.connections import frame
from tests.support.tls_server import MemoryClient, TlsServer, until


async def _silent(server: TlsServer, count: int) -> list[socket.socket]:
    """Clients that connect and say nothing."""
    sockets = []
    for _ in range(count):
        client = socket.socket()
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", server.port))
        sockets.append(client)
    return sockets


async def _half(server: TlsServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that says hello and nothing more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    client = MemoryClient(server.authority.client_context())
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    await client.send(writer)
    await reader.readexactly(5)
    return reader, writer


async def _refused(server: TlsServer, context: ssl.SSLContext) -> None:
    """Assert that a client with ``context`` gets no answer."""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        reader, writer = await server.connect(context=context)
        writer.write(frame(apis.API_VERSIONS, 0, 1))
        assert await reader.read() == b""


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
async def test_the_protocol_and_ciphers(tmp_path: Path) -> None:
    async with TlsServer(tmp_path) as server:
        for version, ciphers, outcome in (
            (ssl.TLSVersion.TLSv1_3, None, "TLSv1.3"),
            (ssl.TLSVersion.TLSv1_2, None, "TLSv1.2"),
            (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA", None),
            (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0", None),
        ):
            context = server.authority.client_context()
            context.set_alpn_protocols(["h2"])
            if ciphers:
                context.set_ciphers(ciphers)
            context.minimum_version = context.maximum_version = version
            if outcome is None:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await server.connect(context=context)
                continue
            streams = await server.connect(context=context)
            await server.ping(streams)
            tls = streams[1].get_extra_info("ssl_object")
            assert tls.version() == outcome
            assert tls.selected_alpn_protocol() is None
            streams[1].close()
        await until(lambda: server.metrics.tls_handshakes_failed == {"cipher": 1, "version": 1})
        assert server.metrics.tls_handshakes == 2


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_resumed_session_still_knows_the_client(tmp_path: Path, version: ssl.TLSVersion) -> None:
    authority = Authority(tmp_path, "clients")
    async with TlsServer(tmp_path, client_ca=authority, principals=("alice",)) as server:
        context = server.authority.client_context(authority.issue("alice"))
        context.minimum_version = context.maximum_version = version
        session = None
        for reused in (False, True):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            client = MemoryClient(context)
            if session is not None:
                client.tls.session = session
            await client.handshake(reader, writer)
            client.tls.write(frame(apis.API_VERSIONS, 0, 1))
            await client.send(writer)
            await client.read(reader)
            assert client.tls.session_reused is reused
            session = client.tls.session
            writer.close()


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\n\r\n", frame(apis.API_VERSIONS, 0, 1), b"\x16\x03\x01\0\x05hello"]
)
async def test_a_client_without_tls(tmp_path: Path, sent: bytes) -> None:
    with capture_logs() as lines:
        async with TlsServer(tmp_path) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(sent)
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), 5)
            writer.close()
            assert sum(server.metrics.tls_handshakes_failed.values()) == 1
            (reason,) = server.metrics.tls_handshakes_failed
    assert reason == ("protocol" if sent[0] == 0x16 else "not_tls")
    (line,) = [line for line in lines if line["event"].startswith("tls_handshake_failed")]
    assert line["event"] == f"tls_handshake_failed_{reason}"
    assert line["client"] == "/127.0.0.1"


async def test_a_client_that_does_not_trust_us(tmp_path: Path) -> None:
    async with TlsServer(tmp_path) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        client = MemoryClient(Authority(tmp_path, "stranger").client_context())
        with pytest.raises(ssl.SSLCertVerificationError):
            await client.handshake(reader, writer)
        await client.send(writer)
        writer.close()
        await until(lambda: server.metrics.tls_handshakes_failed == {"refused_by_client": 1})


async def test_clients_must_show_a_certificate_of_the_right_authority(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path, "clients"), Authority(tmp_path, "stranger")
    calls: list[Call] = []

    async def handle(call: Call, *_: Any) -> dict[str, int]:
        calls.append(call)
        return {"error_code": 0}

    async with TlsServer(tmp_path, client_ca=authority, handlers={apis.HEARTBEAT: handle}) as server:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            for pair in (None, stranger.issue("other"), authority.issue("old", valid_days=-1)):
                context = server.authority.client_context(pair)
                context.minimum_version = context.maximum_version = version
                await _refused(server, context)
        await until(lambda: server.metrics.tls_handshakes_failed == {"no_certificate": 2, "bad_certificate": 4})
        assert server.metrics.tls_handshakes == 0
        good = authority.issue("good", common_name="Shipper", dns=("ship.example", "Shipper", "b.example"))
        reader, writer = await server.connect(good)
        writer.write(frame(apis.HEARTBEAT, 0, 1, b"\0\x01g\0\0\0\x01\0\x01m"))
        await reader.readexactly(4)
        assert [call.principals for call in calls] == [("Shipper", "ship.example", "b.example")]
        writer.close()


async def test_only_admitted_principals_get_in(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "clients")
    with capture_logs() as lines:
        async with TlsServer(tmp_path, client_ca=authority, principals=("alice", "b.example")) as server:
            for stem, common_name, dns, admitted in (
                ("one", "alice", ("x.example",), True),
                ("two", "bob", ("b.example",), True),
                ("three", "mallory", ("x.example",), False),
                ("four", "*", ("*.example",), False),
                ("five", "alice2", ("ab.example",), False),
            ):
                pair = authority.issue(stem, common_name=common_name, dns=dns)
                if admitted:
                    streams = await server.connect(pair)
                    await server.ping(streams)
                    streams[1].close()
                else:
                    await _refused(server, server.authority.client_context(pair))
            await until(lambda: server.metrics.tls_handshakes_failed == {"not_admitted": 3})
            assert server.metrics.tls_handshakes == 2
    refused = [line for line in lines if line["event"] == "tls_handshake_failed_not_admitted"]
    assert len(refused) == 3
    assert "mallory, x.example" in refused[0]["reason"]


async def test_clients_that_never_speak_disturb_nobody(tmp_path: Path) -> None:
    with capture_logs() as lines:
        async with TlsServer(tmp_path, handshake_ms=1_500, connections_max=1_500) as server:
            known = await server.connect()
            sockets = await _silent(server, 1_000)
            await until(lambda: server.metrics.tls_handshakes_pending == 1_000)
            assert server.budget.by_purpose["tls"] <= OPEN_BYTES
            slowest = 0.0
            for _ in range(20):
                began = time.monotonic()
                streams = await server.connect()
                await server.ping(streams)
                await server.ping(known)
                slowest = max(slowest, time.monotonic() - began)
                streams[1].close()
            assert slowest < 1.0
            await until(lambda: server.metrics.tls_handshakes_failed["timeout"] == 1_000)
            loop = asyncio.get_running_loop()
            assert not any([await asyncio.wait_for(loop.sock_recv(client, 1), 5) for client in sockets])
            await server.ping(known)
            known[1].close()
    told = [line for line in lines if line["event"] == "tls_handshake_failed_timeout"]
    assert len(told) == 20, "the rest is counted in one line a minute"


async def test_at_the_limit_of_connections_the_silent_make_room(tmp_path: Path) -> None:
    async with TlsServer(tmp_path, connections_max=10) as server:
        known = [await server.connect() for _ in range(4)]
        sockets = await _silent(server, 6)
        await until(lambda: server.metrics.tls_handshakes_pending == 6)
        streams = await server.connect()
        await server.ping(streams)
        assert server.metrics.tls_handshakes_failed == {"no_room": 1}
        longest = asyncio.get_running_loop().sock_recv(sockets[0], 1)
        assert await asyncio.wait_for(longest, 5) == b"", "the one that was waited for the longest"
        for client in [*known, streams]:
            await server.ping(client)
        more = [await server.connect() for _ in range(5)]
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await server.connect()
        for client in [*known, streams, *more]:
            await server.ping(client)
            client[1].close()


async def test_slow_handshakes_of_one_address_do_not_keep_others_waiting(tmp_path: Path) -> None:
    """A hundred of them wait for their turn, and what is under way never rests for long enough to be ended."""
    async with TlsServer(tmp_path, handshakes_max=10) as server:
        slow = []
        for _ in range(100):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            client = MemoryClient(server.authority.client_context())
            with pytest.raises(ssl.SSLWantReadError):
                client.tls.do_handshake()
            await client.send(writer)
            slow.append(writer)
        tls = server.server._tls
        assert tls is not None
        await until(lambda: tls._begun.held == 8)
        began = time.monotonic()
        for number in range(2, 5):
            streams = await asyncio.open_connection(
                "127.0.0.1", server.port, ssl=server.authority.client_context(), local_addr=(f"127.0.0.{number}", 0)
            )
            await server.ping(streams)
            streams[1].close()
        assert time.monotonic() - began < 1.5, "before any of the slow ones is ended"
        for writer in slow:
            writer.transport.abort()


async def test_handshakes_that_stall_make_room_for_others(tmp_path: Path) -> None:
    async with TlsServer(tmp_path, handshakes_max=4) as server:
        stalled = [await _half(server) for _ in range(3)]
        assert server.budget.by_purpose["tls"] >= 3 * HANDSHAKE_BYTES
        began = time.monotonic()
        streams = await server.connect()
        await server.ping(streams)
        assert 1.0 < time.monotonic() - began < 4.5
        assert server.metrics.tls_handshakes_failed == {"no_room": 1}
        for _, writer in [*stalled, streams]:
            writer.close()


async def test_a_handshake_has_a_deadline_however_it_is_stretched(tmp_path: Path) -> None:
    async with TlsServer(tmp_path, handshake_ms=600) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        client = MemoryClient(server.authority.client_context())
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.do_handshake()
        hello = client.outgoing.read()
        for byte in hello[:-1]:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)
            if server.metrics.tls_handshakes_failed:
                break
        assert server.metrics.tls_handshakes_failed == {"timeout": 1}
        writer.close()


async def test_a_connection_that_is_only_opened_and_closed_is_not_told(tmp_path: Path) -> None:
    with capture_logs() as lines:
        async with TlsServer(tmp_path) as server:
            for client in await _silent(server, 5):
                client.close()
            await until(lambda: server.metrics.tls_handshakes_failed == {"never_spoke": 5})
            _, writer = await _half(server)
            writer.close()
            await until(lambda: server.metrics.tls_handshakes_failed["closed"] == 1)
    assert [line["event"] for line in lines if "failed" in line["event"]] == ["tls_handshake_failed_closed"]


async def test_handshakes_under_way_end_with_the_listener(tmp_path: Path) -> None:
    async with TlsServer(tmp_path) as server:
        sockets = await _silent(server, 3)
        _, writer = await _half(server)
        streams = await server.connect()
        await server.ping(streams)
        await until(lambda: server.metrics.tls_handshakes_pending == 4)
        await asyncio.wait_for(server.server.drain(), 5)
        assert await streams[0].read() == b""
        await until(lambda: server.metrics.tls_handshakes_failed["shutdown"] == 4)
        for client in sockets:
            client.close()
        writer.close()


async def test_new_certificates_are_used_without_a_restart(tmp_path: Path) -> None:
    with capture_logs() as lines:
        async with TlsServer(tmp_path) as server:
            known = await server.connect()
            assert server.metrics.certificate_expires_at == server.pair.expires_at
            new = server.authority.issue("server", valid_days=60)
            await until(lambda: server.metrics.certificate_expires_at == new.expires_at)
            streams = await server.connect()
            seen = streams[1].get_extra_info("ssl_object").getpeercert()
            assert ssl.cert_time_to_seconds(seen["notAfter"]) == new.expires_at
            await server.ping(known)
            new.key.write_text("nonsense")
            await until(lambda: any(line["event"] == "certificate_not_reloaded" for line in lines))
            await asyncio.sleep(0.3)
            other = await server.connect()
            for client in (known, streams, other):
                await server.ping(client)
                client[1].close()
            assert server.metrics.certificate_expires_at == new.expires_at
            last = server.authority.issue("server", valid_days=90)
            await until(lambda: server.metrics.certificate_expires_at == last.expires_at)
    told = [line for line in lines if line["event"] == "certificate_not_reloaded"]
    assert 1 <= len(told) <= 2, "once for each change, not at every look"
    assert "tls.key = " in told[0]["reason"]
