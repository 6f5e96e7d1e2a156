"""From a metadata URL to a store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from metadata.store.memory import MemoryMetadataStore
from metadata.store.port import MetadataStore
from metadata.store.postgres import PostgresMetadataStore
from metadata.store.sqlite import SqliteMetadataStore
from runtime.clock import Clock, SystemClock
from runtime.settings import without_password

_SQLITE = "sqlite:///"
LEASE_MS = 4_000
"""As in ``leadership.lease_ms``, for callers without settings."""


class MetadataUrlError(ValueError):
    """The metadata URL is wrong; the message names it and what is allowed."""


def open_metadata_store(url: str, lease_ms: int = LEASE_MS, clock: Clock | None = None) -> MetadataStore:
    """The store ``url`` names: ``sqlite:///relative/file``, ``sqlite:////absolute/file``,
    ``postgresql://user@host:port/database`` or ``memory://``.

    Nothing is opened yet. ``memory://`` forgets everything when the process ends. ``lease_ms`` is PostgreSQL's.

    :raises MetadataUrlError: its message shows no password.
    """
    if url == "memory://":
        return MemoryMetadataStore()
    if url.startswith("postgresql:"):
        try:
            return PostgresMetadataStore(url, lease_ms, clock or SystemClock())
        except ValueError as error:
            raise MetadataUrlError(f"the metadata URL is {error}") from None
    path = unquote(url.removeprefix(_SQLITE))
    if not url.startswith(_SQLITE) or not path or path.endswith("/"):
        raise MetadataUrlError(
            f"{without_password(url)!r} is not sqlite:///file (sqlite:////dir/file when absolute),"
            " postgresql://user@host:port/database or memory://"
        )
    return SqliteMetadataStore(Path(path))
