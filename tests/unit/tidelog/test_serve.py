import asyncio
import errno
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from metadata.store.port import StoreUnavailable
from runtime.settings import ListenSettings, Settings, SettingsError
from storage.store import StorageRefused, StorageUnavailable
from tidelog.serve import FAILED, INTERRUPTED, STOP_SIGNALS, STOPPED, StopSignals, _live, _start

SETTINGS = Settings(listen=ListenSettings(kafka="127.0.0.1:9999", http="127.0.0.1:8888"), storage="s3://logs")


class Failing:
    """A process whose start fails."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    async def start(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (SettingsError("listen.advertise = 'x': not host:port"), 2, "listen.advertise"),
        (ValueError("storage 's3://_': '_' is not a bucket name"), 2, "storage"),
        (StorageRefused("access denied"), 2, "storage = 's3://logs': access denied"),
        (StorageUnavailable("timed out"), 1, "storage = 's3://logs': timed out"),
        (StoreUnavailable("database is locked"), 1, "data = 'tidelog-data': database is locked"),
        (
            OSError(errno.EADDRINUSE, "Address already in use"),
            2,
            "listen.kafka = '127.0.0.1:9999': Address already in use",
        ),
        (OSError(errno.EACCES, "Permission denied"), 2, "listen.kafka = '127.0.0.1:9999': Permission denied"),
        (
            OSError(errno.EADDRINUSE, "error while attempting to bind on address ('127.0.0.1', 8888): in use"),
            2,
            "listen.http = '127.0.0.1:8888'",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "cannot start: "),
    ],
)
async def test_what_stops_the_start_names_the_setting(error: Exception, code: int, words: str) -> None:
    problem = await _start(cast(Any, Failing(error)), SETTINGS)
    assert problem is not None
    assert problem[0] == code
    assert words in problem[1]


@pytest.mark.parametrize("name", ["kafka", "http"])
async def test_a_host_without_an_address_names_its_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(host: str, _port: None) -> list[object]:
        if host == "nowhere.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    listen = ListenSettings(**{"kafka": "127.0.0.1:1", "http": "127.0.0.1:2", name: "nowhere.invalid:9"})
    failing = Failing(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    problem = await _start(cast(Any, failing), Settings(listen=listen))
    assert problem == (2, f"listen.{name} = 'nowhere.invalid:9': Name or service not known")


async def test_where_data_is_kept_is_named_by_the_setting_that_was_given() -> None:
    failing = cast(Any, Failing(StorageRefused("not a folder")))
    assert await _start(failing, Settings(data=Path("/etc/passwd"))) == (2, "data = '/etc/passwd': not a folder")


async def test_a_good_start_has_no_problem_and_a_bug_is_not_hidden() -> None:
    assert await _start(cast(Any, Failing(None)), SETTINGS) is None
    with pytest.raises(ZeroDivisionError):
        await _start(cast(Any, Failing(ZeroDivisionError())), SETTINGS)


class Draining:
    """A process that drains until it is told that it has, and needs a few turns to stop."""

    def __init__(self) -> None:
        self.drained = asyncio.Event()
        self.stop_turns = 0
        self.is_draining = asyncio.Event()

    async def start(self) -> None:
        pass

    async def drain(self) -> None:
        self.is_draining.set()
        await self.drained.wait()

    async def stop(self) -> None:
        for _ in range(20):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0)
            self.stop_turns += 1


@pytest.fixture
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


async def _run(process: Draining, failures: list[str]) -> tuple[StopSignals, "asyncio.Task[int]"]:
    ready: asyncio.Future[StopSignals] = asyncio.get_running_loop().create_future()

    async def serve() -> int:
        signals = StopSignals()
        signals.install()
        return await _live(process, SETTINGS, signals, failures, lambda: ready.set_result(signals))

    task = asyncio.create_task(serve())
    return await ready, task


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize(("failures", "code"), [([], STOPPED), (["a task"], FAILED)])
async def test_one_signal_drains_and_none_disturbs_the_end(failures: list[str], code: int) -> None:
    process = Draining()
    _, serving = await _run(process, failures)
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.wait_for(process.is_draining.wait(), 5)
    process.drained.set()
    assert await asyncio.wait_for(serving, 5) == code
    assert process.stop_turns == 20
    os.kill(os.getpid(), signal.SIGTERM)  # the interpreter's last moments


class Waiting(Draining):
    """Its start waits for somebody who does not come, and takes some turns to be given up."""

    def __init__(self) -> None:
        super().__init__()
        self.is_starting = asyncio.Event()
        self.given_up_turns = 0

    async def start(self) -> None:
        self.is_starting.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(20):
                await asyncio.sleep(0)
                self.given_up_turns += 1


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize(
    ("signals_sent", "failures", "code"), [(1, [], STOPPED), (1, ["a task"], FAILED), (2, [], INTERRUPTED)]
)
async def test_a_start_that_waits_ends_with_the_first_signal(signals_sent: int, failures: list[str], code: int) -> None:
    process = Waiting()

    async def serve() -> int:
        signals = StopSignals()
        signals.install()
        return await _live(process, SETTINGS, signals, failures, lambda: pytest.fail("it never served"))

    serving = asyncio.create_task(serve())
    await asyncio.wait_for(process.is_starting.wait(), 5)
    for _ in range(signals_sent):
        os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(serving, 5) == code
    assert (process.given_up_turns, process.stop_turns) == (20, 20), "in this order, and both to their end"
    assert not process.is_draining.is_set()


@pytest.mark.usefixtures("_handlers")
async def test_a_second_signal_ends_the_drain_and_more_change_nothing() -> None:
    process = Draining()
    signals, serving = await _run(process, [])
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(process.is_draining.wait(), 5)
    for _ in range(5):
        signals.received()
    assert await asyncio.wait_for(serving, 5) == INTERRUPTED
    assert process.stop_turns == 20
