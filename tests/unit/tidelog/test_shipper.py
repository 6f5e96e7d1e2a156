import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError

from tidelog import shipper as shipper_module
from tidelog.shipper import FollowedFile, Shipper


class FakeProducer:
    """Delivers at flush; full after ``room`` records until it is polled."""

    def __init__(self, room: int = 1_000, error: KafkaError | None = None) -> None:
        self.sent: list[bytes] = []
        self.left_over = 0
        self._room = room
        self._error = error
        self._waiting: list[Callable[[KafkaError | None, Any], None]] = []

    def produce(self, _topic: str, value: bytes, on_delivery: Callable[[KafkaError | None, Any], None]) -> None:
        if len(self._waiting) >= self._room:
            raise BufferError
        self.sent.append(value)
        self._waiting.append(on_delivery)

    def poll(self, _seconds: float) -> int:
        waiting, self._waiting = self._waiting, []
        for delivered in waiting:
            delivered(self._error, None)
        return len(waiting)

    def flush(self, _seconds: float) -> int:
        self.poll(0)
        return self.left_over


def run(path: Path, producer: FakeProducer) -> Shipper:
    stopping = threading.Event()
    stopping.set()
    shipper = Shipper(cast(Any, producer), "logs", [FollowedFile(path)])
    shipper.run(stopping)
    return shipper


def test_only_complete_lines_are_read_and_the_rest_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\ntwo\r\nthr")
    file = FollowedFile(path)
    assert file.read_lines() == [b"one", b"two"]
    assert file.read_lines() == []
    with path.open("ab") as more:
        more.write(b"ee\n\nfour\n")
    assert file.read_lines() == [b"three", b"", b"four"]


def test_a_file_that_shrinks_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"a long first line\nrest")
    file = FollowedFile(path)
    assert file.read_lines() == [b"a long first line"]
    path.write_bytes(b"new\n")
    assert file.read_lines() == [b"new"]


def test_reads_are_bounded_and_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipper_module, "READ_BYTES_MAX", 7)
    path = tmp_path / "a.log"
    path.write_bytes(b"12345\n6789012345\nx\n")
    file = FollowedFile(path)
    assert [file.read_lines() for _ in range(4)] == [[b"12345"], [], [b"6789012345", b"x"], []]


def test_a_line_without_end_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipper_module, "LINE_BYTES_MAX", 10)
    path = tmp_path / "a.log"
    path.write_bytes(b"x" * 25)
    file = FollowedFile(path)
    assert file.read_lines() == [b"x" * 25]
    assert file.read_lines() == []


def test_everything_that_is_there_is_sent_before_it_stops_even_through_a_full_queue(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"".join(b"%d\n" % number for number in range(100)))
    producer = FakeProducer(room=7)
    shipper = run(path, producer)
    assert producer.sent == [b"%d" % number for number in range(100)]
    assert (shipper.acknowledged, shipper.failed, shipper.first_problem) == (100, 0, None)


def test_lines_that_fail_or_are_left_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"1\n2\n")
    producer = FakeProducer(error=KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
    producer.left_over = 3
    shipper = run(path, producer)
    assert (shipper.acknowledged, shipper.failed) == (0, 5)
    assert shipper.first_problem is not None
    assert "MSG_SIZE_TOO_LARGE" in shipper.first_problem
