"""Headers, bodies and answers: what is tolerated, what is refused, and what goes over the wire."""

from __future__ import annotations

import datetime
import struct
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest
from kio.index import load_response_schema
from kio.schema.errors import ErrorCode
from kio.serial import entity_reader

from agent.wire import apis
from agent.wire.codec import (
    BODY_BYTES_MAX,
    decode_header,
    decode_request,
    encode_response,
    has_error_code,
    response_prefix,
)
from agent.wire.encode import ANSWER_BYTES_MAX
from agent.wire.errors import DecodeError, EncodeError
from agent.wire.varint import write_uvarint


def header(api_key: int, version: int, client_id: bytes | None, tags: bytes = b"") -> bytes:
    length = -1 if client_id is None else len(client_id)
    return struct.pack(">hhih", api_key, version, 77, length) + (client_id or b"") + tags


@pytest.mark.parametrize("client_id", [None, b"", b"rdkafka", "größe".encode()])
@pytest.mark.parametrize("version", [1, 9])
def test_headers(client_id: bytes | None, version: int) -> None:
    data = header(apis.METADATA, version, client_id, b"\0" if version >= 9 else b"")
    decoded = decode_header(b"??" + data + b"rest", 2, 2 + len(data))
    assert decoded.api_key == apis.METADATA
    assert decoded.api_version == version
    assert decoded.correlation_id == 77
    assert decoded.client_id == (None if client_id is None else client_id.decode())
    assert decoded.body_start == 2 + len(data)


def test_unknown_tagged_fields_of_a_header_are_skipped() -> None:
    data = header(apis.METADATA, 9, b"x", b"\x02\x05\x03abc\x89\x01\x00")
    assert decode_header(data + b"body", 0, len(data) + 4).body_start == len(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\0\3\0\1",
        header(apis.METADATA, 1, b"abc")[:-1],
        header(apis.METADATA, 1, b"\xff\xfe"),
        header(apis.METADATA, 9, b"x", b"\x01\x05\x7fabc"),
        header(apis.METADATA, 9, b"x", b"\xff\xff\xff\xff\xff\xff"),
        header(apis.METADATA, 9, b"x", b"\xff\xff\xff\xff\x07"),
        header(apis.METADATA, 9, b"x"),
    ],
)
def test_broken_headers(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_header(data, 0, len(data))


def test_three_bytes_too_many_after_all_topics() -> None:
    """Trap 2: librdkafka's Metadata v9+ for all topics."""
    assert decode_request(apis.METADATA, 9, b"\x00\x01\x00\x00\x00" + b"\0\0\0").topics is None


def test_unknown_tagged_fields_at_every_level_of_a_body() -> None:
    """Trap 1: kio raises KeyError on them."""
    tag = b"\x01\x63\x02hi"
    body = b"\x02" + bytes(16) + b"\x05logs" + tag + b"\x01\x00" + tag
    plain = b"\x02" + bytes(16) + b"\x05logs\x00" + b"\x01\x00" + b"\x00"
    assert decode_request(apis.METADATA, 12, body) == decode_request(apis.METADATA, 12, plain)


def test_known_tags_survive_beside_unknown_ones() -> None:
    cluster_id = b"\x00\x05\x05abcd"  # Fetch v12: tag 0, cluster id
    unknown = b"\xe8\x07\x01!"
    fixed = struct.pack(">iiiibii", -1, 500, 1, 1 << 20, 0, 0, -1) + b"\x01\x01\x01"
    request = decode_request(apis.FETCH, 12, fixed + b"\x02" + cluster_id + unknown)
    assert request.cluster_id == "abcd"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x02",
        struct.pack(">i", 2**31 - 1),
        struct.pack(">i", -5),
        struct.pack(">ih", 1, 2) + b"\xff\xff",
        struct.pack(">ih", 1, -2),
    ],
)
def test_broken_bodies(body: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_request(apis.METADATA, 1, body)


def test_broken_bodies_with_unknown_tags() -> None:
    for body in (b"\x01\0\0\0\x01\x63\x7f", b"\x01\0\0\0\x01\x63", b"\x01\0\0\0\xff\xff\xff\xff\x07\x63"):
        with pytest.raises(DecodeError):
            decode_request(apis.METADATA, 9, body)


@pytest.mark.parametrize("count", [2**35 - 1, 2**32 - 1, 2**31, 2**31 - 1, 100_000, 4])
def test_lying_counts_are_found_before_memory_is_reserved_for_them(count: int) -> None:
    """kio 0.6.5 reserves eight bytes an element and ends the process when it cannot."""
    claim = bytearray()
    write_uvarint(claim, count + 1 if count < 2**35 - 1 else count)
    for api_key, version, before in (
        (apis.METADATA, 9, b""),
        (apis.OFFSET_FETCH, 8, b"\x02\x02g"),
        (apis.OFFSET_COMMIT, 8, b"\x02g" + bytes(4) + b"\x01\x00\x02\x02t"),
    ):
        with pytest.raises(DecodeError):
            decode_request(api_key, version, before + bytes(claim) + b"\x01")
    for body in (struct.pack(">I", min(count, 2**31 - 1)), struct.pack(">I", min(count, 2**31 - 1)) + b"\0\1x"):
        with pytest.raises(DecodeError):
            decode_request(apis.METADATA, 1, body)


def test_a_request_that_would_cost_too_much() -> None:
    with pytest.raises(DecodeError, match="bytes"):
        decode_request(apis.METADATA, 1, bytes(BODY_BYTES_MAX + 1))
    with pytest.raises(DecodeError, match="elements"):
        decode_request(apis.METADATA, 1, struct.pack(">i", 60_000) + b"\0\1x" * 60_000)


def test_an_answer_of_mixed_versions_loses_what_its_version_does_not_have() -> None:
    body = {
        "throttle_time": datetime.timedelta(milliseconds=5),
        "brokers": [{"node_id": 3, "host": "a", "port": 9092, "rack": None}],
        "cluster_id": "c",
        "controller_id": 3,
        "topics": [
            {
                "error_code": ErrorCode.none,
                "name": "logs",
                "topic_id": uuid.UUID(int=7),
                "partitions": [{"error_code": 0, "partition_index": 0, "leader_id": 3, "replica_nodes": [3]}],
            }
        ],
    }
    for version in range(14):
        data = encode_response(apis.METADATA, version, 9, body)
        length, correlation_id = struct.unpack_from(">ii", data)
        assert length == len(data) - 4 and correlation_id == 9
        start = 9 if version >= 9 else 8
        decoded, size = entity_reader(load_response_schema(apis.METADATA, version))(data, start)
        assert start + size == len(data)
        assert decoded.topics[0].name == "logs"
        assert decoded.topics[0].partitions[0].replica_nodes == (3,)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"controler_id": 1}, "controler_id"),
        ({"topics": [{"nam": "x"}]}, "nam"),
        ({"topics": [{"name": 7}]}, "Metadata v5"),
        ({"controller_id": "three"}, "Metadata v5"),
        ({"controller_id": 2**40}, "Metadata v5"),
        ({"topics": 5}, "Metadata v5"),
        ({"topics": ["logs"]}, "Metadata v5"),
    ],
)
def test_a_wrong_answer_is_our_fault(body: dict[str, object], complaint: str) -> None:
    with pytest.raises(EncodeError, match=complaint):
        encode_response(apis.METADATA, 5, 1, body)


@pytest.mark.parametrize("version", [5, 12])
def test_a_huge_answer_is_given_up_before_it_takes_memory(version: int) -> None:
    written = 0

    class Topics(list[dict[str, object]]):
        def __iter__(self) -> Iterator[dict[str, object]]:
            nonlocal written
            for _ in range(len(self)):
                written += 1
                yield {"name": "n" * 10_000, "partitions": []}

    with pytest.raises(EncodeError, match=f"more than {ANSWER_BYTES_MAX}"):
        encode_response(apis.METADATA, version, 1, {"topics": Topics([{}] * 1_000_000)})
    assert written <= ANSWER_BYTES_MAX // 10_000 + 1


def test_what_an_answer_leaves_out_gets_its_default() -> None:
    data = encode_response(apis.METADATA, 12, 1, {})
    decoded, _ = entity_reader(load_response_schema(apis.METADATA, 12))(data, 9)
    assert decoded.controller_id == -1
    assert decoded.topics == decoded.brokers == ()
    assert decoded.cluster_id is None


def test_the_api_versions_answer_has_an_old_header_and_no_tags() -> None:
    """Traps 5 and 14."""
    data = encode_response(apis.API_VERSIONS, 3, 9, {"api_keys": [{"api_key": 18, "min_version": 0, "max_version": 4}]})
    assert data == struct.pack(">iih", 4 + 2 + 1 + 7 + 4 + 1, 9, 0) + b"\x02\0\x12\0\0\0\x04\0" + bytes(4) + b"\0"


def test_response_prefixes() -> None:
    assert response_prefix(apis.FETCH, 11, 5, 100) == struct.pack(">ii", 104, 5)
    assert response_prefix(apis.FETCH, 12, 5, 100) == struct.pack(">ii", 105, 5) + b"\0"
    assert response_prefix(apis.API_VERSIONS, 4, 5, 100) == struct.pack(">ii", 104, 5)


def test_which_answers_have_one_error_code_for_the_whole_request() -> None:
    assert has_error_code(apis.HEARTBEAT, 0)
    assert has_error_code(apis.FETCH, 7) and not has_error_code(apis.FETCH, 6)
    assert has_error_code(apis.METADATA, 13) and not has_error_code(apis.METADATA, 12)
    assert not has_error_code(apis.LIST_OFFSETS, 7)


LOADED = """
import sys
from datetime import timedelta
from agent.wire.apis import HEARTBEAT
from agent.wire.codec import encode_response

def show():
    print(*sorted(name.split(".")[3] for name in sys.modules if name.startswith("kio.schema.heartbeat.v")))

encode_response(HEARTBEAT, 0, 1, {"error_code": 0})
show()
encode_response(HEARTBEAT, 0, 1, {"error_code": 0, "throttle_time": timedelta(0)})
show()
"""


def test_a_version_loads_no_others_until_an_answer_has_their_names() -> None:
    """In a process of its own: this one has loaded them all."""
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    first, second = ({*line.split()} for line in done.stdout.splitlines())
    assert first == {"v0"}
    assert second == {"v0", "v1", "v2", "v3", "v4"}
