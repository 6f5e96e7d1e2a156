"""The bundled shipper: follows log files and sends every line, through librdkafka, like any log shipper would.

``python -m tidelog.shipper FILE... --topic TOPIC --bootstrap HOST:PORT``. It starts at the beginning of each file,
waits for more, and on SIGTERM or Ctrl-C sends what is left, waits for the acknowledgements and exits 0; 1 when a line
was not acknowledged. It keeps no position between runs. A file that shrinks is read from its beginning again.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer
from confluent_kafka import KafkaError, Message, Producer

from tidelog.client import client_config, describe_error, failures_reported
from tidelog.connecting import Bootstrap, Cluster

READ_BYTES_MAX = 256 * 1024
LINE_BYTES_MAX = 512 * 1024
IDLE_SECONDS = 0.02
DELIVERY_SECONDS = 60


class FollowedFile:
    """Complete lines of one growing file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = 0
        self._rest = b""

    def read_lines(self) -> list[bytes]:
        """The lines that were completed since the last call, at most :data:`READ_BYTES_MAX` bytes of them.

        A line without end is cut at :data:`LINE_BYTES_MAX`. :raises OSError: the file cannot be read.
        """
        with self.path.open("rb") as file:
            if file.seek(0, 2) < self._position:
                self._position, self._rest = 0, b""
            file.seek(self._position)
            found = file.read(READ_BYTES_MAX)
        self._position += len(found)
        *lines, self._rest = (self._rest + found).split(b"\n")
        if len(self._rest) >= LINE_BYTES_MAX:
            lines.append(self._rest)
            self._rest = b""
        return [line.rstrip(b"\r") for line in lines]


class Shipper:
    """Sends the lines of ``files`` until it is told to stop."""

    def __init__(self, producer: Producer, topic: str, files: list[FollowedFile]) -> None:
        self._producer = producer
        self._topic = topic
        self._files = files
        self.acknowledged = 0
        self.failed = 0
        self.first_problem: str | None = None

    def run(self, stopping: threading.Event) -> None:
        """Follow the files; after ``stopping``, send what they hold by then and wait for every acknowledgement.

        :raises OSError: a file cannot be read.
        """
        while self._send_new_lines() or not stopping.wait(IDLE_SECONDS):
            self._producer.poll(0)
        left = self._producer.flush(DELIVERY_SECONDS)
        if left:
            self._failed(left, f"not acknowledged within {DELIVERY_SECONDS} s")

    def _send_new_lines(self) -> bool:
        sent = False
        for file in self._files:
            for line in file.read_lines():
                self._send(line)
                sent = True
        return sent

    def _send(self, line: bytes) -> None:
        while True:
            try:
                self._producer.produce(self._topic, line, on_delivery=self._delivered)
            except BufferError:  # too much is unacknowledged: wait, as a shipper must
                self._producer.poll(0.1)
            else:
                return

    def _delivered(self, error: KafkaError | None, _message: Message) -> None:
        if error is None:
            self.acknowledged += 1
        else:
            self._failed(1, describe_error(error))

    def _failed(self, count: int, problem: str) -> None:
        self.failed += count
        self.first_problem = self.first_problem or problem


def ship(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, readable=True, metavar="FILE...")],
    topic: Annotated[str, typer.Option()],
    bootstrap: Bootstrap,
    client_id: Annotated[str, typer.Option(help="May name the zone: shipper,zone=a.")] = "tidelog-shipper",
) -> None:
    """Follow FILEs and send every line to a topic."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with failures_reported():
        config = {"client.id": client_id, "enable.idempotence": True, "compression.type": "lz4", "linger.ms": 20}
        producer = Producer(client_config(Cluster(bootstrap), **config))
        shipper = Shipper(producer, topic, [FollowedFile(path) for path in files])
        shipper.run(stopping)
    print(f"{shipper.acknowledged} lines acknowledged", file=sys.stderr)
    if shipper.failed:
        print(f"tidelog: {shipper.failed} lines failed, the first: {shipper.first_problem}", file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(ship)
