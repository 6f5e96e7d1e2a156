"""What every object store promises: one suite, against each implementation, bare and decorated."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio
from crc32c import crc32c
from prometheus_client import CollectorRegistry

from runtime.clock import SeededEntropy, SystemClock
from runtime.settings import S3Settings
from storage.faults import FaultRates, FaultyStore
from storage.latency import Latency, LatencyStore
from storage.local import LocalStore
from storage.memory import MemoryStore
from storage.metered import MeteredStore
from storage.metrics import StorageMetrics
from storage.retry import RetryingStore, RetryPolicy
from storage.s3 import S3Store
from storage.s3_connection import S3Connection
from storage.store import (
    ChecksumMismatch,
    Chunk,
    ObjectExists,
    ObjectInfo,
    ObjectNotFound,
    ObjectStore,
    StorageRefused,
)
from storage.urls import S3Url
from tests.integration.s3_servers import REGION, S3Server, moto_s3, versitygw_s3

__all__ = ["moto_s3", "versitygw_s3"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLOCK = SystemClock()
RATES = FaultRates(error_before=0.15, error_after=0.15, throttle=0.1)
VERIFYING = ("local", "versitygw")
DECORATIONS = ("bare", "retried", "slow", "faulty")
VARIANTS = [f"memory-{how}" for how in DECORATIONS]
VARIANTS += ["arena-bare", "local-bare", "local-faulty", "moto-bare", "versitygw-bare", "versitygw-faulty"]
_prefixes = itertools.count()


def decorate(store: ObjectStore, how: str) -> ObjectStore:
    entropy = SeededEntropy(7)
    metrics = StorageMetrics(CollectorRegistry())
    policy = RetryPolicy(attempts_max=20, wait_ms=1, wait_ms_max=5)
    match how:
        case "bare":
            return store
        case "retried":
            return RetryingStore(MeteredStore(store, metrics, CLOCK), policy, CLOCK, entropy, metrics)
        case "slow":
            return LatencyStore(store, CLOCK, entropy, Latency(1, 3), Latency(1, 3))
        case "faulty":
            faulty = FaultyStore(store, entropy, RATES)
            return RetryingStore(MeteredStore(faulty, metrics, CLOCK), policy, CLOCK, entropy, metrics)
    raise ValueError(how)


class SharedConnection(S3Connection):
    """Connecting is what an S3 client spends most of its time on: all tests share one, which outlives their stores."""

    async def close(self) -> None:
        pass

    async def really_close(self) -> None:
        await super().close()


@dataclass(frozen=True, slots=True)
class Bucket:
    where: S3Url
    connection: SharedConnection


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def buckets() -> AsyncIterator[Callable[[S3Server], Bucket]]:
    opened: dict[str, Bucket] = {}

    def bucket_of(server: S3Server) -> Bucket:
        if server.name not in opened:
            where = S3Url(server.new_bucket(), "", server.endpoint, REGION, path_style=True)
            opened[server.name] = Bucket(where, SharedConnection(where, S3Settings()))
        return opened[server.name]

    yield bucket_of
    for bucket in opened.values():
        await bucket.connection.really_close()


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(loop_scope="module")
async def store(
    variant: str, tmp_path: Path, request: pytest.FixtureRequest, buckets: Callable[[S3Server], Bucket]
) -> AsyncIterator[ObjectStore]:
    backend, decoration = variant.split("-")
    entropy = SeededEntropy(1)
    bare: ObjectStore
    match backend:
        case "memory":
            bare = MemoryStore(CLOCK)
        case "arena":
            bare = MemoryStore(CLOCK, capacity_bytes=16 * 1024 * 1024)
        case "local":
            bare = LocalStore(tmp_path / "objects", entropy)
        case _:
            server: S3Server = request.getfixturevalue(f"{backend}_s3")
            bucket = buckets(server)
            bare = S3Store(replace(bucket.where, prefix=f"p{next(_prefixes)}/"), bucket.connection, entropy)
    opened = decorate(bare, decoration)
    yield opened
    await opened.close()


async def put(store: ObjectStore, key: str, *chunks: Chunk) -> None:
    await store.put(key, chunks, crc32c(b"".join(chunks)))


async def listed(store: ObjectStore, prefix: str) -> list[ObjectInfo]:
    return [info async for info in store.list(prefix)]


async def keys(store: ObjectStore, prefix: str) -> Sequence[str]:
    return [info.key for info in await listed(store, prefix)]


@pytest.mark.parametrize(
    "chunks",
    [
        [b"one"],
        [b"hello ", bytearray(b"big "), memoryview(b"xxworldxx")[2:7]],
        [b"", b"a", b""],
        [b""],
        [],
        [bytes([number % 251]) * (number % 700) for number in range(1500)],
        [memoryview(bytearray(range(256)) * 4096), b"tail", memoryview(bytearray(300_000))],
    ],
    ids=["one", "kinds", "empty-chunks", "empty", "no-chunks", "many-small", "large"],
)
async def test_what_was_put_is_read_back(store: ObjectStore, chunks: list[Chunk]) -> None:
    whole = b"".join(chunks)
    await put(store, "folder/object", *chunks)
    assert await store.get("folder/object") == whole
    assert (await store.head("folder/object")).byte_length == len(whole)


async def test_reads_a_range_and_fewer_bytes_only_where_the_object_ends(store: ObjectStore) -> None:
    data = bytes(range(100))
    await put(store, "object", data[:30], data[30:])
    for start, length in [(0, 1), (0, 100), (29, 2), (99, 1), (10, 0), (0, 0)]:
        assert await store.get("object", start, length) == data[start : start + length]
    assert await store.get("object", 90, 50) == data[90:]
    assert await store.get("object", 40) == data[40:]
    assert await store.get("object", 100, 10) == b""
    assert await store.get("object", 5000, 10) == b""
    assert await store.get("object", 5000) == b""


async def test_an_impossible_range_is_refused(store: ObjectStore) -> None:
    await put(store, "object", b"data")
    with pytest.raises(StorageRefused):
        await store.get("object", -1, 2)
    with pytest.raises(StorageRefused):
        await store.get("object", 0, -2)


async def test_chunks_may_change_after_put_returned(store: ObjectStore) -> None:
    chunk = bytearray(b"before" * 100_000)
    await put(store, "object", chunk, memoryview(chunk)[:6])
    chunk[:] = b"after!" * 100_000
    assert await store.get("object") == b"before" * 100_001


async def test_putting_the_same_bytes_again_succeeds(store: ObjectStore) -> None:
    await put(store, "a/object", b"same", b"bytes")
    await put(store, "a/object", b"sameb", b"", b"ytes")
    assert await store.get("a/object") == b"samebytes"


@pytest.mark.parametrize("other", [b"other data", b"longer than the first", b"", b"x"], ids=len)
async def test_an_object_is_never_overwritten(store: ObjectStore, other: bytes) -> None:
    await put(store, "object", b"first data")
    with pytest.raises(ObjectExists):
        await put(store, "object", other)
    assert await store.get("object") == b"first data"


async def test_a_missing_object_is_not_found(store: ObjectStore) -> None:
    await put(store, "folder/present", b"data")
    for key in ("absent", "folder/absent", "folder/deeper/absent", "folder/present2"):
        with pytest.raises(ObjectNotFound):
            await store.get(key)
        with pytest.raises(ObjectNotFound):
            await store.get(key, 0, 0)
        with pytest.raises(ObjectNotFound):
            await store.head(key)


async def test_head_and_list_say_length_and_time(store: ObjectStore) -> None:
    before_ms = CLOCK.now_ms()
    await put(store, "folder/object", b"12345")
    info = await store.head("folder/object")
    assert (info.key, info.byte_length) == ("folder/object", 5)
    # Servers round to seconds, and have clocks of their own.
    assert before_ms - 5_000 <= info.modified_ms <= CLOCK.now_ms() + 5_000
    assert [(found.key, found.byte_length) for found in await listed(store, "folder/")] == [("folder/object", 5)]


async def test_deleted_objects_are_gone_and_missing_ones_are_fine(store: ObjectStore) -> None:
    await put(store, "a/one", b"1")
    await put(store, "a/two", b"2")
    await put(store, "b/three", b"3")
    await store.delete([])
    await store.delete(["a/one", "b/three", "a/absent", "c/d/absent"])
    assert await keys(store, "") == ["a/two"]
    with pytest.raises(ObjectNotFound):
        await store.get("a/one")
    await put(store, "a/one", b"a new life")
    assert await store.get("a/one") == b"a new life"


async def test_more_keys_can_be_deleted_than_one_request_takes(store: ObjectStore) -> None:
    await put(store, "many/0700", b"x")
    await put(store, "many/1099", b"x")
    await store.delete([f"many/{number:04}" for number in range(1100)])
    assert await keys(store, "many/") == []


async def test_lists_by_prefix_in_key_order(store: ObjectStore) -> None:
    names = ["a/b/1", "a/b/2", "a/b-c/1", "a/b0", "a/c", "ab", "b/x/y/z", "a/b.x"]
    for name in names:
        await put(store, name, name.encode())
    assert await keys(store, "") == sorted(names)
    assert await keys(store, "a/") == sorted(name for name in names if name.startswith("a/"))
    assert await keys(store, "a/b") == sorted(name for name in names if name.startswith("a/b"))
    assert await keys(store, "a/b/") == ["a/b/1", "a/b/2"]
    assert await keys(store, "b/x/y/z") == ["b/x/y/z"]
    assert await keys(store, "absent/") == []
    assert await keys(store, "a/b/1/x") == []


@pytest.mark.parametrize("key", ["spaces and+plus", "percent%2Fequals=&?#", "ümläut/日志", "tilde~(1)'!*"])
async def test_keys_may_hold_any_printable_text(store: ObjectStore, key: str) -> None:
    await put(store, key, b"data")
    assert await store.get(key) == b"data"
    assert await keys(store, "") == [key]
    await store.delete([key])
    assert await keys(store, "") == []


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/./b", ".hidden", "a/.b", "a\nb", "a\\b", "x" * 1000]
)
async def test_keys_that_mean_different_things_to_different_stores_are_refused(store: ObjectStore, key: str) -> None:
    with pytest.raises(StorageRefused):
        await put(store, key, b"data")


async def test_equal_puts_at_the_same_time_all_succeed(store: ObjectStore) -> None:
    data = os.urandom(200_000)
    await asyncio.gather(*(put(store, "folder/object", data) for _ in range(8)))
    assert await store.get("folder/object") == data
    assert await keys(store, "") == ["folder/object"]


async def test_of_different_puts_at_the_same_time_one_wins(store: ObjectStore, variant: str) -> None:
    contents = [bytes([number]) * 1000 for number in range(8)]
    results = await asyncio.gather(*(put(store, "object", data) for data in contents), return_exceptions=True)
    winners = [number for number, result in enumerate(results) if result is None]
    assert all(isinstance(result, ObjectExists) for result in results if result is not None)
    # moto's server looks and writes in two steps, so that two of its threads may both find nothing there.
    assert len(winners) == 1 or (winners and variant.startswith("moto")), results
    assert await store.get("object") in [contents[number] for number in winners]


async def test_a_cancelled_put_leaves_all_or_nothing(store: ObjectStore) -> None:
    data = os.urandom(2_000_000)
    for number in range(5):
        key = f"cancelled/{number}"
        task = asyncio.get_running_loop().create_task(put(store, key, data[:700_000], data[700_000:]))
        await asyncio.sleep(number * 0.002)
        task.cancel()
        await asyncio.wait([task])
        # It may still be on its way in the server: then it is there, whole, a moment later.
        try:
            assert await store.get(key) == data
        except ObjectNotFound:
            assert all(info.byte_length == len(data) for info in await listed(store, key))
        await put(store, key, data)
        assert await store.get(key) == data


async def test_a_wrong_checksum_is_refused_where_the_store_verifies_it(store: ObjectStore, variant: str) -> None:
    backend, decoration = variant.split("-")
    if backend in VERIFYING or decoration == "faulty":
        with pytest.raises(ChecksumMismatch):
            await store.put("object", [b"data"], crc32c(b"atad"))
        assert await keys(store, "") == []
    else:
        await store.put("object", [b"data"], crc32c(b"atad"))
        assert await store.get("object") == b"data"


async def test_check_passes_and_leaves_nothing_behind(store: ObjectStore) -> None:
    await store.check()
    assert await keys(store, "") == []


async def test_close_can_be_called_twice(store: ObjectStore) -> None:
    await put(store, "object", b"data")
    await store.close()
    await store.close()
