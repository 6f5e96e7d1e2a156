"""A bare Kafka connection for tests of the wire: one blocking socket, kio's entities, no retries, no limits."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import io
import socket
import struct
import time
import types
import uuid
from typing import Any

from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from kio.serial import entity_reader, entity_writer

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}


def schema(api: str, version: int, kind: str = "request") -> types.ModuleType:
    """kio's module of one message, e.g. ``schema("fetch", 11).FetchRequest``."""
    return importlib.import_module(f"kio.schema.{api}.v{version}.{kind}")


def milliseconds(value: int) -> datetime.timedelta:
    """kio's form of a time span."""
    return datetime.timedelta(milliseconds=value)


class RawKafka:
    """One connection. Requests are numbered from 1; answers must come in order."""

    def __init__(self, bootstrap: str, timeout_s: float = 20.0) -> None:
        host, port = bootstrap.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), timeout=timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sent = 0
        self._expected: list[tuple[int, type[Any]]] = []

    def __enter__(self) -> RawKafka:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def encode(self, request: Any) -> bytes:
        """The frame of ``request``; its answer is expected after those of earlier frames."""
        self._sent += 1
        header_class = request.__header_schema__
        header = header_class(
            request_api_key=request.__api_key__,
            request_api_version=request.__version__,
            correlation_id=self._sent,
            client_id="raw-test",
        )
        buffer = io.BytesIO()
        entity_writer(header_class)(buffer, header)
        entity_writer(type(request))(buffer, request)
        module = type(request).__module__.removesuffix(".request") + ".response"
        name = type(request).__name__.removesuffix("Request") + "Response"
        self._expected.append((self._sent, getattr(importlib.import_module(module), name)))
        payload = buffer.getvalue()
        return struct.pack(">i", len(payload)) + payload

    def send(self, *requests: Any) -> None:
        """Send all of them in one write."""
        self._socket.sendall(b"".join(self.encode(request) for request in requests))

    def expect_no_answer(self) -> None:
        """The request encoded last will not be answered (acks 0)."""
        self._expected.pop()

    def send_bytes(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> Any:
        """The next answer. Asserts that it is the one whose turn it is."""
        (size,) = struct.unpack(">i", self._receive_exactly(4))
        payload = self._receive_exactly(size)
        correlation_id, response_class = self._expected.pop(0)
        header, offset = entity_reader(response_class.__header_schema__)(payload, 0)
        assert header.correlation_id == correlation_id, "answers out of order"
        response, consumed = entity_reader(response_class)(payload, offset)
        assert offset + consumed == len(payload), "the answer has bytes left over"
        return response

    def ask(self, request: Any) -> Any:
        self.send(request)
        return self.receive()

    def set_timeout(self, timeout_s: float) -> None:
        self._socket.settimeout(timeout_s)

    def closed_by_server(self) -> bool:
        """Whether the server ends the connection; waits as long as the timeout."""
        try:
            return self._socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _receive_exactly(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._socket.recv(min(size, 1 << 20))
            if not part:
                raise ConnectionError("the server closed the connection")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    # -- the few requests that most tests send -----------------------------------------------------------------

    def metadata(self, *topics: str, create: bool = False) -> Any:
        """Metadata v12 of ``topics``."""
        module = schema("metadata", 12)
        wanted = tuple(module.MetadataRequestTopic(topic_id=None, name=name) for name in topics)
        request = module.MetadataRequest(
            topics=wanted, allow_auto_topic_creation=create, include_topic_authorized_operations=False
        )
        return self.ask(request)

    def topic_id(self, topic: str) -> uuid.UUID:
        (answer,) = self.metadata(topic).topics
        assert answer.topic_id is not None
        return uuid.UUID(str(answer.topic_id))

    def create_topic(self, topic: str, partitions: int = 1, configs: dict[str, str] | None = None) -> None:
        """CreateTopics v5, then wait until it can be read (Apache Kafka takes a moment); asserts that it worked."""
        module = schema("create_topics", 5)
        (answer,) = self.ask(
            module.CreateTopicsRequest(
                topics=(
                    module.CreatableTopic(
                        name=topic,
                        num_partitions=partitions,
                        replication_factor=-1,
                        assignments=(),
                        configs=tuple(
                            module.CreatableTopicConfig(name=key, value=value) for key, value in (configs or {}).items()
                        ),
                    ),
                ),
                timeout=milliseconds(10_000),
            )
        ).topics
        assert answer.error_code == 0, answer
        deadline = time.monotonic() + 10
        while True:
            errors = {self.fetch(topic, 0, partition).error_code for partition in range(partitions)}
            if errors == {0}:
                return
            assert time.monotonic() < deadline, f"{topic} cannot be read: {errors}"
            time.sleep(0.01)

    def delete_topic(self, topic: str) -> None:
        """DeleteTopics v5; asserts that it worked."""
        module = schema("delete_topics", 5)
        (answer,) = self.ask(module.DeleteTopicsRequest(topic_names=(topic,), timeout=milliseconds(10_000))).responses
        assert answer.error_code == 0, answer

    def produce(self, topic: str, batch: bytes, partition: int = 0, *, acks: int = -1) -> Any:
        """Produce v9 of one batch; the answer of its partition."""
        (answer,) = self.ask(produce_request(topic, batch, partition, acks=acks)).responses
        return answer.partition_responses[0]

    def fetch(self, topic: str, offset: int, partition: int = 0, **options: Any) -> Any:
        """Fetch v11 of one partition; its answer. ``options`` as of :func:`fetch_request`."""
        (answer,) = self.ask(fetch_request(topic, offset, partition, **options)).responses
        return answer.partitions[0]

    def high_watermark(self, topic: str, partition: int = 0) -> int:
        """ListOffsets v5 of the latest offset."""
        module = schema("list_offsets", 5)
        latest = module.ListOffsetsPartition(partition_index=partition, timestamp=-1)
        (answer,) = self.ask(
            module.ListOffsetsRequest(
                replica_id=-1,
                isolation_level=0,
                topics=(module.ListOffsetsTopic(name=topic, partitions=(latest,)),),
            )
        ).topics
        assert answer.partitions[0].error_code == 0, answer
        return int(answer.partitions[0].offset)


def produce_request(topic: str, batch: bytes, partition: int = 0, *, acks: int = -1, version: int = 9) -> Any:
    module = schema("produce", version)
    return module.ProduceRequest(
        acks=acks,
        timeout=milliseconds(30_000),
        topic_data=(
            module.TopicProduceData(
                name=topic, partition_data=(module.PartitionProduceData(index=partition, records=batch),)
            ),
        ),
    )


def fetch_request(
    topic: str,
    offset: int,
    partition: int = 0,
    *,
    max_wait_ms: int = 0,
    min_bytes: int = 1,
    max_bytes: int = 50 << 20,
    partition_max_bytes: int = 50 << 20,
) -> Any:
    module = schema("fetch", 11)
    wanted = module.FetchPartition(partition=partition, fetch_offset=offset, partition_max_bytes=partition_max_bytes)
    return module.FetchRequest(
        replica_id=-1,
        max_wait=milliseconds(max_wait_ms),
        min_bytes=min_bytes,
        max_bytes=max_bytes,
        topics=(module.FetchTopic(topic=topic, partitions=(wanted,)),),
        forgotten_topics_data=(),
    )


def record_batch(
    *values: bytes | None,
    key: bytes | None = None,
    timestamp_ms: int = 1_700_000_000_000,
    codec: str = "none",
    producer_id: int = -1,
    producer_epoch: int = -1,
    sequence: int = -1,
) -> bytes:
    """One v2 batch, made by aiokafka's encoder, which shares no code with Tidelog's."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=CODECS[codec],
        is_transactional=0,
        producer_id=producer_id,
        producer_epoch=producer_epoch,
        base_sequence=sequence,
        batch_size=1 << 30,
    )
    for index, value in enumerate(values):
        builder.append(index, timestamp_ms, key, value, [])
    return bytes(builder.build())


@dataclasses.dataclass(frozen=True, slots=True)
class FetchedBatch:
    """One batch of a fetch answer, as it lies there."""

    base_offset: int
    codec: int
    log_append_time: bool
    max_timestamp: int
    records: tuple[tuple[int, int, bytes | None, bytes | None], ...]
    """(offset, timestamp, key, value)."""


def batches(data: bytes | None) -> list[FetchedBatch]:
    """The whole batches of a fetch answer, CRCs checked; a cut-off one at the end is dropped, as clients do."""
    found = []
    position = 0
    data = data or b""
    while position + 12 <= len(data):
        base_offset, length = struct.unpack_from(">qi", data, position)
        if position + 12 + length > len(data):
            break
        raw = data[position : position + 12 + length]
        position += 12 + length
        batch = DefaultRecordBatch(raw)
        assert batch.validate_crc(), "a batch with a wrong CRC"
        attributes = struct.unpack_from(">h", raw, 21)[0]
        max_timestamp = struct.unpack_from(">q", raw, 35)[0]
        records = tuple((record.offset, record.timestamp, record.key, record.value) for record in batch)
        found.append(FetchedBatch(base_offset, attributes & 7, bool(attributes & 8), max_timestamp, records))
    return found


def records(data: bytes | None) -> list[tuple[int, bytes | None]]:
    """(offset, value) of every record in a fetch answer."""
    return [(offset, value) for batch in batches(data) for offset, _, _, value in batch.records]
