"""``cluster.json`` in a local cluster's data folder: who runs where, for ``tidelog cluster status`` and scripts."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

NAME = "cluster.json"
LOCK = "cluster.lock"


class ProcessState(msgspec.Struct, frozen=True):
    """``pid`` is null while it is not running."""

    name: str
    pid: int | None
    http: str
    """host:port of health and metrics; of a metadata process also of its calls."""
    log: str
    restarts: int


class AgentState(ProcessState, frozen=True):
    zone: str
    group: str
    kafka: str


class ClusterState(msgspec.Struct, frozen=True):
    """The whole file."""

    version: str
    pid: int
    """Of ``tidelog cluster up``."""
    started_ms: int
    zones: list[str]
    groups: list[str]
    storage: str
    metadata_store: str
    """Without a password."""
    ca: str | None
    """PEM file for clients of the TLS group."""
    metadata: list[ProcessState]
    agents: list[AgentState]


class FolderInUse(Exception):
    """Another ``tidelog cluster up`` has the data folder."""


def lock_folder(data: Path) -> int:
    """Take ``data`` for this process; the lock ends with it, however it ends. The open file's number.

    :raises FolderInUse:
    """
    descriptor = os.open(data / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise FolderInUse(f"another `tidelog cluster up` runs with --data {data}") from None
    return descriptor


def write_state(data: Path, state: ClusterState) -> None:
    """Replace the file at once: readers see the old one or the new one."""
    temporary = data / f"{NAME}.new"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(state)) + b"\n")
    temporary.replace(data / NAME)


def read_state(data: Path) -> ClusterState | None:
    """None when there is none. :raises ValueError: it is not such a file."""
    try:
        content = (data / NAME).read_bytes()
    except OSError:
        return None
    try:
        return msgspec.json.decode(content, type=ClusterState)
    except msgspec.DecodeError as error:
        raise ValueError(f"{data / NAME}: {error}") from None


def remove_state(data: Path) -> None:
    (data / NAME).unlink(missing_ok=True)
