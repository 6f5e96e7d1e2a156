"""Storage URLs, and what is opened for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from runtime.clock import SeededEntropy, SystemClock
from runtime.settings import S3Settings
from storage.factory import open_store
from storage.latency import Latency
from storage.metrics import StorageMetrics
from storage.store import ObjectStore, StorageRefused, StorageUnavailable
from storage.urls import LocalUrl, MemoryUrl, S3Url, SimulatedLatency, StorageUrlError, parse_storage_url

SLOW = "put_p50_ms=60&put_p99_ms=400&get_p50_ms=25&get_p99_ms=150"
LATENCY = SimulatedLatency(Latency(60, 400), Latency(25, 150))


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("memory://", MemoryUrl()),
        ("memory:///", MemoryUrl()),
        ("memory://?capacity_bytes=1000", MemoryUrl(1000)),
        (f"memory://?{SLOW}", MemoryUrl(None, LATENCY)),
        ("file:///var/lib/tidelog", LocalUrl(Path("/var/lib/tidelog"))),
        ("file:///with%20space/ü", LocalUrl(Path("/with space/ü"))),
        (f"file:///data?{SLOW}", LocalUrl(Path("/data"), LATENCY)),
        ("s3://logs", S3Url("logs")),
        ("s3://logs/", S3Url("logs")),
        ("s3://logs/prod/eu?region=eu-central-1", S3Url("logs", "prod/eu/", None, "eu-central-1")),
        (
            "s3://logs/prod/?endpoint=http://127.0.0.1:9000&region=us-east-1",
            S3Url("logs", "prod/", "http://127.0.0.1:9000", "us-east-1", path_style=True),
        ),
        (
            "s3://logs?endpoint=https%3A%2F%2Fs3.example.com&path_style=false",
            S3Url("logs", "", "https://s3.example.com", None, path_style=False),
        ),
    ],
)
def test_urls_are_understood(url: str, parsed: object) -> None:
    assert parse_storage_url(url) == parsed


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "unknown kind ''"),
        ("/var/lib/tidelog", "unknown kind ''"),
        ("gs://bucket", "unknown kind 'gs'"),
        ("memory://somewhere", "takes no path"),
        ("memory:///folder", "takes no path"),
        ("memory://?capacity_bytes=0", "positive whole number"),
        ("memory://?capacity_bytes=lots", "positive whole number"),
        ("memory://?capacity=1", "unknown option 'capacity'; allowed: .*capacity_bytes"),
        ("memory://?put_p50_ms=60", "give all of"),
        (f"memory://?{SLOW.replace('60', 'slow')}", "could not convert"),
        (f"memory://?{SLOW.replace('60', '6000')}", "0 < p50 <= p99"),
        ("file://relative/path", "three slashes"),
        ("file:relative", "three slashes"),
        ("file:///", "three slashes"),
        ("file:///data?sync=false", "unknown option 'sync'"),
        ("s3://", "not a bucket name"),
        ("s3://Bucket", "not a bucket name"),
        ("s3://b", "not a bucket name"),
        ("s3://bucket/a//b", "empty part"),
        ("s3://bucket?endpoint=localhost:9000", "endpoint must be http"),
        ("s3://bucket?region=", "region has no value"),
        ("s3://bucket?region=a&region=b", "given twice"),
        ("s3://bucket?region", "cannot read"),
        ("s3://bucket?path_style=maybe", "path_style must be true or false"),
        ("s3://bucket#fragment", "'#'"),
    ],
)
def test_wrong_urls_say_what_is_wrong(url: str, complaint: str) -> None:
    with pytest.raises(StorageUrlError, match=complaint):
        parse_storage_url(url)


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    for url in ("s3://key:hunter2@bucket", "s3://bucket?endpoint=http://key:hunter2@host"):
        with pytest.raises(StorageUrlError) as caught:
            parse_storage_url(url)
        assert "hunter2" not in str(caught.value)


def open_url(url: str, settings: S3Settings | None = None) -> ObjectStore:
    return open_store(
        url,
        s3=settings or S3Settings(),
        clock=SystemClock(),
        entropy=SeededEntropy(1),
        metrics=StorageMetrics(CollectorRegistry()),
    )


@pytest.mark.parametrize(
    ("url", "name", "hedged"),
    [
        ("memory://", "memory://", False),
        ("file://{tmp}/objects", "file://{tmp}/objects", False),
        (f"memory://?{SLOW}", "memory:// (PUT 60/400 ms, GET 25/150 ms)", True),
        ("s3://logs/prod", "s3://logs/prod/", True),
        ("s3://logs?endpoint=http://127.0.0.1:1", "s3://logs/ at http://127.0.0.1:1", True),
    ],
)
async def test_stores_are_named_and_say_whether_to_hedge(tmp_path: Path, url: str, name: str, hedged: bool) -> None:
    store = open_url(url.format(tmp=tmp_path))
    assert (store.name, store.hedged) == (name.format(tmp=tmp_path), hedged)
    await store.close()


async def test_stores_are_opened_with_retries() -> None:
    store = open_url("memory://?capacity_bytes=10", S3Settings(attempts_max=2))
    with pytest.raises(StorageUnavailable, match="11 bytes do not fit"):
        await store.put("key", [b"x" * 11], 0)
    await store.close()


def test_a_folder_that_cannot_be_made_stops_the_start() -> None:
    with pytest.raises(StorageRefused, match="cannot write to the folder /proc/tidelog"):
        open_url("file:///proc/tidelog")
