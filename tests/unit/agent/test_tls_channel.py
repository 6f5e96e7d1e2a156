"""What goes through TLS, both ways, on real sockets: the right bytes, within the memory that is allowed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from agent.tls_channel import CIPHERTEXT_BYTES_MAX, OPEN_BYTES, PIECE_BYTES, RECORD_BYTES
from agent.wire import apis
from agent.wire.codec import EncodedResponse
from tests.support.batches import build_batch
from tests.support.connections import frame, produce
from tests.support.tls_server import MemoryClient, TlsServer, answer, until

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
MIB = 1 << 20

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    def run_on_loop(test: Callable[[], Awaitable[None]]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(30):
                await test()

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(bounded())

    return run_on_loop


def _stored(server: TlsServer) -> list[bytes]:
    return [bytes(batch.payload) for _, _, batch in server.harness.writer.appended]


def _batches(seed: int, sizes: list[int]) -> list[bytes]:
    source = random.Random(seed)
    return [build_batch([source.randbytes(size)]) for size in sizes]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_batches_of_all_sizes_arrive_as_they_were_sent(run: Run, tmp_path: Path, version: ssl.TLSVersion) -> None:
    async def test() -> None:
        async with TlsServer(tmp_path, budget_bytes=256 * MIB) as server:
            server.harness.writer.at_once = False
            context = server.authority.client_context()
            context.minimum_version = context.maximum_version = version
            sizes = [10, 900_000, 1, MIB, 16_384, 16_383, 130_000, 5 * MIB, 0, 2_000, MIB, MIB]
            sent = [_batches(seed, sizes) for seed in range(6)]

            async def ship(batches: list[bytes]) -> None:
                reader, writer = await server.connect(context=context)
                for number, batch in enumerate(batches):
                    writer.write(produce(number, {("logs", 0): batch}))
                await writer.drain()
                for number in range(len(batches)):
                    assert (await answer(reader))[0] == number
                writer.close()

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ship(batches)) for batches in sent]
                await until(lambda: len(server.harness.writer.appended) == 6 * len(sizes))
                assert sorted(_stored(server)) == sorted(batch for batches in sent for batch in batches)
                server.harness.writer.settle()
            assert all(task.done() for task in tasks)

    run(test)


def test_every_pause_keeps_the_place_in_the_stream(run: Run, tmp_path: Path) -> None:
    """Two requests in flight at most, so that reading stops and goes on all the time, at any byte of a record."""

    async def test() -> None:
        async with TlsServer(tmp_path, requests_in_flight_max=2) as server:
            server.harness.writer.at_once = False
            source = random.Random(7)
            batches = _batches(7, [source.choice([0, 50, 3_000, 20_000, 200_000]) for _ in range(300)])
            reader, writer = await server.connect()

            async def settle() -> None:
                taken: list[bytes] = []
                while len(taken) < len(batches):
                    await until(lambda: server.harness.writer.appended)
                    taken += _stored(server)[:1]
                    server.harness.writer.settle(1)
                assert taken == batches

            async with asyncio.TaskGroup() as group:
                group.create_task(settle())
                for number, batch in enumerate(batches):
                    writer.write(produce(number, {("logs", 0): batch}))
                for number in range(len(batches)):
                    assert (await answer(reader))[0] == number
            writer.close()

    run(test)


def test_what_is_held_while_memory_is_short_is_little_and_counted(run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        async with TlsServer(tmp_path) as server:
            clients = [await server.connect() for _ in range(10)]
            for reader, writer in clients:
                writer.write(produce(0))
                await answer(reader)
            budget = server.budget
            budget.take("segment", budget.limit_bytes)
            batches = _batches(1, [300_000] * 10)
            before = budget.by_purpose["tls"]
            for (_, writer), batch in zip(clients, batches, strict=True):
                writer.write(produce(1, {("logs", 0): batch}))
            await asyncio.sleep(0.3)
            assert budget.by_purpose["request"] == 0, "nothing more was taken in"
            assert 0 < budget.by_purpose["tls"] - before <= 10 * (4_096 + 17 * 1024)
            server.harness.writer.at_once = False
            budget.give("segment", budget.limit_bytes)
            await until(lambda: len(server.harness.writer.appended) == 10)
            assert sorted(_stored(server)) == sorted(batches)
            server.harness.writer.settle()
            for reader, writer in clients:
                assert (await answer(reader))[0] == 1
                writer.close()

    run(test)


@pytest.mark.parametrize("lent", [True, False])
def test_answers_are_encrypted_no_faster_than_the_client_reads(run: Run, tmp_path: Path, lent: bool) -> None:
    async def test() -> None:
        payload = random.Random(3).randbytes(MIB)
        released: list[bool] = []
        size = 24 * MIB

        async def fetch(*_: object) -> EncodedResponse:
            chunks = [memoryview(payload)[i : i + 700] for i in range(0, MIB, 700)]
            return EncodedResponse(chunks + [payload] * 23, size, (lambda: released.append(True)) if lent else None)

        async with TlsServer(tmp_path, handlers={apis.API_VERSIONS: fetch}, budget_bytes=256 * MIB) as server:
            with socket.socket() as raw:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
                raw.setblocking(False)
                await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", server.port))
                reader, writer = await asyncio.open_connection(sock=raw, limit=64 * 1024)
                client = MemoryClient(server.authority.client_context())
                await client.handshake(reader, writer)
                client.tls.write(frame(apis.API_VERSIONS, 0, 5))
                await client.send(writer)
                await until(lambda: server.metrics.sent_bytes >= size)
                await asyncio.sleep(0.2)
                assert not released
                tls = server.budget.by_purpose["tls"]
                assert OPEN_BYTES < tls <= OPEN_BYTES + CIPHERTEXT_BYTES_MAX + PIECE_BYTES + 4_096
                if lent:
                    assert server.budget.by_purpose["response"] < MIB
                else:
                    assert server.budget.by_purpose["response"] > 10 * MIB
                received = bytearray()
                while len(received) < 8 + size:
                    received += await client.read(reader)
                assert received[8:] == payload * 24
                await until(lambda: bool(released) == lent and server.budget.by_purpose["response"] == 0)
                writer.close()

    run(test)


def test_bytes_that_come_one_at_a_time(run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        async with TlsServer(tmp_path) as server:
            server.harness.writer.at_once = False
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = MemoryClient(server.authority.client_context())
            await client.handshake(reader, writer, piece=1)
            (batch,) = _batches(4, [500])
            client.tls.write(produce(9, {("logs", 0): batch}))
            await client.send(writer, piece=1)
            await until(lambda: server.harness.writer.appended)
            assert _stored(server) == [batch]
            server.harness.writer.settle()
            assert (await client.read(reader))[4:8] == (9).to_bytes(4)
            writer.close()

    run(test)


def test_a_record_that_has_begun_is_counted_until_it_is_whole(run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        async with TlsServer(tmp_path) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            client = MemoryClient(server.authority.client_context())
            await client.handshake(reader, writer)
            await until(lambda: server.budget.by_purpose["tls"] == OPEN_BYTES)
            client.tls.write(frame(apis.API_VERSIONS, 0, 1))
            record = client.outgoing.read()
            for part in (record[:3], record[3:5], record[5:-1]):
                writer.write(part)
                await until(lambda: server.budget.by_purpose["tls"] == OPEN_BYTES + RECORD_BYTES)
                await asyncio.sleep(0.02)
            writer.write(record[-1:])
            assert (await client.read(reader))[4:8] == (1).to_bytes(4)
            await until(lambda: server.budget.by_purpose["tls"] == OPEN_BYTES)
            writer.close()

    run(test)


def test_a_request_sent_together_with_the_end_of_the_handshake(run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        async with TlsServer(tmp_path) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            client = MemoryClient(server.authority.client_context())
            with pytest.raises(ssl.SSLWantReadError):
                client.tls.do_handshake()
            await client.send(writer)
            client.incoming.write(await reader.read(1 << 16))
            client.tls.do_handshake()
            client.tls.write(produce(1) + produce(2))
            client.tls.write(produce(3))
            await client.send(writer)
            received = b""
            while received.count(b"logs") < 3:
                received += await client.read(reader)
            writer.close()

    run(test)


def test_what_is_not_tls_ends_this_connection_only(run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        async with TlsServer(tmp_path) as server:
            other = await server.connect()
            for garbage in (
                b"\x17\x03\x03\x00\x20" + bytes(32),
                b"\0\0\0\x10\0\x12" + bytes(14),
                b"\x17\x03\x03\xff\xff",
            ):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                client = MemoryClient(server.authority.client_context())
                await client.handshake(reader, writer)
                client.tls.write(frame(apis.API_VERSIONS, 0, 1))
                await client.send(writer)
                await client.read(reader)
                writer.write(garbage)
                with contextlib.suppress(ConnectionError):
                    while await reader.read(1 << 16):
                        pass
                writer.close()
                await server.ping(other)
            await until(lambda: server.metrics.connections_closed["tls"] == 3)
            other[1].close()

    run(test)


def test_what_was_answered_leaves_before_the_end_and_tls_is_ended_too(run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        async with TlsServer(tmp_path) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            client = MemoryClient(server.authority.client_context())
            await client.handshake(reader, writer)
            client.tls.write(produce(1) + frame(99, 0, 2))
            await client.send(writer)
            received = b""
            with contextlib.suppress(ssl.SSLZeroReturnError):
                while data := await client.read(reader):
                    received += data
            assert received[4:8] == (1).to_bytes(4), "read ended with TLS's own goodbye, not with the socket"
            await until(lambda: server.metrics.connections_closed["unknown_api"] == 1)
            writer.close()

    run(test)


def test_a_client_that_says_goodbye(run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        async with TlsServer(tmp_path) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            client = MemoryClient(server.authority.client_context())
            await client.handshake(reader, writer)
            with pytest.raises(ssl.SSLWantReadError):
                client.tls.unwrap()
            await client.send(writer)
            while await reader.read(1 << 16):
                pass
            await until(lambda: server.metrics.connections_closed["client"] == 1)
            writer.close()

    run(test)


def test_sessions_do_not_see_each_other(run: Run, tmp_path: Path) -> None:
    """Hundreds of sessions at once, none of which ever sees another's bytes."""

    async def test() -> None:
        async with TlsServer(tmp_path, budget_bytes=256 * MIB) as server:
            server.harness.writer.at_once = False
            batches: dict[int, bytes] = {}

            async def ship(number: int) -> None:
                reader, writer = await server.connect()
                source = random.Random(number)
                for turn in range(5):
                    correlation_id = number * 10 + turn
                    batches[correlation_id] = build_batch([source.randbytes(source.randrange(40_000))])
                    writer.write(produce(correlation_id, {("logs", 0): batches[correlation_id]}))
                    assert (await answer(reader))[0] == correlation_id
                writer.close()

            stored: list[bytes] = []

            async def settle() -> None:
                while len(stored) < 1_000:
                    await asyncio.sleep(0.005)
                    stored.extend(_stored(server))
                    server.harness.writer.settle()

            async with asyncio.TaskGroup() as group:
                group.create_task(settle())
                for number in range(200):
                    group.create_task(ship(number))
            assert sorted(stored) == sorted(batches.values())

    run(test)
