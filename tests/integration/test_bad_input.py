"""A whole Tidelog under clients that misbehave, while a good client goes on undisturbed."""

from __future__ import annotations

import contextlib
import json
import random
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.batches import build_batch
from tests.support.cluster import TidelogProcess
from tests.support.connections import frame, produce
from tests.support.raw_kafka import RawKafka, record_batch, records

pytestmark = [pytest.mark.integration, pytest.mark.timed]

SETTINGS = {
    "INGEST__LINGER_MS": "5",
    "LOG__FORM": "json",
    "CONNECTION__FRAME_MS": "1500",
    "MEMORY__BUDGET_BYTES": str(64 << 20),
}
IDLE_CONNECTIONS = 10_000


class GoodClient:
    """Produces and fetches one record after the other on its own thread; keeps the slowest round and every error."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._bootstrap, self._topic = bootstrap, topic
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="good client")
        self.rounds = 0
        self.slowest_s = 0.0
        self.error: BaseException | None = None

    def __enter__(self) -> GoodClient:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            with RawKafka(self._bootstrap) as kafka:
                kafka.create_topic(self._topic)
                while not self._stopping.is_set():
                    began = time.monotonic()
                    value = b"round %d" % self.rounds
                    answer = kafka.produce(self._topic, record_batch(value))
                    assert (answer.error_code, answer.base_offset) == (0, self.rounds)
                    assert records(kafka.fetch(self._topic, self.rounds).records) == [(self.rounds, value)]
                    self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                    self.rounds += 1
        except BaseException as error:
            self.error = error


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TidelogProcess]:
    with TidelogProcess(tmp_path_factory.mktemp("bad-input") / "data", settings=SETTINGS) as process:
        yield process


@pytest.fixture
def undisturbed(server: TidelogProcess, unique: Callable[[str], str]) -> Iterator[GoodClient]:
    """The test runs beside a good client, must leave the process alive and its memory given back."""
    with GoodClient(server.bootstrap, unique("good")) as client:
        wait_until(lambda: client.rounds >= 3 or client.error is not None)
        yield client
        rounds = client.rounds
        wait_until(lambda: client.rounds >= rounds + 3 or client.error is not None)
    assert client.error is None
    assert client.slowest_s < 5.0
    assert server.running()
    wait_until(lambda: server.metrics()['tidelog_agent_held_bytes{purpose="request"}'] == 0)
    assert "Traceback" not in server.log() and "handler_failed" not in server.log()


def wait_until(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not become so in time"
        time.sleep(0.02)


def connect(server: TidelogProcess, timeout_s: float = 10.0) -> socket.socket:
    host, port = server.bootstrap.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=timeout_s)


def is_closed(connection: socket.socket) -> bool:
    """Whether the server closes the connection (answers before that are read over)."""
    try:
        while connection.recv(65_536):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


def lines(server: TidelogProcess, event: str) -> int:
    found = [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]
    return sum(1 for line in found if line.get("event") == event)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (struct.pack(">i", 2**31 - 1), "bad_frame"),
        (struct.pack(">i", -1), "bad_frame"),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "bad_frame"),
        (frame(9999, 0, 1), "unknown_api"),
        (frame(24, 0, 1), "unknown_api"),
        (frame(3, 99, 1), "unsupported_version"),
        (frame(0, 2, 1), "unsupported_version"),
        (frame(3, 1, 1, struct.pack(">i", 2**31 - 1)), "bad_request"),
        (frame(3, 9, 1, b"\0" + b"\xff\xff\xff\xff\x7f"), "bad_request"),
        (frame(0, 7, 1, struct.pack(">hhii", -1, 1, 0, 2**31 - 1)), "bad_request"),
        (frame(11, 0, 1, b"\x7f\xff"), "bad_request"),
    ],
)
def test_it_is_closed_with_one_line(server: TidelogProcess, undisturbed: GoodClient, data: bytes, reason: str) -> None:
    event = f"connection_closed_{reason}"
    before = lines(server, event)
    with connect(server) as connection:
        connection.sendall(data)
        assert is_closed(connection)
    wait_until(lambda: lines(server, event) == before + 1)


def test_truncated_frames_are_given_up_after_a_while(server: TidelogProcess, undisturbed: GoodClient) -> None:
    request = produce(1)
    connections = []
    for length in (1, 3, 4, 5, 12, len(request) - 1):
        connections.append(connect(server))
        connections[-1].sendall(request[:length])
    assert all(map(is_closed, connections))
    for connection in connections:
        connection.close()
    assert server.metrics()['tidelog_agent_closed_connections_total{reason="frame_timeout"}'] >= len(connections)


def test_random_bytes(server: TidelogProcess, undisturbed: GoodClient) -> None:
    source = random.Random(7)
    for _ in range(300):
        data = source.randbytes(source.randrange(1, 2000))
        if source.random() < 0.5:  # a frame whose length is right and whose rest is not
            key, version = source.randrange(70), source.randrange(17)
            data = frame(key, version, 1, data)
        with connect(server) as connection, contextlib.suppress(ConnectionError):
            connection.sendall(data)
            if source.random() < 0.3:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_a_flood_of_bad_connections_does_not_flood_the_log(server: TidelogProcess, undisturbed: GoodClient) -> None:
    size = server.log_path.stat().st_size
    for _ in range(500):
        with connect(server) as connection:
            connection.sendall(struct.pack(">i", -7))
            assert is_closed(connection)
    assert server.log_path.stat().st_size - size < 20_000


@pytest.mark.parametrize(
    ("batch", "code"),
    [
        (build_batch(crc=1), 2),
        (build_batch(record_count=1000), 87),
        (build_batch(record_count=0), 87),
        (build_batch(record_count=-1, last_offset_delta=-2), 87),
        (build_batch(last_offset_delta=5), 87),
        (build_batch(batch_length=2**31 - 1), 87),
        (build_batch(batch_length=-1), 87),
        (build_batch()[:60], 87),
        (build_batch(magic=0), 87),
        (build_batch(base_offset=5), 87),
        (build_batch([b"x" * 2_000_000]), 10),
    ],
)
def test_bad_batches_get_kafka_s_error_and_the_connection_goes_on(
    server: TidelogProcess, undisturbed: GoodClient, unique: Callable[[str], str], batch: bytes, code: int
) -> None:
    topic = unique("bad")
    with RawKafka(server.bootstrap) as kafka:
        kafka.create_topic(topic)
        assert kafka.produce(topic, batch).error_code == code
        good = kafka.produce(topic, record_batch(b"good"))
        assert (good.error_code, good.base_offset) == (0, 0)
        assert records(kafka.fetch(topic, 0).records) == [(0, b"good")]


def test_unknown_tagged_fields_are_skipped(server: TidelogProcess, undisturbed: GoodClient) -> None:
    tag = b"\x01\x63\x02hi"
    header = struct.pack(">hhih", 3, 12, 77, 1) + b"c" + tag
    body = b"\x01" + b"\x01\x00" + tag  # no topics
    payload = header + body
    with connect(server) as connection:
        connection.sendall(struct.pack(">i", len(payload)) + payload)
        (length,) = struct.unpack(">i", connection.recv(4, socket.MSG_WAITALL))
        answer = connection.recv(length, socket.MSG_WAITALL)
    assert struct.unpack_from(">i", answer) == (77,)


def test_memory_stays_within_the_budget_when_producers_send_too_much(
    server: TidelogProcess, undisturbed: GoodClient
) -> None:
    """Forty clients begin frames of 30 MB each and go on as fast as they may."""
    payload = bytes(1 << 20)
    highest = 0.0
    connections = [connect(server, 0.2) for _ in range(40)]
    for connection in connections:
        connection.sendall(struct.pack(">i", 30 << 20) + struct.pack(">hhih", 0, 7, 1, -1))
    for _ in range(20):
        for connection in connections:
            with contextlib.suppress(TimeoutError, ConnectionError):
                connection.sendall(payload)
        metrics = server.metrics()
        highest = max(
            highest, sum(value for name, value in metrics.items() if name.startswith("tidelog_agent_held_bytes"))
        )
    for connection in connections:
        connection.close()
    assert 24 << 20 < highest < 64 << 20


@pytest.mark.slow
def test_ten_thousand_connections_that_send_nothing(server: TidelogProcess, undisturbed: GoodClient) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < IDLE_CONNECTIONS + 1000:
        pytest.skip(f"only {hard} file descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    before = private_bytes(server.pid)
    connections = []
    try:
        for _ in range(IDLE_CONNECTIONS):
            connections.append(connect(server))
        wait_until(lambda: server.metrics()["tidelog_agent_connections"] >= IDLE_CONNECTIONS)
        each = (private_bytes(server.pid) - before) / IDLE_CONNECTIONS
        rounds = undisturbed.rounds
        wait_until(lambda: undisturbed.rounds >= rounds + 10)
    finally:
        for connection in connections:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert each < 30 * 1024
    wait_until(lambda: server.metrics()["tidelog_agent_connections"] < 10)


def private_bytes(pid: int) -> int:
    """Memory of the process's own."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")
