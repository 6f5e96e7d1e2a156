"""Hostile bytes against frames, headers, bodies and whole connections: our own errors or none, and nothing kept.

``FUZZ_EXAMPLES=20000 make fuzz`` for longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import struct
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kio.index import load_request_schema

from agent.wire import apis
from agent.wire.apis import API_BY_KEY, APIS
from agent.wire.codec import decode_header, decode_request
from agent.wire.errors import DecodeError
from agent.wire.frames import FrameSplitter, Scratch
from agent.wire.produce_codec import decode_produce
from ingest.ticket import IngestFailed
from tests.support.batches import build_batch
from tests.support.connections import Harness, deliver, frame, heartbeat, produce, turns
from tests.support.kio_bodies import bodies, build, written

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
FUZZ = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
SERVED = [(api.key, version) for api in APIS for version in range(api.served_min, api.max_version + 1)]
FRAME_BYTES_MAX = 1 << 20
LENGTHS = st.sampled_from([0, 1, 7, 8, 9, 100, 2**31 - 1, -1, -(2**31), FRAME_BYTES_MAX, FRAME_BYTES_MAX + 1])


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with structlog.testing.capture_logs():
        yield


@FUZZ
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=300),
            st.binary(max_size=50).map(lambda b: struct.pack(">i", len(b)) + b),
            LENGTHS.map(lambda length: struct.pack(">i", length)),
        ),
        max_size=20,
    ),
    st.lists(st.integers(1, 200), min_size=1, max_size=20),
    st.booleans(),
)
def test_any_bytes_are_split_the_same_however_they_are_cut(pieces: list[bytes], cuts: list[int], sparing: bool) -> None:
    data = b"".join(pieces)
    assert _split(data, [len(data) or 1], False) == _split(data, cuts, sparing)


def _split(data: bytes, cuts: list[int], sparing: bool) -> tuple[list[bytes], str | None]:
    splitter = FrameSplitter(Scratch(), FRAME_BYTES_MAX)
    found: list[bytes] = []
    position = turn = 0
    while position < len(data) and splitter.failure is None:
        if splitter.wanted_bytes:
            splitter.begin_frame()
        buffer = splitter.read_buffer(sparing)
        count = min(len(buffer), len(data) - position, cuts[turn % len(cuts)])
        buffer[:count] = data[position : position + count]
        block = splitter.received(count)
        if block is not None:
            found += [bytes(block.buffer[slice(*block.take())]) for _ in range(block.pending)]
        position += count
        turn += 1
    return found, splitter.failure


@FUZZ
@given(st.sampled_from(SERVED), st.binary(max_size=400))
def test_random_bodies(served: tuple[int, int], body: bytes) -> None:
    _decode(*served, body)


@FUZZ
@given(st.sampled_from(SERVED), st.data())
def test_mutated_bodies(served: tuple[int, int], data: st.DataObject) -> None:
    schema = load_request_schema(*served)
    valid = written(build(schema, data.draw(bodies(schema))))
    _decode(*served, _mutated(valid, data))


def _decode(api_key: int, version: int, body: bytes) -> None:
    with contextlib.suppress(DecodeError):
        decode_request(api_key, version, body)
    header = struct.pack(">hhih", api_key, version, 1, -1) + body
    with contextlib.suppress(DecodeError):
        decode_header(header, 0, len(header))
    if api_key == apis.PRODUCE:
        with contextlib.suppress(DecodeError):
            request = decode_produce(header, 0, len(header))
            for _, spans in request.topics:
                assert all(-1 <= start <= end <= len(header) for _, start, end in spans)


def _mutated(valid: bytes, data: st.DataObject) -> bytes:
    """A few bytes changed, removed, repeated or put in."""
    mutable = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(mutable)))
        length = data.draw(st.integers(0, 8))
        what = data.draw(
            st.one_of(
                st.binary(max_size=8),
                st.sampled_from([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff\x0f", b"\0" * 4, b"\x80"]),
                st.just(bytes(mutable[start : start + length] * 2)),
            )
        )
        mutable[start : start + length] = what
    return bytes(mutable)


VALID = [
    produce(1),
    produce(2, {("logs", 0): build_batch(codec="gzip"), ("logs", 3): build_batch(producer_id=5, base_sequence=0)}),
    produce(3, {("gone", 0): b"x", ("logs", 1): None}, version=3),
    produce(4, acks=0, version=8),
    frame(apis.METADATA, 1, 5, struct.pack(">ih", 1, 4) + b"logs"),
    frame(apis.API_VERSIONS, 0, 6),
    frame(apis.API_VERSIONS, 77, 6, b"\x80"),
    heartbeat(7),
]


@FUZZ
@given(
    st.lists(st.tuples(st.sampled_from(VALID), st.sampled_from(["whole", "body", "all"])), min_size=1, max_size=6),
    st.integers(1, 500),
    st.sampled_from(["settle", "fail", "lose"]),
    st.data(),
)
def test_connections_survive_anything_and_keep_nothing(
    requests: list[tuple[bytes, str]], piece: int, end: str, data: st.DataObject
) -> None:
    stream = bytearray()
    for request, damage in requests:
        if damage == "body":  # a frame whose length is right
            content = _mutated(request[4:], data)
            stream += struct.pack(">i", len(content)) + content
        else:
            stream += request if damage == "whole" else _mutated(request, data)
    asyncio.run(_converse(bytes(stream), piece, end))


async def _converse(stream: bytes, piece: int, end: str) -> None:
    async def echo(_call: Any, _request: Any, _agent: Any) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {}

    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: problems.append(context))
    harness = Harness({api.key: echo for api in APIS}, budget_bytes=1 << 20, request_bytes_max=1 << 20)
    connection, transport = harness.connect()
    _, bystander = harness.connect()
    position = 0
    for _ in range(1000):
        position += deliver(connection, transport, stream[position:], piece)
        assert harness.budget.held_bytes <= len(stream) + 2 * (1 << 20)
        if end != "lose":
            harness.writer.settle(outcome=IngestFailed("no") if end == "fail" else None)
        await turns()
        busy = len(harness.supervisor) or (end != "lose" and harness.writer.appended)
        if transport.closing or (position == len(stream) and not busy):
            break
    transport.answers()
    if end == "lose":
        transport.close()
        await turns()
    # What a closed connection has handed in is held until its commit: an acks=0 that fails closes one in mid-stream.
    harness.writer.settle()
    harness.sweep(3600)
    await turns()
    assert transport.closing
    assert not problems and not harness.failures
    assert harness.budget.held_bytes == 0, harness.budget.by_purpose
    assert bystander.closing, "the bystander was closed for being idle and nothing else"
    assert harness.metrics.connections_open == 0
    assert len(harness.supervisor) == 0


def test_memory_does_not_grow_with_bad_connections() -> None:
    """A thousand connections that each send rubbish leave no objects behind."""
    logging.disable(logging.CRITICAL)

    async def many(count: int) -> None:
        harness = Harness()
        for number in range(count):
            connection, transport = harness.connect()
            deliver(connection, transport, produce(1) + struct.pack(">i", -number - 1))
            harness.writer.settle()
            await turns(2)
            transport.close()
            await turns(2)
        assert harness.budget.held_bytes == 0 and harness.metrics.connections_open == 0

    asyncio.run(many(10))
    gc.collect()
    before = len(gc.get_objects())
    asyncio.run(many(1000))
    gc.collect()
    assert len(gc.get_objects()) - before < 500
    logging.disable(logging.NOTSET)


def test_served_apis_are_all_fuzzed() -> None:
    assert {key for key, _ in SERVED} == set(API_BY_KEY)
