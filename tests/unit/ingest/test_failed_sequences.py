"""No batch of an idempotent producer is committed before an earlier one of it that failed has come back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ingest import failed_sequences
from ingest.failed_sequences import BEFORE_ALL, HOLD_SECONDS, UNDER_WAY_SECONDS, FailedSequences
from ingest.ticket import IngestFailed
from metadata.model import BatchCommitted, BatchDraft, ExtentDraft, Refusal, Refused
from runtime.settings import KIB
from storage.store import StorageRefused
from tests.support.batches import build_batch
from tests.support.ingest_fakes import TOPIC, FakeStore, IngestBench, Put, all_failed, offsets
from tests.support.virtual_time import VirtualClock

DEADLINE_SECONDS = 60.0
REFUSED = Put(0.05, StorageRefused("access denied"), effect=False)


def batch(sequence: int, producer_id: int = 7, epoch: int = 0, size: int = 1) -> bytes:
    value = b"%d/%d/" % (producer_id, sequence) + b"x" * size
    return build_batch([value], producer_id=producer_id, producer_epoch=epoch, base_sequence=sequence)


def draft(sequence: int, producer_id: int = 7, epoch: int = 0) -> BatchDraft:
    return BatchDraft(100, 1, 0, producer_id, epoch, sequence)


def extent(*drafts: BatchDraft, partition: int = 0) -> ExtentDraft:
    return ExtentDraft(TOPIC, partition, 0, drafts)


def unhedged(**settings: Any) -> IngestBench:
    """Every batch of :data:`BIG` bytes is a segment of its own."""
    return IngestBench(store=FakeStore(hedged=False), linger_ms=0, segment_bytes_max=64 * KIB, **settings)


BIG = 70_000


@pytest.mark.parametrize("failure", [REFUSED, Put(hang=True)])
async def test_what_a_producer_pipelined_behind_a_failed_batch_fails_until_that_comes_back(failure: Put) -> None:
    bench = unhedged(upload_deadline_ms=1_000)
    bench.store.puts.append(failure)
    first = bench.produce(batch(0, size=BIG))
    behind = bench.produce(batch(1, size=BIG))
    assert all_failed(await first)
    assert all_failed(await behind)
    # Read only after its client had been told of the failure of sequence 0, and before that comes back.
    assert all_failed(await bench.produce(batch(2, size=BIG)))
    again = [bench.produce(batch(sequence, size=BIG)) for sequence in range(3)]
    assert [offsets(await future) for future in again] == [[0], [1], [2]]
    assert bench.metric("tidelog_ingest_batches_overtaking_total") == 2
    await bench.writer.drain()
    assert set(bench.store.objects) == {commit.segment_key for commit in bench.metadata.applied}
    assert not bench.writer._failed_sequences
    await bench.close()


async def test_only_the_batches_that_would_overtake_are_left_out_of_a_segment() -> None:
    bench = unhedged()
    bench.store.puts.append(REFUSED)
    first = bench.produce(batch(0, size=BIG))
    mixed = bench.produce(
        batch(0, producer_id=8), batch(1), batch(2), batch(1, producer_id=8), batch(0, epoch=1), build_batch(), batch(3)
    )
    other_partition = bench.produce(batch(1), partition=1)
    assert all_failed(await first)
    outcomes = await mixed
    assert [type(outcome) for outcome in outcomes] == [
        *(BatchCommitted, IngestFailed, IngestFailed, BatchCommitted, BatchCommitted, BatchCommitted, IngestFailed)
    ]
    assert [outcome.base_offset for outcome in outcomes if isinstance(outcome, BatchCommitted)] == [0, 1, 2, 3]
    assert offsets(await other_partition) == [0]
    (commit,) = bench.metadata.applied
    data = bench.store.objects[commit.segment_key]
    stored = []
    for run in commit.extents:
        position = run.byte_position
        for one in run.batches:
            stored.append(data[position : position + one.byte_length])
            position += one.byte_length
    expected = [batch(0, producer_id=8), batch(1, producer_id=8), batch(0, epoch=1), build_batch(), batch(1)]
    assert stored == expected
    assert bench.metric("tidelog_ingest_batches_total") == 5
    assert bench.metric("tidelog_ingest_records_total") == 5
    assert bench.metric("tidelog_ingest_bytes_total") == sum(map(len, expected))
    await bench.close()


async def test_a_retry_passes_and_lets_what_follows_it_pass_even_in_one_segment() -> None:
    bench = unhedged()
    bench.store.puts.append(REFUSED)
    assert all_failed(await bench.produce(batch(0, size=BIG)))
    (late, again, after) = await bench.produce(batch(1), batch(0), batch(1))
    assert isinstance(late, IngestFailed)
    assert offsets([again, after]) == [0, 1]
    await bench.close()


async def test_a_retry_that_fails_as_well_keeps_the_rule() -> None:
    bench = unhedged()
    bench.store.puts.extend([REFUSED, REFUSED])
    assert all_failed(await bench.produce(batch(0, size=BIG)))
    again = bench.produce(batch(0, size=BIG))
    behind = bench.produce(batch(1, size=BIG))
    assert all_failed(await again) and all_failed(await behind)
    assert offsets(await bench.produce(batch(0), batch(1))) == [0, 1]
    await bench.close()


async def test_a_segment_that_fails_while_earlier_ones_upload_does_not_touch_them() -> None:
    bench = unhedged()
    bench.store.puts.extend([Put(1.0), REFUSED, Put(0.01)])
    futures = [bench.produce(batch(sequence, size=BIG)) for sequence in range(3)]
    assert all_failed(await futures[1])
    assert offsets(await futures[0]) == [0]
    assert all_failed(await futures[2])
    assert offsets(await bench.produce(batch(1), batch(2))) == [1, 2]
    await bench.close()


async def test_nothing_is_stuck_when_a_whole_group_would_overtake() -> None:
    """Every segment of a full group ends unsent, and the uploaded one behind them is sent all the same."""
    bench = unhedged(uploads_max=80)
    bench.store.puts.append(Put(0.5, StorageRefused("access denied"), effect=False))
    futures = [bench.produce(batch(sequence, size=BIG)) for sequence in range(70)]
    plain = bench.produce(build_batch())
    assert offsets(await plain) == [0]
    for future in futures:
        assert all_failed(await future)
    await bench.close()


async def test_a_commit_refused_as_a_whole_is_a_failure_too() -> None:
    bench = unhedged()
    real, refusals = bench.metadata.commit_segments, [Refused(Refusal.INVALID_REQUEST, "no such agent")]

    async def refuse_first(*arguments: object) -> object:
        if refusals:
            raise refusals.pop()
        return await real(*arguments)

    bench.metadata.commit_segments = refuse_first
    assert all_failed(await bench.produce(batch(0)))
    assert all_failed(await bench.produce(batch(1)))
    assert offsets(await bench.produce(batch(0), batch(1))) == [0, 1]
    await bench.close()


async def test_what_failed_when_fenced_must_come_back_first_in_the_new_epoch() -> None:
    bench = unhedged()
    # The old epoch has counted further than the new one will.
    for _ in range(3):
        await bench.produce(build_batch([b"x" * BIG]))
    bench.metadata.script.append("fenced")
    sealed = bench.produce(batch(0, producer_id=1, size=BIG))
    await asyncio.sleep(0.055)
    still_open = bench.produce(batch(0, producer_id=2))
    assert all_failed(await sealed) and all_failed(await still_open)
    assert all_failed(await bench.produce(batch(0, producer_id=3)))
    bench.writer.start(2)
    late = bench.produce(*(batch(1, producer_id=producer_id) for producer_id in (1, 2, 3)))
    assert all_failed(await late)
    again = [batch(sequence, producer_id=producer_id) for producer_id in (1, 2, 3) for sequence in (0, 1)]
    assert offsets(await bench.produce(*again)) == [3, 4, 5, 6, 7, 8]
    await bench.close()


async def test_the_earliest_failure_counts_and_sequences_wrap() -> None:
    failed = FailedSequences(VirtualClock(), DEADLINE_SECONDS)
    last = 2**31 - 1
    failed.add(5, TOPIC, 0, [draft(0)])
    failed.add(3, TOPIC, 0, [draft(last)])
    failed.add(4, TOPIC, 0, [draft(0)])
    assert failed.overtaking(3, [extent(draft(1))]) == set(), "it was appended before the failed ones"
    assert failed.overtaking(6, [extent(draft(0), draft(1), draft(last), draft(0))]) == {(0, 0), (0, 1)}
    assert not failed


async def test_failures_are_forgotten_in_time() -> None:
    failed = FailedSequences(VirtualClock(), DEADLINE_SECONDS)
    failed.add(0, TOPIC, 0, [draft(0)])
    await asyncio.sleep(HOLD_SECONDS)
    failed.add(1, TOPIC, 0, [draft(0, producer_id=8)])
    await asyncio.sleep(DEADLINE_SECONDS - 1)
    assert failed.overtaking(2, [extent(draft(1))]) == {(0, 0)}
    await asyncio.sleep(1)
    assert failed.overtaking(3, [extent(draft(1), draft(1, producer_id=8))]) == {(0, 1)}


async def test_when_it_is_full_only_what_is_safe_passes_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failed_sequences, "FAILED_MAX", 2)
    failed = FailedSequences(VirtualClock(), DEADLINE_SECONDS)
    failed.add(BEFORE_ALL, TOPIC, 0, [draft(5, producer_id=producer_id) for producer_id in (1, 2, 3)])
    asked = [extent(*(draft(6, producer_id=producer_id) for producer_id in (1, 2, 3, 4)), draft(0, producer_id=5))]
    assert failed.overtaking(0, asked) == {(0, 0), (0, 1), (0, 2), (0, 3)}
    assert failed.overtaking(1, [extent(draft(5, producer_id=1), draft(-1, producer_id=-1))]) == set()
    await asyncio.sleep(UNDER_WAY_SECONDS + DEADLINE_SECONDS)
    assert failed.overtaking(2, [extent(draft(6, producer_id=3), draft(6, producer_id=2))]) == {(0, 1)}
