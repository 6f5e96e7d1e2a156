"""S3 as it really is: lost answers, throttling, hanging, pages; and what it tells the person who starts Tidelog."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from crc32c import crc32c
from prometheus_client import CollectorRegistry

from runtime.clock import SeededEntropy, SystemClock
from runtime.settings import S3Settings
from storage.factory import open_store
from storage.metrics import StorageMetrics
from storage.s3 import S3Store, encode_crc32c
from storage.s3_connection import S3Connection
from storage.store import (
    Chunk,
    ObjectExists,
    ObjectStore,
    StorageRefused,
    StorageThrottled,
    StorageUnavailable,
)
from storage.urls import S3Url, parse_storage_url
from tests.integration.s3_proxy import Act, S3Proxy, run_proxy
from tests.integration.s3_servers import REGION, S3Server, free_port, moto_s3, versitygw_s3

__all__ = ["moto_s3", "versitygw_s3"]

pytestmark = pytest.mark.integration

FAST = S3Settings(request_timeout_ms=2_000, attempts_max=4, deadline_ms=10_000)


class Opened:
    """A store as a process opens it, with its metrics at hand."""

    def __init__(self, endpoint: str, bucket: str, settings: S3Settings = FAST) -> None:
        self.registry = CollectorRegistry()
        self.store: ObjectStore = open_store(
            f"s3://{bucket}/pre/fix?endpoint={endpoint}&region={REGION}",
            s3=settings,
            clock=SystemClock(),
            entropy=SeededEntropy(1),
            metrics=StorageMetrics(self.registry),
        )

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"tidelog_storage_{name}_total", labels) or 0.0


@asynccontextmanager
async def proxied(server: S3Server, *script: Act, settings: S3Settings = FAST) -> AsyncIterator[tuple[Opened, S3Proxy]]:
    async with run_proxy(server.endpoint, *script) as proxy:
        opened = Opened(proxy.endpoint, server.new_bucket(), settings)
        yield opened, proxy
        await opened.store.close()


def put(store: ObjectStore, key: str, *chunks: Chunk) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(store.put(key, chunks, crc32c(b"".join(chunks))))  # type: ignore[arg-type]


async def keys(store: ObjectStore, prefix: str = "") -> Sequence[str]:
    return [info.key async for info in store.list(prefix)]


async def test_a_put_is_one_request_with_a_condition_and_our_checksum(moto_s3: S3Server) -> None:
    data = os.urandom(3_000_000)
    async with proxied(moto_s3) as (opened, proxy):
        await put(opened.store, "object", data[:5], data[5:2_000_000], data[2_000_000:])
        [request] = proxy.seen
    assert request.method == "PUT"
    assert request.headers["If-None-Match"] == "*"
    assert request.headers["x-amz-checksum-crc32c"] == encode_crc32c(crc32c(data))
    assert request.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert request.headers["Content-Length"] == "3000000"
    assert "Expect" not in request.headers
    assert "Transfer-Encoding" not in request.headers
    assert request.body == data


@pytest.mark.parametrize("lost", [Act.LOSE_ANSWER, Act.ERROR_AFTER])
async def test_a_put_whose_answer_was_lost_succeeds_when_it_is_retried(versitygw_s3: S3Server, lost: Act) -> None:
    data = os.urandom(300_000)
    async with proxied(versitygw_s3, lost, lost) as (opened, proxy):
        await put(opened.store, "object", data)
        assert [request.method for request in proxy.seen] == ["PUT", "PUT", "PUT", "HEAD"]
        assert opened.count("retries", operation="put") == 2
        assert opened.count("operations", operation="put", outcome="unavailable") == 2
        assert opened.count("operations", operation="put", outcome="ok") == 1
        assert opened.count("written_bytes") == len(data)
        assert await opened.store.get("object") == data


async def test_an_object_of_someone_else_is_not_taken_for_ours(versitygw_s3: S3Server) -> None:
    async with proxied(versitygw_s3, Act.PASS, Act.INTERNAL_ERROR) as (opened, _):
        await put(opened.store, "object", b"theirs")
        with pytest.raises(ObjectExists):
            await put(opened.store, "object", b"ours!!")
        assert await opened.store.get("object") == b"theirs"


async def test_without_stored_checksums_the_bytes_are_compared(moto_s3: S3Server) -> None:
    async with proxied(moto_s3) as (opened, proxy):
        proxy.remove_headers = frozenset({"x-amz-sdk-checksum-algorithm", "x-amz-checksum-crc32c"})
        await put(opened.store, "object", b"data")
        await put(opened.store, "object", b"data")
        assert [request.method for request in proxy.seen] == ["PUT", "PUT", "HEAD", "GET"]
        with pytest.raises(ObjectExists):
            await put(opened.store, "object", b"atad")


async def test_throttling_is_retried(versitygw_s3: S3Server) -> None:
    async with proxied(versitygw_s3, Act.SLOW_DOWN, Act.SLOW_DOWN) as (opened, _):
        await put(opened.store, "object", b"data")
        assert opened.count("operations", operation="put", outcome="throttled") == 2
        assert opened.count("operations", operation="put", outcome="ok") == 1


@pytest.mark.parametrize(
    ("act", "error"), [(Act.SLOW_DOWN, StorageThrottled), (Act.INTERNAL_ERROR, StorageUnavailable)]
)
async def test_attempts_are_bounded(moto_s3: S3Server, act: Act, error: type[Exception]) -> None:
    async with proxied(moto_s3) as (opened, proxy):
        proxy.otherwise = act
        for operation in (
            lambda: put(opened.store, "object", b"data"),
            lambda: opened.store.get("object"),
            lambda: opened.store.head("object"),
            lambda: opened.store.delete(["object"]),
            lambda: keys(opened.store),
        ):
            proxy.seen.clear()
            with pytest.raises(error):
                await operation()
            assert len(proxy.seen) == FAST.attempts_max


async def test_an_endpoint_that_hangs_hits_the_request_timeout_then_the_deadline(moto_s3: S3Server) -> None:
    settings = S3Settings(request_timeout_ms=300, attempts_max=20, deadline_ms=1_000)
    async with proxied(moto_s3, settings=settings) as (opened, proxy):
        await put(opened.store, "warm", b"data")
        proxy.otherwise = Act.HANG
        proxy.seen.clear()
        started = time.monotonic()
        with pytest.raises(StorageUnavailable):
            await put(opened.store, "object", b"data")
        assert 0.9 < time.monotonic() - started < 3
        assert 2 <= len(proxy.seen) <= 5
        assert opened.count("given_up", operation="put") == 1
        proxy.otherwise = Act.PASS
        await put(opened.store, "object", b"data")
        assert await opened.store.get("object") == b"data"


async def test_a_body_cut_short_is_read_again(versitygw_s3: S3Server) -> None:
    data = os.urandom(500_000)
    async with proxied(versitygw_s3, Act.PASS, Act.CUT_BODY, Act.PASS, Act.CUT_BODY) as (opened, _):
        await put(opened.store, "object", data)
        assert await opened.store.get("object") == data
        assert await opened.store.get("object", 1000, 400_000) == data[1000:401_000]
        assert opened.count("retries", operation="get") == 2


async def test_connections_are_kept_and_bounded(versitygw_s3: S3Server) -> None:
    settings = S3Settings(request_timeout_ms=5_000, connections_max=3)
    async with proxied(versitygw_s3, settings=settings) as (opened, proxy):
        for number in range(10):
            await put(opened.store, f"one/{number}", b"data")
        assert len(proxy.connections) == 1
        await asyncio.gather(*(put(opened.store, f"many/{number}", b"data") for number in range(20)))
        assert len(proxy.connections) <= 3
        assert len(await keys(opened.store)) == 30


async def test_a_cancelled_put_releases_its_connection(versitygw_s3: S3Server) -> None:
    settings = S3Settings(connections_max=1)
    async with proxied(versitygw_s3, Act.PASS, Act.HANG, settings=settings) as (opened, proxy):
        await put(opened.store, "first", b"data")
        hanging = put(opened.store, "cancelled", os.urandom(1_000_000))
        while len(proxy.seen) < 2:
            await asyncio.sleep(0.01)
        hanging.cancel()
        await asyncio.wait([hanging])
        assert hanging.cancelled()
        await put(opened.store, "second", b"data")
        assert await keys(opened.store) == ["first", "second"]


async def test_listings_of_many_pages(versitygw_s3: S3Server) -> None:
    assert versitygw_s3.folder is not None
    bucket = versitygw_s3.new_bucket()
    folder = versitygw_s3.folder / bucket / "pre" / "fix" / "many"
    folder.mkdir(parents=True)
    for number in range(2_300):
        (folder / f"{number:05}").write_bytes(b"x")
    # The third page fails once; the listing starts again and repeats nothing.
    async with run_proxy(versitygw_s3.endpoint, Act.PASS, Act.PASS, Act.INTERNAL_ERROR) as proxy:
        opened = Opened(proxy.endpoint, bucket)
        assert await keys(opened.store, "many/") == [f"many/{number:05}" for number in range(2_300)]
        assert len(proxy.seen) == 6
        await opened.store.delete([f"many/{number:05}" for number in range(2_300)])
        assert await keys(opened.store, "many/") == []
        assert not folder.exists() or not any(folder.iterdir())
        await opened.store.close()


async def test_check_says_what_to_do(versitygw_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def complaint(endpoint: str, bucket: str) -> str:
        opened = Opened(endpoint, bucket)
        with pytest.raises((StorageRefused, StorageUnavailable)) as caught:
            await opened.store.check()
        await opened.store.close()
        return str(caught.value)

    bucket = versitygw_s3.new_bucket()
    missing = await complaint(versitygw_s3.endpoint, "no-such-bucket")
    assert "no bucket 'no-such-bucket'" in missing and versitygw_s3.endpoint in missing and "create it" in missing
    nobody = f"http://127.0.0.1:{free_port()}"
    assert f"nothing answers at {nobody}" in await complaint(nobody, bucket)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    assert "does not accept these credentials" in await complaint(versitygw_s3.endpoint, bucket)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "AWS_ACCESS_KEY_ID" in await complaint(versitygw_s3.endpoint, bucket)


async def test_check_refuses_a_store_that_would_overwrite(moto_s3: S3Server) -> None:
    async with proxied(moto_s3) as (opened, proxy):
        proxy.remove_headers = frozenset({"if-none-match"})
        with pytest.raises(StorageRefused, match="If-None-Match"):
            await opened.store.check()


async def test_a_closed_store_does_not_connect_again(moto_s3: S3Server) -> None:
    where = parse_storage_url(moto_s3.url(moto_s3.new_bucket()))
    assert isinstance(where, S3Url)
    store = S3Store(where, S3Connection(where, FAST), SeededEntropy(1))
    await store.check()
    await store.close()
    await store.close()
    with pytest.raises(StorageUnavailable, match="closed"):
        await store.get("object")
