"""Every metadata store by name, for suites that must hold for all: ``memory``, ``sqlite`` and ``postgresql``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from metadata.store.factory import open_metadata_store
from metadata.store.memory import MemoryMetadataStore
from metadata.store.port import MetadataStore, StoreSnapshot
from tests.tools.postgres import PostgresServer

DURABLE_STORES = ("sqlite", "postgresql")
STORES = ("memory", *DURABLE_STORES)


@contextmanager
def metadata_url(kind: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty store of ``kind``; gone at the end. Skips the test where PostgreSQL is missing."""
    if kind == "memory":
        yield "memory://"
    elif kind == "sqlite":
        yield f"sqlite:///{folder}/metadata.sqlite"
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.create_database()
        yield url
        server.release_database(url)


class Kept:
    """A store that can be closed and opened again, as by a restart."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.store: MetadataStore = open_metadata_store(url)

    async def reopened(self) -> StoreSnapshot:
        await self.store.close()
        if not isinstance(self.store, MemoryMetadataStore):
            self.store = open_metadata_store(self._url)
        return await self.store.open("another cluster id")
