"""Hedged puts, retries under new keys, deadlines, and what happens to the objects that lost."""

from __future__ import annotations

import asyncio

import pytest

from ingest.segment import parse_segment_key
from runtime.settings import KIB
from storage.store import ObjectExists, StorageRefused, StorageUnavailable
from tests.support.batches import build_batch
from tests.support.ingest_fakes import FakeStore, IngestBench, Put, all_failed, offsets


def now() -> float:
    return asyncio.get_running_loop().time()


def attempts(keys: list[str]) -> list[tuple[int, int]]:
    return [(name.sequence, name.attempt) for name in map(parse_segment_key, keys)]


async def test_a_straggling_put_is_hedged_under_another_key_and_the_loser_is_deleted() -> None:
    bench = IngestBench(linger_ms=0, hedge_after_ms=120)
    bench.store.puts.extend([Put(5.0), Put(0.05)])
    assert offsets(await bench.produce(build_batch())) == [0]
    assert now() == pytest.approx(0.120 + 0.050 + 0.001)
    assert attempts(bench.store.started) == [(0, 0), (0, 1)]
    assert bench.store.cancelled == bench.store.started[:1]
    await bench.writer.drain()
    assert bench.store.deleted == bench.store.started[:1]
    assert list(bench.store.objects) == bench.store.started[1:]
    assert bench.metadata.applied[0].segment_key == bench.store.started[1]
    assert bench.metric("tidelog_ingest_hedges_total", outcome="won") == 1
    assert bench.metric("tidelog_ingest_objects_discarded_total", outcome="deleted") == 1
    await bench.close()


async def test_the_first_put_may_still_win() -> None:
    bench = IngestBench(linger_ms=0, hedge_after_ms=120)
    bench.store.puts.extend([Put(0.15), Put(0.5)])
    await bench.produce(build_batch())
    assert now() == pytest.approx(0.151)
    await bench.writer.drain()
    assert bench.store.deleted == bench.store.started[1:]
    assert bench.metadata.applied[0].segment_key == bench.store.started[0]
    assert bench.metric("tidelog_ingest_hedges_total", outcome="lost") == 1
    await bench.close()


async def test_two_that_end_together_leave_one_object() -> None:
    bench = IngestBench(linger_ms=0, hedge_after_ms=120)
    bench.store.puts.extend([Put(0.17), Put(0.05)])
    await bench.produce(build_batch())
    await bench.writer.drain()
    assert list(bench.store.objects) == [bench.metadata.applied[0].segment_key]
    await bench.close()


async def test_when_the_straggler_fails_its_hedge_decides() -> None:
    bench = IngestBench(linger_ms=0, hedge_after_ms=120)
    bench.store.puts.extend([Put(0.13, StorageUnavailable("timeout"), effect=True), Put(0.2)])
    await bench.produce(build_batch())
    assert now() == pytest.approx(0.321)
    await bench.writer.drain()
    # The failed one had taken effect all the same.
    assert attempts(bench.store.deleted) == [(0, 0)]
    assert attempts(list(bench.store.objects)) == [(0, 1)]
    await bench.close()


async def test_the_share_of_hedges_is_bounded_when_the_whole_store_is_slow() -> None:
    store = FakeStore(put_seconds=0.4)
    bench = IngestBench(store=store, linger_ms=0, hedge_after_ms=120, hedge_share_max=0.2)
    for _ in range(50):
        await bench.produce(build_batch())
    assert len(store.started) - 50 <= 1 + 0.2 * 50
    assert len(store.started) - 50 >= 9
    await bench.close()


async def test_no_hedge_for_a_store_that_is_not_worth_one_or_when_turned_off() -> None:
    for bench in (
        IngestBench(store=FakeStore(hedged=False, put_seconds=1), linger_ms=0),
        IngestBench(store=FakeStore(put_seconds=1), linger_ms=0, hedge_after_ms=0),
        IngestBench(store=FakeStore(put_seconds=1), linger_ms=0, hedge_share_max=0),
    ):
        await bench.produce(build_batch())
        assert len(bench.store.started) == 1
        await bench.close()


@pytest.mark.parametrize("effect", [True, False])
@pytest.mark.parametrize("hedged", [True, False])
async def test_a_failed_put_is_tried_again_under_a_new_key(hedged: bool, effect: bool) -> None:
    bench = IngestBench(store=FakeStore(hedged=hedged), linger_ms=0)
    bench.store.puts.extend([Put(0.01, StorageUnavailable("503"), effect=effect) for _ in range(3)])
    outcome = bench.produce(build_batch())
    await asyncio.sleep(0.05)
    assert bench.writer.problem() == "uploads fail: 503"
    assert offsets(await outcome) == [0]
    assert bench.writer.problem() is None
    await bench.writer.drain()
    assert attempts(bench.store.started) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert attempts(list(bench.store.objects)) == [(0, 3)]
    assert attempts(bench.store.deleted) == [(0, 0), (0, 1), (0, 2)]
    assert bench.metric("tidelog_ingest_upload_retries_total") == 3
    await bench.close()


async def test_somebody_elses_object_under_our_key_is_left_alone() -> None:
    bench = IngestBench(linger_ms=0)
    bench.store.puts.append(Put(0.01, ObjectExists("not yours"), effect=False))
    await bench.produce(build_batch())
    await bench.writer.drain()
    assert bench.store.deleted == []
    await bench.close()


async def test_a_store_that_refuses_fails_the_segment_at_once() -> None:
    bench = IngestBench(linger_ms=0)
    bench.store.puts.append(Put(0.01, StorageRefused("access denied"), effect=False))
    assert all_failed(await bench.produce(build_batch()))
    assert now() < 0.1
    assert offsets(await bench.produce(build_batch())) == [0]
    await bench.close()


async def test_an_upload_that_misses_its_deadline_fails_only_its_own_segment() -> None:
    bench = IngestBench(
        store=FakeStore(hedged=False), linger_ms=0, segment_bytes_max=64 * KIB, upload_deadline_ms=2_000
    )
    bench.store.puts.append(Put(hang=True))
    first = bench.produce(build_batch([b"x" * 70_000]))
    await asyncio.sleep(0.5)
    second = bench.produce(build_batch([b"x" * 70_000]))
    assert all_failed(await first)
    assert now() == pytest.approx(1.5), "three quarters of the deadline: the rest is for commits"
    assert offsets(await second) == [0]
    assert now() == pytest.approx(1.501)
    assert [call[2] for call in bench.metadata.calls] == [(1,)], "the gap in the sequences is allowed"
    await bench.writer.drain()
    assert attempts(bench.store.deleted) == [(0, 0)]
    assert bench.metric("tidelog_ingest_segments_total", outcome="failed") == 1
    await bench.close()


async def test_hanging_hedges_are_cut_off_at_the_deadline_too() -> None:
    bench = IngestBench(linger_ms=0, upload_deadline_ms=2_000)
    bench.store.puts.extend([Put(hang=True), Put(hang=True)])
    assert all_failed(await bench.produce(build_batch()))
    await bench.writer.drain()
    assert sorted(bench.store.deleted) == sorted(bench.store.started)
    assert bench.store.running == 0
    await bench.close()


async def test_an_object_that_cannot_be_deleted_is_left_to_the_sweep() -> None:
    bench = IngestBench(linger_ms=0, hedge_after_ms=120)
    bench.store.delete_error = StorageUnavailable("503")
    bench.store.puts.extend([Put(0.3), Put(0.05)])
    await bench.produce(build_batch())
    await bench.writer.drain()
    assert bench.metric("tidelog_ingest_objects_discarded_total", outcome="left") == 1
    await bench.close()


async def test_an_unexpected_error_of_the_store_stops_the_process_and_loses_nobody() -> None:
    bench = IngestBench(store=FakeStore(hedged=False), linger_ms=0)
    bench.store.puts.append(Put(0.01, ZeroDivisionError("a bug"), effect=False))  # type: ignore[arg-type]
    assert all_failed(await bench.produce(build_batch()))
    await asyncio.sleep(0)
    ((name, error),) = bench.task_failures
    assert name == "ingest-upload-0" and isinstance(error, ZeroDivisionError)
    bench.task_failures.clear()
    await bench.close()
