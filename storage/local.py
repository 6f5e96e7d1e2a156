"""``file://``: objects as files of one folder, durable when a put returns.

A put writes a temporary file, fsyncs it, links it under its key (which fails, rather than overwrites, when
the key is taken) and fsyncs the folder. Temporary files live in ``.uploading/<process>/``; each process
holds a lock on its own folder there, so that a starting process can tell what a killed one left behind from
what a living one is writing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import TypeVar

from crc32c import crc32c as crc32c_of

from runtime.clock import Entropy
from storage.keys import validate_key, validate_range
from storage.store import (
    ChecksumMismatch,
    Chunk,
    ObjectExists,
    ObjectInfo,
    ObjectNotFound,
    StorageError,
    StorageRefused,
    StorageUnavailable,
)

UPLOADING = ".uploading"
THREADS = 8
IOV_MAX = 512
"""Buffers handed to one writev; Linux allows 1,024."""
READ_BYTES = 1024 * 1024
FOLDERS_KNOWN_MAX = 65_536
REFUSING = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG})
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

Result = TypeVar("Result")


class LocalStore:
    """Objects under ``root``, made if missing. Any number of processes may share the folder.

    :raises StorageRefused: the folder cannot be made or written.
    """

    hedged = False

    def __init__(self, root: Path, entropy: Entropy) -> None:
        self.name = f"file://{root}"
        self._root = root
        self._temporary_numbers = count()
        self._folders: set[Path] = set()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tidelog-files")
        try:
            _make_durably(root)
            uploading = root / UPLOADING
            uploading.mkdir(exist_ok=True)
            _remove_leftovers(uploading)
            self._temporary, lock = _own_folder(uploading, entropy)
            self._lock: int | None = lock
            _fsync_folder(root)
        except OSError as error:
            self._threads.shutdown()
            raise StorageRefused(
                f"cannot write to the folder {root}: {error.strerror}; "
                "give this user write access to it, or name another folder with --storage file:///..."
            ) from error

    async def put(self, key: str, chunks: Sequence[Chunk], crc32c: int) -> None:
        validate_key(key)
        writing = _Writing()
        try:
            await self._run("put", key, lambda: self._put(key, chunks, crc32c, writing))
        except asyncio.CancelledError:
            # The thread may still be reading chunks that the caller is now free to change.
            writing.abandon()
            raise

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        validate_range(key, start, length)
        return await self._run("get", key, lambda: _read(self._path(key), start, length))

    async def head(self, key: str) -> ObjectInfo:
        status = await self._run("head", key, lambda: self._path(key).stat())
        return ObjectInfo(key, status.st_size, status.st_mtime_ns // 1_000_000)

    async def delete(self, keys: Sequence[str]) -> None:
        await self._run("delete", f"{len(keys)} objects", lambda: self._delete(keys))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        folder, _, _ = prefix.rpartition("/")
        pending = [folder + "/" if folder else ""]
        while pending:
            entry = pending.pop()
            if entry and not entry.endswith("/"):
                info = await self._run("list", entry, lambda key=entry: self._info(key))  # type: ignore[misc]
                if info is not None:
                    yield info
                continue
            names = await self._run("list", entry, lambda folder=entry: self._names(folder))  # type: ignore[misc]
            wanted = (entry + name for name in names)
            pending.extend(
                sorted((path for path in wanted if path.startswith(prefix) or prefix.startswith(path)), reverse=True)
            )

    async def check(self) -> None:
        """Write and remove a file as a put does: finds read-only, full and link-less file systems."""
        await self._run("check", str(self._root), self._check)

    async def close(self) -> None:
        if self._lock is None:
            return
        lock, self._lock = self._lock, None
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)
        shutil.rmtree(self._temporary, ignore_errors=True)
        os.close(lock)

    # Everything below runs on the pool's threads.

    def _put(self, key: str, chunks: Sequence[Chunk], crc32c: int, writing: _Writing) -> None:
        path = self._path(key)
        self._make_folder(path.parent)
        temporary = self._temporary / f"{next(self._temporary_numbers)}"
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            try:
                length, written = _write_all(file, chunks)
                if written != crc32c:
                    raise ChecksumMismatch(f"put {key}: the bytes have CRC32C {written:#010x}, not {crc32c:#010x}")
                os.fsync(file)
            finally:
                os.close(file)
            if not writing.may_link():
                return
            self._link(key, temporary, path, length, crc32c)
        finally:
            temporary.unlink(missing_ok=True)

    def _link(self, key: str, temporary: Path, path: Path, length: int, crc32c: int) -> None:
        try:
            os.link(temporary, path)
        except FileExistsError:
            existing = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if os.fstat(existing).st_size != length or _crc32c_of_file(existing) != crc32c:
                    raise ObjectExists(f"put {key}: another object has this key") from None
                # The put that made it may have died, or failed, before it was durable.
                os.fsync(existing)
            finally:
                os.close(existing)
        except FileNotFoundError:
            # Someone removed the (empty) folder or our temporary file behind our back.
            self._folders.discard(path.parent)
            raise StorageUnavailable(f"put {key}: its folder disappeared while it was written") from None
        _fsync_folder(path.parent)

    def _delete(self, keys: Sequence[str]) -> None:
        folders = set()
        for key in keys:
            path = self._path(key)
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                continue
            folders.add(path.parent)
        for folder in folders:
            _fsync_folder(folder)

    def _info(self, key: str) -> ObjectInfo | None:
        try:
            status = (self._root / key).stat()
        except FileNotFoundError:  # deleted since its folder was read
            return None
        return ObjectInfo(key, status.st_size, status.st_mtime_ns // 1_000_000)

    def _names(self, folder: str) -> Sequence[str]:
        try:
            with os.scandir(self._root / folder) as entries:
                return [entry.name + "/" if entry.is_dir() else entry.name for entry in entries if entry.name[0] != "."]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _check(self) -> None:
        probe = self._temporary / f"{next(self._temporary_numbers)}"
        linked = probe.with_suffix(".linked")
        try:
            probe.write_bytes(b"x" * 4096)
            os.link(probe, linked)
            _fsync_folder(self._temporary)
        finally:
            probe.unlink(missing_ok=True)
            linked.unlink(missing_ok=True)

    def _make_folder(self, folder: Path) -> None:
        """Make ``folder`` and its parents durable, once: a folder that is known costs one set lookup."""
        if folder in self._folders or folder == self._root:
            return
        self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _fsync_folder(folder.parent)
        if len(self._folders) >= FOLDERS_KNOWN_MAX:
            self._folders.clear()
        self._folders.add(folder)

    def _path(self, key: str) -> Path:
        validate_key(key)
        return self._root / key

    async def _run(self, operation: str, key: str, work: Callable[[], Result]) -> Result:
        if self._lock is None:
            raise StorageUnavailable(f"{operation} {key}: the store is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except OSError as error:
            raise self._storage_error(operation, key, error) from error

    def _storage_error(self, operation: str, key: str, error: OSError) -> StorageError:
        if isinstance(error, FileNotFoundError) and operation in ("get", "head"):
            return ObjectNotFound(f"{operation} {key}: no such object")
        if error.errno in FULL:
            return StorageUnavailable(f"{operation} {key}: the disk that holds {self._root} is full")
        kind = StorageRefused if error.errno in REFUSING else StorageUnavailable
        return kind(f"{operation} {key} in {self._root}: {error.strerror}")


class _Writing:
    """Decides the race between a put's thread that is about to link and its caller that was cancelled."""

    def __init__(self) -> None:
        self._abandoned = False
        self._lock = threading.Lock()

    def abandon(self) -> None:
        with self._lock:
            self._abandoned = True

    def may_link(self) -> bool:
        with self._lock:
            return not self._abandoned


def _write_all(file: int, chunks: Sequence[Chunk]) -> tuple[int, int]:
    """Write every chunk with as few calls as possible; returns (byte length, CRC32C) of what was written."""
    length = checksum = 0
    for batch in _batches(chunks):
        pending = [memoryview(chunk).cast("B") for chunk in batch if len(chunk)]
        for chunk in pending:
            checksum = crc32c_of(chunk, checksum)
        while pending:
            written = os.writev(file, pending)
            length += written
            while pending and written >= len(pending[0]):
                written -= len(pending.pop(0))
            if written:
                pending[0] = pending[0][written:]
    return length, checksum


def _batches(chunks: Sequence[Chunk]) -> Iterator[Sequence[Chunk]]:
    for first in range(0, len(chunks), IOV_MAX):
        yield chunks[first : first + IOV_MAX]


def _read(path: Path, start: int, length: int | None) -> bytes:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        available = max(0, os.fstat(file).st_size - start)
        wanted = available if length is None else min(length, available)
        data = os.pread(file, wanted, start)
        while len(data) < wanted:  # a signal, or more than 2 GiB
            more = os.pread(file, wanted - len(data), start + len(data))
            if not more:
                break
            data += more
        return data
    finally:
        os.close(file)


def _crc32c_of_file(file: int) -> int:
    checksum = position = 0
    while data := os.pread(file, READ_BYTES, position):
        checksum = crc32c_of(data, checksum)
        position += len(data)
    return checksum


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_durably(folder: Path) -> None:
    """Make ``folder`` and its missing parents so that a power failure cannot take them away again."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for made in reversed(missing):
        made.mkdir(exist_ok=True)
        _fsync_folder(made.parent)


def _remove_leftovers(uploading: Path) -> None:
    """Remove the temporary folders of processes that no longer live."""
    for folder in uploading.iterdir():
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # another process that is starting was first
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its process is alive
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _own_folder(uploading: Path, entropy: Entropy) -> tuple[Path, int]:
    """Make and lock this process's temporary folder; the lock is the open handle."""
    while True:
        folder = uploading / entropy.uuid_bytes().hex()
        folder.mkdir()
        # Another process that is starting may take it for a leftover, until it is locked.
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)
