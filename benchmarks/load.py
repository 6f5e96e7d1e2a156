"""The load generator: its own process on its own core, pre-encoded frames, a JSON line of figures at the end.

``python -m benchmarks.load produce|fetch|idle --help``. A run is bounded by ``--seconds`` and ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import socket
import ssl
import struct
import sys
import time

import crc32c
import uvloop

from benchmarks.frames import (
    batch_timestamps,
    fetch_records,
    fetch_request,
    metadata_request,
    next_offset,
    produce_errors,
    produce_request,
    record_batch,
)

READ_BYTES = 1 << 20


class Pipeline(asyncio.BufferedProtocol):
    """Keeps ``window`` copies of one request in flight and counts the answers."""

    def __init__(self, frame: bytes, window: int, is_produce: bool, requests_max: int) -> None:
        self.frame, self.window, self.is_produce = frame, window, is_produce
        self._left = requests_max or sys.maxsize
        self.answers = 0
        self.errors: set[int] = set()
        self.stopping = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._in_flight = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(high=1 << 30)
        self._send(self.window)

    def _send(self, count: int) -> None:
        count = min(count, self._left)
        self._left -= count
        self._in_flight += count
        self._transport.writelines([self.frame] * count)

    def get_buffer(self, _hint: int) -> memoryview:
        return self._view[self._filled :]

    def buffer_updated(self, count: int) -> None:
        end = self._filled + count
        position = answers = 0
        while end - position >= 4:
            (length,) = struct.unpack_from(">i", self._buffer, position)
            if end - position < 4 + length:
                break
            if self.is_produce and (self.answers < 64 or self.answers % 1024 == 0):
                self.errors |= produce_errors(self._view[position + 4 : position + 4 + length])
            position += 4 + length
            answers += 1
        self._buffer[: end - position] = self._buffer[position:end]
        self._filled = end - position
        self.answers += answers
        self._in_flight -= answers
        if not self.stopping and answers:
            self._send(answers)
        if (self.stopping or not self._left) and self._in_flight == 0 and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError(f"the server closed the connection: {error!r}"))


async def ask(host: str, port: int, frame: bytes, tls: ssl.SSLContext | None = None) -> bytes:
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 26, ssl=tls)
    writer.write(frame)
    (length,) = struct.unpack(">i", await reader.readexactly(4))
    answer = await reader.readexactly(length)
    writer.close()
    return answer


async def create_topics(host: str, port: int, topics: list[str], tls: ssl.SSLContext | None = None) -> None:
    for _ in range(60):
        answer = await ask(host, port, metadata_request(topics), tls)
        later = await ask(host, port, metadata_request(topics), tls)
        if len(later) == len(answer) and all(t.encode() in later for t in topics):
            await asyncio.sleep(1.0)
            if await ask(host, port, metadata_request(topics), tls) == later:
                return
        await asyncio.sleep(0.5)
    raise SystemExit("the topics were not ready within 60 tries")


async def wait_for_leaders(
    host: str, port: int, topic: str, partitions: int, tls: ssl.SSLContext | None = None
) -> None:
    """Until each partition takes a record: a broker may name a leader that does not know it yet (error 6)."""
    record = record_batch(1, 100, int(time.time() * 1000))
    frame = produce_request(topic, dict.fromkeys(range(partitions), record))
    errors: set[int] = set()
    for _ in range(60):
        errors = produce_errors(memoryview(await ask(host, port, frame, tls)))
        if not errors:
            return
        await asyncio.sleep(0.5)
    raise SystemExit(f"{topic} still answers errors {sorted(errors)} after 60 tries")


async def produce(args: argparse.Namespace) -> dict[str, object]:
    now_ms = int(time.time() * 1000)
    tls = None if args.tls_ca is None else ssl.create_default_context(cafile=args.tls_ca)
    if not args.no_create:
        await create_topics(args.host, args.port, [args.topic], tls)
        await wait_for_leaders(args.host, args.port, args.topic, args.partitions, tls)
    batch = record_batch(args.records, args.value_bytes, now_ms)
    loop = asyncio.get_running_loop()
    pipelines = []
    for index in range(args.connections):
        partitions = range(args.partitions) if args.partitions_per_request > 1 else [index % args.partitions]
        frame = produce_request(args.topic, dict.fromkeys(list(partitions)[: args.partitions_per_request], batch))
        _, pipeline = await loop.create_connection(
            lambda frame=frame: Pipeline(frame, args.window, not args.sink, args.requests),
            args.host,
            args.port,
            ssl=tls,
        )
        pipelines.append(pipeline)
    await asyncio.sleep(args.warmup)
    cpu = resource.getrusage(resource.RUSAGE_SELF)
    began, counted = time.perf_counter(), sum(p.answers for p in pipelines)
    if args.requests:
        await asyncio.wait_for(asyncio.gather(*(p.done for p in pipelines)), 300)
    else:
        await asyncio.sleep(args.seconds)
    took, answers = time.perf_counter() - began, sum(p.answers for p in pipelines) - counted
    used = resource.getrusage(resource.RUSAGE_SELF)
    for pipeline in pipelines:
        pipeline.stopping = True
    await asyncio.wait_for(asyncio.gather(*(p.done for p in pipelines)), 120)
    per_request = args.records * args.partitions_per_request
    return {
        "requests_per_s": answers / took,
        "records_per_s": answers * per_request / took,
        "bytes_per_s": answers * len(batch) * args.partitions_per_request / took,
        "generator_cpu": (used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime) / took,
        "requests_total": sum(p.answers for p in pipelines),
        "errors": sorted(set().union(*(p.errors for p in pipelines))),
    }


class _Frames:
    """Reads length-prefixed answers over a stream in one reused buffer."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    async def open(self) -> None:
        self._socket = socket.create_connection((self.host, self.port))
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._buffer = bytearray(4 << 20)

    async def ask(self, frame: bytes) -> memoryview:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._socket, frame)
        filled, need = 0, 4
        while filled < need:
            if need > len(self._buffer):
                self._buffer.extend(bytes(need - len(self._buffer)))
            with memoryview(self._buffer) as view:
                got = await loop.sock_recv_into(self._socket, view[filled:])
            if not got:
                raise SystemExit("the server closed the connection")
            filled += got
            if need == 4 and filled >= 4:
                need = 4 + struct.unpack_from(">i", self._buffer)[0]
        return memoryview(self._buffer)[4:need]


async def _consume(args: argparse.Namespace, partition: int, until: float, counters: list[int]) -> None:
    frames = _Frames(args.host, args.port)
    await frames.open()
    offset = args.offset
    while time.perf_counter() < until and (args.bytes == 0 or counters[0] < args.bytes):
        answer = await frames.ask(fetch_request(args.topic, partition, offset, args.max_bytes))
        error, records = fetch_records(answer, args.topic)
        if error:
            raise SystemExit(f"fetch of partition {partition} at {offset}: error {error}")
        if len(records):
            offset, count = next_offset(records, offset)
            counters[0] += len(records)
            counters[1] += count
        records.release()
        answer.release()


async def fetch(args: argparse.Namespace) -> dict[str, object]:
    counters = [[0, 0] for _ in range(args.consumers)]
    began = time.perf_counter()
    until = began + args.seconds
    cpu = resource.getrusage(resource.RUSAGE_SELF)
    async with asyncio.TaskGroup() as group:
        for index in range(args.consumers):
            group.create_task(_consume(args, index % args.partitions, until, counters[index]))
    took = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "bytes_per_s": sum(c[0] for c in counters) / took,
        "records_per_s": sum(c[1] for c in counters) / took,
        "bytes_total": sum(c[0] for c in counters),
        "seconds": took,
        "generator_cpu": (used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime) / took,
    }


async def idle(args: argparse.Namespace) -> dict[str, object]:
    """Open connections that send nothing; wait for a line on standard input; close them."""
    writers = []
    for _ in range(args.connections):
        writers.append((await asyncio.open_connection(args.host, args.port))[1])
    print("open", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    for writer in writers:
        writer.close()
    return {"connections": len(writers)}


async def latency(args: argparse.Namespace) -> dict[str, object]:
    """Open-loop load at ``--bytes-per-s``: every request is sent when it is due, whatever is still unanswered.

    The due time goes into the batch as its timestamps, so the consumers know when each record was meant to be sent:
    end to end includes every wait on the way.
    """
    await create_topics(args.host, args.port, [args.topic])
    await wait_for_leaders(args.host, args.port, args.topic, args.partitions)
    template = bytearray(record_batch(args.records, args.value_bytes, int(time.time() * 1000)))
    interval = len(template) * args.partitions / args.bytes_per_s
    until = time.time() + args.warmup + args.seconds
    counted_from_ms = (time.time() + args.warmup) * 1000
    produced: list[float] = []
    consumed: list[float] = []
    errors: set[int] = set()

    async def produce_to(partition: int) -> None:
        reader, writer = await asyncio.open_connection(args.host, args.port, limit=1 << 24)
        due_times: asyncio.Queue[float | None] = asyncio.Queue()

        async def answers() -> None:
            while (due := await due_times.get()) is not None:
                (length,) = struct.unpack(">i", await reader.readexactly(4))
                errors.update(produce_errors(memoryview(await reader.readexactly(length))))
                if due * 1000 >= counted_from_ms:
                    produced.append(time.time() - due)

        async with asyncio.TaskGroup() as group:
            group.create_task(answers())
            due = time.time() + interval * partition / args.partitions
            while due < until:
                await asyncio.sleep(max(0.0, due - time.time()))
                struct.pack_into(">qq", template, 27, int(due * 1000), int(due * 1000))
                struct.pack_into(">I", template, 17, crc32c.crc32c(memoryview(template)[21:]))
                due_times.put_nowait(due)
                writer.write(produce_request(args.topic, {partition: bytes(template)}))
                due += interval
            due_times.put_nowait(None)
        writer.close()

    async def consume_from(partition: int) -> None:
        frames = _Frames(args.host, args.port)
        await frames.open()
        offset = 0
        while time.time() < until + 2:
            answer = await frames.ask(fetch_request(args.topic, partition, offset, 8 << 20))
            now_ms = time.time() * 1000
            error, records = fetch_records(answer, args.topic)
            if error:
                raise SystemExit(f"fetch of partition {partition} at {offset}: error {error}")
            for sent_ms in batch_timestamps(records):
                if sent_ms >= counted_from_ms:
                    consumed.append((now_ms - sent_ms) / 1000)
            offset, _ = next_offset(records, offset)
            records.release()
            answer.release()

    async with asyncio.TaskGroup() as group:
        for partition in range(args.partitions):
            group.create_task(produce_to(partition))
            group.create_task(consume_from(partition))
    produced.sort()
    consumed.sort()
    return {
        "produced": len(produced),
        "consumed": len(consumed),
        "errors": sorted(errors),
        **{f"produce_p{q}_ms": 1000 * produced[int(len(produced) * q / 100)] for q in (50, 99)},
        **{f"end_to_end_p{q}_ms": 1000 * consumed[int(len(consumed) * q / 100)] for q in (50, 99)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("produce", "fetch", "idle", "latency"):
        command = commands.add_parser(name)
        command.add_argument("--host", default="127.0.0.1")
        command.add_argument("--port", type=int, required=True)
        command.add_argument("--topic", default="bench")
        command.add_argument("--partitions", type=int, default=1)
        command.add_argument("--seconds", type=float, default=5.0)
        command.add_argument("--connections", type=int, default=1)
        if name == "produce":
            command.add_argument("--records", type=int, default=1000)
            command.add_argument("--value-bytes", type=int, default=1024)
            command.add_argument("--partitions-per-request", type=int, default=1)
            command.add_argument("--window", type=int, default=16)
            command.add_argument("--warmup", type=float, default=1.0)
            command.add_argument("--requests", type=int, default=0, help="send so many a connection, then end")
            command.add_argument("--sink", action="store_true", help="the server answers nothing but a header")
            command.add_argument("--no-create", action="store_true")
            command.add_argument("--tls-ca", help="speak TLS to a server that this file's authority has signed")
        if name == "latency":
            command.add_argument("--records", type=int, default=100)
            command.add_argument("--value-bytes", type=int, default=1010)
            command.add_argument("--warmup", type=float, default=3.0)
            command.add_argument("--bytes-per-s", type=float, default=20e6)
        if name == "fetch":
            command.add_argument("--consumers", type=int, default=1)
            command.add_argument("--max-bytes", type=int, default=8 << 20)
            command.add_argument("--offset", type=int, default=0)
            command.add_argument("--bytes", type=int, default=0, help="end after so many bytes a consumer")
    args = parser.parse_args()
    uvloop.install()
    figures = asyncio.run({"produce": produce, "fetch": fetch, "idle": idle, "latency": latency}[args.command](args))
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
