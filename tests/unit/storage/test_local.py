"""What ``file://`` adds to the contract: durability in the right order, crashes, full disks, shared folders."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from crc32c import crc32c

from runtime.clock import SeededEntropy, SystemEntropy
from storage.local import IOV_MAX, UPLOADING, LocalStore
from storage.store import ObjectExists, ObjectNotFound, StorageRefused, StorageUnavailable


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalStore]:
    opened = LocalStore(tmp_path / "objects", SeededEntropy(1))
    yield opened
    await opened.close()


async def put(store: LocalStore, key: str, data: bytes) -> None:
    await store.put(key, [data], crc32c(data))


def temporary_files(root: Path) -> list[Path]:
    return [path for path in (root / UPLOADING).rglob("*") if path.is_file()]


def all_files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


async def test_file_and_folders_are_synced_in_order_before_put_returns(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    real_fsync, real_link = os.fsync, os.link

    def fsync(handle: int) -> None:
        path = str(Path(f"/proc/self/fd/{handle}").readlink())
        log.append("sync file" if UPLOADING in path else f"sync {Path(path).relative_to(tmp_path)}")
        real_fsync(handle)

    def link(source: Path, target: Path) -> None:
        log.append(f"link {target.relative_to(tmp_path)}")
        real_link(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    await put(store, "a/b/one", b"data")
    assert log == ["sync objects", "sync objects/a", "sync file", "link objects/a/b/one", "sync objects/a/b"]
    log.clear()
    await put(store, "a/b/two", b"data")
    assert log == ["sync file", "link objects/a/b/two", "sync objects/a/b"], "known folders are not synced again"
    log.clear()
    await put(store, "a/b/two", b"data")
    assert log[-2:] == ["sync objects/a/b/two", "sync objects/a/b"], "a repeated put makes the first one durable"


async def test_the_folder_itself_is_made_durably(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    real_fsync = os.fsync

    def fsync(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink())
        real_fsync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    root = tmp_path / "new" / "deeper" / "objects"
    store = LocalStore(root, SeededEntropy(1))
    assert synced == [tmp_path, tmp_path / "new", tmp_path / "new" / "deeper", root]
    await store.close()


async def test_more_chunks_than_one_call_takes_and_short_writes(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_writev = os.writev

    def writev(file: int, buffers: list[memoryview]) -> int:
        whole = b"".join(buffers)
        return os.write(file, whole[: max(1, len(whole) * 2 // 3)]) if len(whole) > 5 else real_writev(file, buffers)

    monkeypatch.setattr(os, "writev", writev)
    chunks = [bytes([number % 256]) * (number % 5) for number in range(IOV_MAX * 2 + 3)]
    data = b"".join(chunks)
    await store.put("object", chunks, crc32c(data))
    assert await store.get("object") == data


@pytest.mark.parametrize("call", ["writev", "fsync", "link"])
async def test_a_full_disk_is_retriable_and_leaves_nothing(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(StorageUnavailable, match="is full") as caught:
            await put(store, "object", b"data")
    assert str(tmp_path / "objects") in str(caught.value)
    assert all_files(tmp_path) == []
    await put(store, "object", b"data")
    assert await store.get("object") == b"data"


async def test_a_really_full_file_system(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root; the same errors are injected above")
    try:
        store = LocalStore(small / "objects", SystemEntropy())
        await put(store, "fits", b"x" * 400_000)
        with pytest.raises(StorageUnavailable, match="is full"):
            await put(store, "too-big", b"x" * 900_000)
        assert temporary_files(small / "objects") == []
        await store.delete(["fits"])
        await put(store, "too-big", b"x" * 900_000)
        await store.close()
    finally:
        subprocess.run(["umount", str(small)], check=True)


async def test_an_input_output_error_is_retriable_and_a_refusal_is_not(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, expected in [(errno.EIO, StorageUnavailable), (errno.EROFS, StorageRefused)]:

        def fail(*_: object, number: int = number) -> int:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, "writev", fail)
            with pytest.raises(expected, match=os.strerror(number)):
                await put(store, "object", b"data")


class Gate:
    """Holds the pool's thread inside ``os.fsync`` until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()
        self._real = os.fsync

    def fsync(self, handle: int) -> None:
        self.reached.set()
        assert self.opened.wait(30)
        self._real(handle)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    held = Gate()
    monkeypatch.setattr(os, "fsync", held.fsync)
    yield held
    held.opened.set()


async def test_a_cancelled_put_makes_no_object_even_if_its_chunks_change(tmp_path: Path, gate: Gate) -> None:
    gate.opened.set()
    store = LocalStore(tmp_path / "objects", SeededEntropy(1))
    gate.opened.clear()
    gate.reached.clear()
    chunk = bytearray(b"before")
    task = asyncio.get_running_loop().create_task(store.put("object", [chunk], crc32c(b"before")))
    await asyncio.to_thread(gate.reached.wait, 30)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    chunk[:] = b"after!"
    gate.opened.set()
    await store.close()  # waits for the thread
    assert all_files(tmp_path) == []


async def test_what_a_killed_process_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    root = tmp_path / "objects"
    child = subprocess.Popen(
        [sys.executable, "-c", DIES_WHILE_PUTTING, str(root)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"in fsync\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert len(temporary_files(root)) == 1

    store = LocalStore(root, SystemEntropy())
    assert all_files(root) == ["done"]
    assert [info.key async for info in store.list("")] == ["done"]
    with pytest.raises(ObjectNotFound):
        await store.get("half")
    await put(store, "half", b"y" * 1_000_000)
    await store.close()
    assert list((root / UPLOADING).iterdir()) == []


DIES_WHILE_PUTTING = """
import asyncio, os, pathlib, sys, time
from crc32c import crc32c
from runtime.clock import SystemEntropy
from storage.local import LocalStore

def hang(handle):
    print("in fsync", flush=True)
    time.sleep(600)

async def main():
    store = LocalStore(pathlib.Path(sys.argv[1]), SystemEntropy())
    await store.put("done", [b"x"], crc32c(b"x"))
    os.fsync = hang
    await store.put("half", [b"y" * 1_000_000], crc32c(b"y" * 1_000_000))

asyncio.run(main())
"""


async def test_a_starting_process_spares_what_a_living_one_is_writing(tmp_path: Path, gate: Gate) -> None:
    gate.opened.set()
    first = LocalStore(tmp_path / "objects", SystemEntropy())
    gate.opened.clear()
    gate.reached.clear()
    task = asyncio.get_running_loop().create_task(put(first, "object", b"data"))
    await asyncio.to_thread(gate.reached.wait, 30)
    gate.opened.set()
    second = LocalStore(tmp_path / "objects", SystemEntropy())
    await task
    assert await second.get("object") == b"data"
    with pytest.raises(ObjectExists):
        await put(second, "object", b"atad")
    await first.close()
    await second.close()


async def test_any_number_may_start_at_the_same_time(tmp_path: Path) -> None:
    """Each looks for leftovers while others make, lock and remove their folders."""

    async def start_and_close() -> None:
        for _ in range(40):
            store = await asyncio.to_thread(LocalStore, tmp_path, SystemEntropy())
            await store.close()

    await asyncio.gather(*(start_and_close() for _ in range(8)))
    assert list((tmp_path / UPLOADING).iterdir()) == []


async def test_a_folder_removed_by_others_is_made_again(store: LocalStore, tmp_path: Path) -> None:
    await put(store, "a/one", b"1")
    (tmp_path / "objects" / "a" / "one").unlink()
    (tmp_path / "objects" / "a").rmdir()
    with pytest.raises(StorageUnavailable, match="disappeared"):
        await put(store, "a/two", b"2")
    await put(store, "a/two", b"2")
    assert await store.get("a/two") == b"2"


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageRefused, match=r"cannot write to the folder .*/file/objects: .*--storage"):
        LocalStore(tmp_path / "file" / "objects", SystemEntropy())


async def test_check_finds_a_file_system_without_links(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    await store.check()
    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(StorageRefused, match="Operation not permitted"):
        await store.check()


async def test_a_closed_store_refuses_work(store: LocalStore) -> None:
    await store.close()
    with pytest.raises(StorageUnavailable, match="closed"):
        await put(store, "object", b"data")
