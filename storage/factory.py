"""From a storage URL to a store with its retries and metrics."""

from __future__ import annotations

from runtime.clock import Clock, Entropy
from runtime.settings import S3Settings
from storage.latency import LatencyStore
from storage.local import LocalStore
from storage.memory import MemoryStore
from storage.metered import MeteredStore
from storage.metrics import StorageMetrics
from storage.retry import RetryingStore, RetryPolicy
from storage.store import ObjectStore
from storage.urls import LocalUrl, MemoryUrl, S3Url, SimulatedLatency, parse_storage_url


def open_store(url: str, *, s3: S3Settings, clock: Clock, entropy: Entropy, metrics: StorageMetrics) -> ObjectStore:
    """The store that ``url`` names (see :mod:`storage.urls`), retried and metered. The caller closes it.

    Nothing is sent over a network yet: call ``check()`` to learn whether the store can be used.

    :raises StorageUrlError: the URL is wrong (a ``ValueError``).
    :raises StorageRefused: the folder of a ``file://`` URL cannot be made or written.
    """
    policy = RetryPolicy(attempts_max=s3.attempts_max, deadline_ms=s3.deadline_ms)
    store = _bare(url, s3, clock, entropy)
    return RetryingStore(MeteredStore(store, metrics, clock), policy, clock, entropy, metrics)


def _bare(url: str, s3: S3Settings, clock: Clock, entropy: Entropy) -> ObjectStore:
    match parse_storage_url(url):
        case MemoryUrl(capacity_bytes, latency):
            return _slowed(MemoryStore(clock, capacity_bytes), latency, clock, entropy)
        case LocalUrl(root, latency):
            return _slowed(LocalStore(root, entropy), latency, clock, entropy)
        case S3Url() as where:
            # botocore alone would double the start-up time of a store without S3.
            from storage.s3 import S3Store
            from storage.s3_connection import S3Connection

            return S3Store(where, S3Connection(where, s3), entropy)


def _slowed(store: ObjectStore, latency: SimulatedLatency | None, clock: Clock, entropy: Entropy) -> ObjectStore:
    if latency is None:
        return store
    return LatencyStore(store, clock, entropy, latency.put, latency.get)
