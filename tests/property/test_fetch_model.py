"""Random segments and random fetches against a list of records."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.agent.fetch.world import MIB, TOPIC, World, make_batch, records_of

PARTITIONS = 3

_batch = st.tuples(st.integers(1, 5), st.sampled_from([0, 10, 300, 5_000, 40_000]))
_part = st.tuples(st.integers(0, PARTITIONS - 1), st.lists(_batch, min_size=1, max_size=4))


@dataclass(frozen=True)
class Write:
    parts: list[tuple[int, list[tuple[int, int]]]]
    tail: bool
    announce: bool


@dataclass(frozen=True)
class Fetch:
    at: list[tuple[int, float]]  # (partition, how far into it)
    partition_bytes: int
    byte_max: int


@dataclass(frozen=True)
class Disturb:
    what: str


_write = st.builds(
    Write,
    parts=st.lists(_part, min_size=1, max_size=PARTITIONS, unique_by=lambda part: part[0]),
    tail=st.booleans(),
    announce=st.booleans(),
)
_fetch = st.builds(
    Fetch,
    at=st.lists(st.tuples(st.integers(0, PARTITIONS - 1), st.floats(0, 1)), min_size=1, max_size=4),
    partition_bytes=st.sampled_from([0, 1, 500, 20_000, MIB]),
    byte_max=st.sampled_from([1, 1_000, 100_000, 50 * MIB]),
)
_disturb = st.builds(Disturb, st.sampled_from(["evict", "resynchronize", "hold", "release"]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=st.lists(st.one_of(_write, _fetch, _fetch, _disturb), min_size=1, max_size=25),
    block_bytes=st.sampled_from([64 * 1024, 4 * MIB]),
)
def test_fetches_give_exactly_the_records_of_the_log(steps: list[Write | Fetch | Disturb], block_bytes: int) -> None:
    asyncio.run(_run(steps, block_bytes))


async def _run(steps: list[Write | Fetch | Disturb], block_bytes: int) -> None:
    world = World(block_bytes=block_bytes)
    model: list[list[bytes]] = [[] for _ in range(PARTITIONS)]
    batch_ends: list[list[tuple[int, int]]] = [[] for _ in range(PARTITIONS)]  # (last offset, byte length)
    held = []
    for partition in range(PARTITIONS):
        world.create(partition)
    for step in steps:
        if isinstance(step, Write):
            parts = []
            for partition, batches in step.parts:
                payloads = []
                for count, size in batches:
                    first = len(model[partition])
                    values = [b"%d/%d " % (partition, first + index) + b"." * size for index in range(count)]
                    model[partition] += values
                    payloads.append(make_batch(values))
                    batch_ends[partition].append((len(model[partition]) - 1, len(payloads[-1])))
                parts.append((partition, payloads))
            await world.write(parts, tail=step.tail, announce=step.announce)
            if not step.announce:
                world.fetcher.resynchronize()  # an event was lost: this is how the transport says so
        elif isinstance(step, Fetch):
            asked = [(partition, int(share * len(model[partition]))) for partition, share in step.at]
            fetched = await world.fetch(asked, partition_bytes=step.partition_bytes, byte_max=step.byte_max)
            _check(step, asked, fetched.partitions, model, batch_ends)
            if len(held) < 3:
                held.append((fetched, [b"".join(answer.chunks) for answer in fetched.partitions]))
            else:
                fetched.release()
        elif step.what == "evict":
            world.evict()
        elif step.what == "resynchronize":
            world.fetcher.resynchronize()
        elif step.what == "release" and held:
            fetched, before = held.pop()
            assert [b"".join(answer.chunks) for answer in fetched.partitions] == before, "sent bytes never change"
            fetched.release()
    for fetched, before in held:
        assert [b"".join(answer.chunks) for answer in fetched.partitions] == before
        fetched.release()
    await world.settle()
    assert world.budget.held_bytes == 0
    assert all(log.high_watermark == len(model[partition]) for (_, partition), log in world.metadata.logs.items())
    assert set(world.metadata.logs) == {(TOPIC, partition) for partition in range(PARTITIONS)}


def _check(step: Fetch, asked, answers, model, batch_ends) -> None:  # type: ignore[no-untyped-def]
    sent = 0
    oversized = 0
    for (partition, offset), answer in zip(asked, answers, strict=True):
        assert answer.problem is None
        assert answer.high_watermark == len(model[partition])
        records = records_of(answer.chunks)
        assert answer.byte_length == sum(map(len, answer.chunks))
        if records:
            ends = [(last, size) for last, size in batch_ends[partition] if last >= offset]
            first = next((last + 1 for last, _ in reversed(batch_ends[partition]) if last < offset), 0)
            assert records == list(enumerate(model[partition][first:], first))[: len(records)]
            assert records[-1][0] in [last for last, _ in ends], "whole batches"
            if answer.byte_length > min(step.partition_bytes, step.byte_max - sent):
                oversized += 1
                assert answer.byte_length == ends[0][1], "only a single first batch may be over the limits"
        sent += answer.byte_length
    assert oversized <= 1
    if any(offset < len(model[partition]) for partition, offset in asked):
        assert sent > 0, "there is always progress"
