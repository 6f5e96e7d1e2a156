"""Sealing, acknowledging, memory, drain and stop of the segment writer."""

from __future__ import annotations

import asyncio

import pytest

from ingest.buffer import BATCH_OVERHEAD_BYTES
from ingest.policy import SEGMENT_BATCHES_MAX
from ingest.segment import check_segment, parse_segment_key
from ingest.ticket import ProduceTicket
from metadata.model import Refusal
from runtime.settings import KIB
from storage.memory import MemoryStore
from tests.support.batches import build_batch
from tests.support.ingest_fakes import FakeMetadata, FakeStore, IngestBench, Put, all_failed, offsets, pending
from tests.support.virtual_time import VirtualClock


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_a_batch_is_acknowledged_after_linger_upload_and_commit_with_its_own_offset() -> None:
    bench = IngestBench(linger_ms=250)
    first = bench.produce(build_batch([b"a", b"b"]), build_batch([b"c"]))
    await asyncio.sleep(0.2)
    second = bench.produce(build_batch([b"d"]))
    other = bench.produce(build_batch([b"x"]), partition=1)

    assert offsets(await first) == [0, 2]
    assert now() == pytest.approx(0.250 + 0.060 + 0.001)
    assert offsets(await second) == [3]
    assert offsets(await other) == [0]
    assert len(bench.store.objects) == 1
    assert bench.metric("tidelog_ingest_seals_total", reason="linger") == 1
    assert bench.metric("tidelog_ingest_records_total") == 5
    assert bench.metric("tidelog_ingest_batches_total") == 4
    await bench.close()


async def test_the_object_is_a_whole_segment_and_the_sink_saw_its_bytes_before_the_commit() -> None:
    bench = IngestBench()
    bench.produce(build_batch([b"a" * 100]), partition=3)
    bench.produce(build_batch([b"b" * 40_000]), partition=4)
    await bench.writer.drain()
    ((key, data),) = bench.store.objects.items()
    footer = check_segment(data)
    assert [(extent.partition, extent.byte_position) for extent in footer.extents] == [(3, 0), (4, 170)]
    assert (footer.agent_epoch, footer.sequence) == (1, 0)
    name = parse_segment_key(key)
    assert (name.agent_epoch, name.sequence, name.attempt) == (1, 0, 0)
    assert bench.sink.events == [("uploaded", key)]
    for position, chunk in bench.sink.segments[key]:
        assert data[position : position + len(chunk)] == bytes(chunk)
    assert sum(len(chunk) for _, chunk in bench.sink.segments[key]) == sum(e.byte_length for e in footer.extents)
    await bench.close()


async def test_a_full_segment_is_sealed_at_once() -> None:
    bench = IngestBench(segment_bytes_max=64 * KIB, linger_ms=60_000)
    futures = [bench.produce(build_batch([b"x" * 30_000])) for _ in range(3)]
    await futures[2]
    assert now() == pytest.approx(0.061)
    assert bench.metric("tidelog_ingest_seals_total", reason="size") == 1
    assert bench.writer._open is None
    await bench.close()


async def test_one_request_may_fill_several_segments() -> None:
    bench = IngestBench(segment_bytes_max=64 * KIB, linger_ms=60_000)
    future = bench.produce(*[build_batch([b"%d" % n * 30_000]) for n in range(8)])
    assert bench.metric("tidelog_ingest_seals_total", reason="size") == 2
    await bench.writer.drain()
    assert offsets(await future) == list(range(8))
    await bench.close()


async def test_a_request_of_more_batches_than_a_segment_may_have() -> None:
    bench = IngestBench(linger_ms=60_000)
    future = bench.produce(*[build_batch()] * (2 * SEGMENT_BATCHES_MAX + 1))
    assert bench.metric("tidelog_ingest_seals_total", reason="size") == 2
    await bench.writer.drain()
    assert offsets(await future) == list(range(2 * SEGMENT_BATCHES_MAX + 1))
    await bench.close()


async def test_a_request_is_turned_away_whole() -> None:
    bench = IngestBench()
    await bench.writer.stop()
    future = bench.produce(*[build_batch()] * 3)
    assert not future.done(), "never before append returns"
    assert all_failed(await future)
    await bench.close()


async def test_nothing_runs_when_nothing_is_open() -> None:
    bench = IngestBench()
    await bench.produce(build_batch())
    await asyncio.sleep(1)
    loop = asyncio.get_running_loop()
    assert [handle for handle in loop._scheduled if not handle.cancelled()] == []  # type: ignore[attr-defined]
    await bench.close()


@pytest.mark.parametrize("batches_per_request", [1, 4, 20])
async def test_memory_pressure_seals_what_is_worth_a_put_and_does_not_flood_the_store(batches_per_request: int) -> None:
    bench = IngestBench(budget_bytes=1 << 20, linger_ms=60_000, segment_bytes_max=512 * KIB)
    bench.budget.take("request", 1 << 20)
    request = [build_batch([b"x" * 20_000])] * batches_per_request
    futures = [bench.produce(*request) for _ in range(20 // batches_per_request)]
    # The first is sealed at once since nothing is on its way; then every 64 KiB (an eighth of a segment).
    assert bench.metric("tidelog_ingest_seals_total", reason="memory") == 1 + 19 // 4
    bench.budget.give("request", 1 << 20)
    await bench.writer.drain()
    assert [offset for future in futures for offset in offsets(await future)] == list(range(20))
    await bench.close()


async def test_small_batches_count_with_what_they_hold_beside_their_payload() -> None:
    bench = IngestBench()
    for _ in range(1000):
        bench.produce(build_batch())
    assert bench.budget.by_purpose["segment"] >= 1000 * BATCH_OVERHEAD_BYTES
    await bench.writer.drain()
    assert bench.budget.by_purpose["segment"] == 0
    await bench.close()


async def test_commits_go_in_seal_order_and_finished_segments_share_a_call() -> None:
    store = FakeStore(hedged=False)
    bench = IngestBench(store=store, segment_bytes_max=64 * KIB)
    store.put_seconds = 0.01
    store.puts.append(Put(0.5))
    futures = [bench.produce(build_batch([b"x" * 70_000])) for _ in range(4)]
    await futures[3]
    assert now() == pytest.approx(0.501)
    assert [call[2] for call in bench.metadata.calls] == [(0, 1, 2, 3)]
    assert [offsets(await future) for future in futures] == [[0], [1], [2], [3]]
    await bench.close()


async def test_at_most_uploads_max_segments_upload_at_once() -> None:
    bench = IngestBench(store=FakeStore(hedged=False), segment_bytes_max=64 * KIB, uploads_max=3)
    for _ in range(10):
        bench.produce(build_batch([b"x" * 70_000]))
    await bench.writer.drain()
    assert bench.store.running_max == 3
    assert len(bench.metadata.applied) == 10
    await bench.close()


async def test_settled_sequence_follows_the_answers_seen() -> None:
    bench = IngestBench()
    for _ in range(3):
        await bench.produce(build_batch())
    assert [(settled, sequences) for _, settled, sequences in bench.metadata.calls] == [
        (-1, (0,)),
        (0, (1,)),
        (1, (2,)),
    ]
    await bench.close()


async def test_a_refused_batch_does_not_touch_its_neighbours() -> None:
    metadata = FakeMetadata()
    metadata.refuse = lambda batch: Refusal.OUT_OF_ORDER_SEQUENCE if batch.base_sequence == 9 else None
    bench = IngestBench(metadata=metadata)
    outcomes = await bench.produce(
        build_batch(), build_batch(producer_id=5, producer_epoch=0, base_sequence=9), build_batch()
    )
    assert outcomes[1].refusal is Refusal.OUT_OF_ORDER_SEQUENCE
    assert offsets([outcomes[0], outcomes[2]]) == [0, 1]
    assert bench.metric("tidelog_ingest_batches_refused_total") == 1
    assert bench.metric("tidelog_ingest_records_total") == 2
    await bench.close()


async def test_a_segment_of_nothing_but_duplicates_is_deleted() -> None:
    bench = IngestBench()
    batch = build_batch(producer_id=5, producer_epoch=0, base_sequence=0)
    assert offsets(await bench.produce(batch)) == [0]
    assert offsets(await bench.produce(batch)) == [0]
    await bench.writer.drain()
    assert len(bench.store.objects) == 1
    assert parse_segment_key(bench.store.deleted[0]).sequence == 1
    assert bench.sink.events[-1] == ("dropped", bench.store.deleted[0])
    assert bench.metric("tidelog_ingest_batches_duplicate_total") == 1
    await bench.close()


async def test_drain_does_not_wait_for_the_linger_and_takes_in_what_comes_meanwhile() -> None:
    bench = IngestBench(linger_ms=60_000)
    first = bench.produce(build_batch())
    draining = asyncio.ensure_future(bench.writer.drain())
    await asyncio.sleep(0.02)
    late = bench.produce(build_batch())
    await draining
    assert first.done() and late.done()
    assert now() < 0.2
    assert bench.metric("tidelog_ingest_seals_total", reason="drain") == 2
    await bench.close()


async def test_stop_fails_what_is_open_uploading_and_committing_and_later_appends() -> None:
    bench = IngestBench(store=FakeStore(hedged=False), segment_bytes_max=64 * KIB)
    bench.metadata.always = "hang"
    committing = bench.produce(build_batch([b"x" * 70_000]))
    await asyncio.sleep(0.1)
    uploading = bench.produce(build_batch([b"x" * 70_000]))
    still_open = bench.produce(build_batch())
    await asyncio.sleep(0.01)
    await bench.writer.stop()
    for future in (committing, uploading, still_open):
        assert all_failed(await future)
    late = bench.produce(build_batch(), build_batch())
    assert not late.done(), "a ticket never settles inside append"
    assert all_failed(await late)
    assert bench.writer.problem() == "stopped"
    await bench.writer.stop()
    await bench.close()


async def test_a_writer_that_was_not_started_takes_nothing() -> None:
    bench = IngestBench()
    with pytest.raises(RuntimeError, match="cannot start"):
        bench.writer.start(2)
    await bench.close()


async def test_settling_may_append_again_at_once() -> None:
    """What a connection does: its answer goes out, and the next request, already received, is taken in."""
    bench = IngestBench(budget_bytes=1 << 20, linger_ms=0, segment_bytes_max=64 * KIB)
    done = asyncio.get_running_loop().create_future()
    left = 50

    def again(_ticket: ProduceTicket | None) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            done.set_result(None)
            return
        bench.writer.append(ProduceTicket(1, again), [pending(build_batch([b"x" * 70_000]))])

    again(None)
    await done
    assert bench.metadata.high_watermarks[bytes(range(16)), 0] == 49
    await bench.close()


async def test_with_the_real_memory_store() -> None:
    store = MemoryStore(VirtualClock())
    bench = IngestBench(store=store)
    futures = [bench.produce(build_batch([b"%d" % n]), partition=n % 7) for n in range(100)]
    await bench.writer.drain()
    assert sorted(offsets([outcome for future in futures for outcome in await future]))[-1] == 14
    infos = [info async for info in store.list("segments/")]
    assert len(infos) == 1
    check_segment(await store.get(infos[0].key))
    await bench.close()
