"""Unknown outcomes, deadlines, fencing: the commit's side of the writer."""

from __future__ import annotations

import asyncio

import pytest

from ingest.segment import parse_segment_key
from metadata.model import Refusal, Refused
from runtime.settings import KIB
from tests.support.batches import build_batch
from tests.support.ingest_fakes import FakeMetadata, FakeStore, IngestBench, Put, all_failed, offsets


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize("step", ["before", "after"])
async def test_an_unknown_outcome_is_asked_for_until_it_is_known(step: str) -> None:
    bench = IngestBench(linger_ms=0)
    bench.metadata.script.extend([step] * 5)
    outcome = bench.produce(build_batch(), build_batch())
    await asyncio.sleep(0.08)
    assert bench.writer.problem() is not None and "commits fail" in str(bench.writer.problem())
    assert offsets(await outcome) == [0, 1]
    assert bench.writer.problem() is None
    assert len(set(bench.metadata.calls)) == 1, "the very same commit each time"
    assert len(bench.metadata.calls) == 6
    assert len(bench.metadata.applied) == 1
    assert bench.metric("tidelog_ingest_commit_retries_total") == 5
    assert bench.sink.events == [("uploaded", bench.metadata.applied[0].segment_key)]
    await bench.close()


async def test_a_commit_call_that_hangs_is_asked_again() -> None:
    bench = IngestBench(linger_ms=0)
    bench.metadata.script.append("hang")
    assert offsets(await bench.produce(build_batch())) == [0]
    assert 10 < now() < 10.2
    await bench.close()


async def test_nothing_overtakes_a_commit_whose_outcome_is_unknown() -> None:
    bench = IngestBench(linger_ms=0, store=FakeStore(put_seconds=0.001))
    bench.metadata.always = "before"
    futures = [bench.produce(build_batch())]
    await asyncio.sleep(0.01)
    for _ in range(5):
        futures.append(bench.produce(build_batch()))
        await asyncio.sleep(0.1)
    bench.metadata.always = None
    assert [offsets(await future) for future in futures] == [[n] for n in range(6)]
    assert {call[2] for call in bench.metadata.calls} == {(0,), (1, 2, 3, 4, 5)}
    await bench.close()


async def test_at_the_deadline_tickets_fail_but_the_commit_is_still_asked_for_first() -> None:
    """The commit of segment 0 arrives late. Its idempotent producer has given up waiting and retries; the retry must
    be a duplicate of the late one, not a second copy ahead of it."""
    bench = IngestBench(linger_ms=0, upload_deadline_ms=2_000, store=FakeStore(put_seconds=0.001))
    bench.metadata.always = "before"
    batch = build_batch([b"precious"], producer_id=7, producer_epoch=0, base_sequence=0)
    plain = build_batch([b"plain"])
    first = bench.produce(batch)
    await asyncio.sleep(0.1)
    behind = bench.produce(plain)
    assert all_failed(await first)
    assert now() == pytest.approx(2.0)
    assert all_failed(await behind)
    assert now() == pytest.approx(2.1)
    assert bench.metric("tidelog_ingest_segments_total", outcome="unresolved") == 1
    assert bench.metric("tidelog_ingest_segments_total", outcome="failed") == 1
    assert bench.budget.by_purpose["segment"] == 0

    retries = [bench.produce(batch), bench.produce(plain)]
    await asyncio.sleep(0.5)
    # Never sent, so certainly not committed: its object is gone. The unresolved one must stay.
    assert [parse_segment_key(key).sequence for key in bench.store.deleted] == [1]
    bench.metadata.always = None
    (again,) = await retries[0]
    assert (again.base_offset, again.duplicate) == (0, True)
    assert offsets(await retries[1]) == [1]
    assert [commit.sequence for commit in bench.metadata.applied] == [0, 2]
    assert bench.sink.events[:2] == [
        ("uploaded", bench.metadata.applied[0].segment_key),
        ("dropped", bench.metadata.applied[0].segment_key),
    ]
    await bench.writer.drain()
    assert {commit.segment_key for commit in bench.metadata.applied} == set(bench.store.objects)
    await bench.close()


async def test_drain_does_not_wait_for_a_commit_nobody_waits_for() -> None:
    bench = IngestBench(linger_ms=0, upload_deadline_ms=1_000)
    bench.metadata.always = "before"
    outcome = bench.produce(build_batch())
    await bench.writer.drain()
    assert all_failed(await outcome)
    assert now() == pytest.approx(1.0)
    assert bench.metadata.calls, "it was sent, and may be committed yet"
    await bench.close()


async def test_a_segment_uploaded_behind_a_failed_one_commits() -> None:
    bench = IngestBench(
        linger_ms=0, store=FakeStore(hedged=False), segment_bytes_max=64 * KIB, upload_deadline_ms=1_000
    )
    bench.store.puts.extend([Put(0.5), Put(hang=True), Put(0.01)])
    futures = [bench.produce(build_batch([b"x" * 70_000])) for _ in range(3)]
    assert offsets(await futures[0]) == [0]
    assert all_failed(await futures[1])
    assert offsets(await futures[2]) == [1]
    assert [call[1:] for call in bench.metadata.calls] == [(-1, (0,)), (1, (2,))]
    await bench.close()


async def test_fencing_fails_everything_pending_and_a_new_epoch_starts_afresh() -> None:
    fenced = []
    bench = IngestBench(linger_ms=0, segment_bytes_max=64 * KIB, on_fenced=lambda: fenced.append(True))
    bench.metadata.script.append("fenced")
    committing = bench.produce(build_batch([b"x" * 70_000]))
    await asyncio.sleep(0.059)
    uploading = bench.produce(build_batch([b"x" * 70_000]))
    still_open = bench.produce(build_batch())
    for future in (committing, uploading, still_open):
        assert all_failed(await future)
    assert fenced == [True]
    assert "fenced" in str(bench.writer.problem())
    assert all_failed(await bench.produce(build_batch()))
    assert bench.metadata.applied == []

    with pytest.raises(RuntimeError, match="not newer"):
        bench.writer.start(1)
    bench.writer.start(2)
    assert bench.writer.problem() is None
    assert offsets(await bench.produce(build_batch())) == [0]
    assert bench.metadata.calls[-1] == (2, -1, (0,))
    await bench.close()


async def test_it_can_be_told_that_it_is_fenced_before_it_finds_out() -> None:
    fenced: list[bool] = []
    bench = IngestBench(linger_ms=0, segment_bytes_max=64 * KIB, on_fenced=lambda: fenced.append(True))
    bench.metadata.always = "before"
    committing = bench.produce(build_batch([b"x" * 70_000]))
    await asyncio.sleep(0.1)
    assert bench.metadata.calls, "a commit is asked for again and again"
    still_open = bench.produce(build_batch())
    await bench.writer.fence()
    await bench.writer.fence()
    for future in (committing, still_open, bench.produce(build_batch())):
        assert all_failed(await future)
    assert "fenced" in str(bench.writer.problem())
    assert fenced == []
    bench.metadata.always = None
    bench.writer.start(2)
    assert offsets(await bench.produce(build_batch())) == [0]
    assert bench.metadata.calls[-1] == (2, -1, (0,))
    await bench.close()
    await bench.writer.fence()
    assert "stopped" in str(bench.writer.problem())


async def test_an_object_whose_commit_may_have_happened_is_not_deleted_when_fenced() -> None:
    bench = IngestBench(linger_ms=0)
    bench.metadata.script.extend(["after", "fenced"])
    assert all_failed(await bench.produce(build_batch()))
    await bench.writer.drain()
    assert bench.store.deleted == []
    assert bench.metadata.applied[0].segment_key in bench.store.objects
    await bench.close()


async def test_a_commit_refused_as_a_whole_fails_its_segments_and_the_next_goes_on() -> None:
    bench = IngestBench(linger_ms=0)
    real, calls = bench.metadata.commit_segments, 0

    async def refuse_first(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise Refused(Refusal.INVALID_REQUEST, "no such agent")
        return await real(*arguments)

    bench.metadata.commit_segments = refuse_first
    assert all_failed(await bench.produce(build_batch()))
    assert offsets(await bench.produce(build_batch())) == [0]
    assert bench.store.deleted == []
    await bench.close()


async def test_an_answer_of_another_shape_acknowledges_nobody() -> None:
    class Confused(FakeMetadata):
        async def commit_segments(self, *arguments: object) -> list[object]:  # type: ignore[override]
            answers = await super().commit_segments(*arguments)  # type: ignore[arg-type]
            return [type(answer)(answer.sequence, answer.extents + answer.extents) for answer in answers]

    bench = IngestBench(metadata=Confused(), linger_ms=0)
    outcome = bench.produce(build_batch())
    await asyncio.sleep(0.1)
    assert not outcome.done()
    ((name, error),) = bench.task_failures
    assert name == "ingest-committer" and isinstance(error, RuntimeError)
    bench.task_failures.clear()
    await bench.close()
    assert all_failed(await outcome)
