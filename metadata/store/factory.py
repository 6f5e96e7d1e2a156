"""From a metadata URL to a store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from metadata.store.memory import MemoryMetadataStore
from metadata.store.port import MetadataStore
from metadata.store.sqlite import SqliteMetadataStore

_SQLITE = "sqlite:///"


class MetadataUrlError(ValueError):
    """The metadata URL is wrong; the message names it and what is allowed."""


def open_metadata_store(url: str) -> MetadataStore:
    """The store ``url`` names: ``sqlite:///relative/file``, ``sqlite:////absolute/file`` or ``memory://``.

    Nothing is opened yet. ``memory://`` forgets everything when the process ends.

    :raises MetadataUrlError:
    """
    if url == "memory://":
        return MemoryMetadataStore()
    path = unquote(url.removeprefix(_SQLITE))
    if not url.startswith(_SQLITE) or not path or path.endswith("/"):
        raise MetadataUrlError(f"{url!r} is not sqlite:///file (sqlite:////dir/file when absolute) or memory://")
    return SqliteMetadataStore(Path(path))
