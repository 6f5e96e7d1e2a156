"""What ``tidelog restore``, ``fsck`` and ``segment`` share: a bucket and a database, opened for one command."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

import typer
import uvloop
from prometheus_client import CollectorRegistry

from metadata.store.port import StoreUnavailable
from runtime.clock import Clock, SystemClock, SystemEntropy
from runtime.configuration import load_settings
from runtime.logs import configure_logs
from runtime.settings import Settings, SettingsError
from storage.factory import open_store
from storage.metrics import StorageMetrics
from storage.store import ObjectStore, StorageError
from storage.urls import parse_storage_url
from tidelog.client import fail

T = TypeVar("T")

WRONG_SETTING = 2
PROGRESS_SECONDS = 1.0

StorageUrl = Annotated[str, typer.Option("--storage", metavar="URL", help="file:///dir or s3://bucket/prefix?...")]


def command_settings(flags: dict[str, Any], names: dict[str, str] | None = None) -> Settings:
    """Flags over environment; a wrong one ends the command."""
    try:
        settings = load_settings(flags, None, None, {"storage": parse_storage_url}, names)
    except SettingsError as error:
        print("\n".join(f"tidelog: {line}" for line in str(error).splitlines()), file=sys.stderr)
        raise typer.Exit(WRONG_SETTING) from None
    configure_logs("warning", settings.log.form)
    return settings


@asynccontextmanager
async def opened_bucket(settings: Settings, clock: Clock) -> AsyncIterator[ObjectStore]:
    """:raises StorageError: it cannot be used."""
    store = open_store(
        settings.storage_url(),
        s3=settings.s3,
        clock=clock,
        entropy=SystemEntropy(),
        metrics=StorageMetrics(CollectorRegistry()),
    )
    try:
        yield store
    finally:
        await store.close()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run it to its end; what a bucket or a database may refuse ends the command with one message."""
    try:
        return uvloop.run(work)
    except (StorageError, StoreUnavailable, ValueError) as error:
        fail(str(error))


class ProgressLine:
    """Says what is being done, on standard error, at most once a second."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._said_at = float("-inf")

    def __call__(self, text: str) -> None:
        now = self._clock.monotonic()
        if now - self._said_at >= PROGRESS_SECONDS:
            self._said_at = now
            print(f"tidelog: {text}", file=sys.stderr, flush=True)


Progress = Callable[[str], None]
