"""A server process from its start to its exit code: signals, what stops a start, and the order of the end."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import sys
from collections.abc import Callable
from typing import Literal, Protocol, TypeVar

import structlog
import uvloop

from metadata.model import MetadataUnavailable
from metadata.store.port import StoreUnavailable
from runtime.clock import Entropy, SystemEntropy
from runtime.heap import freeze_heap, tune_heap
from runtime.logs import configure_logs
from runtime.settings import Settings, SettingsError, parse_address, without_password
from storage.store import StorageError, StorageRefused

STOPPED = 0
FAILED = 1
WRONG_SETTING = 2
INTERRUPTED = 130

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_log = structlog.get_logger("tidelog.serve")


class Process(Protocol):
    """What is started, drained and stopped here, such as :class:`tidelog.app.AgentProcess`."""

    async def start(self) -> None: ...

    async def drain(self) -> None: ...

    async def stop(self) -> None: ...


class StopSignals:
    """SIGTERM and Ctrl-C: the first asks to stop in order, the second not to wait for that, the others nothing.

    The handlers are the process's, not the event loop's, whose end would bring back the default: a signal during the
    last moments would kill the process with an exit code that says nothing of what was saved.
    """

    def __init__(self) -> None:
        """Inside the task that a second signal cancels."""
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self.stopping = asyncio.Event()

    def install(self) -> None:
        """From now on; main thread only."""
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: self._loop.call_soon_threadsafe(self.received))

    def received(self) -> None:
        """One of the signals came."""
        if self._closing:
            return
        if self.stopping.is_set():
            self._closing = True
            self._task.cancel()
        self.stopping.set()

    def ignore(self) -> None:
        """Until the process has ended: what is left to do is short, and worth its exit code."""
        self._closing = True
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


ProcessT = TypeVar("ProcessT", bound=Process)


def run_process(
    settings: Settings,
    build: Callable[[Entropy, Callable[[str, BaseException], None]], ProcessT],
    ready: Callable[[ProcessT], None],
) -> int:
    """Serve until SIGTERM or Ctrl-C, then drain; the exit code.

    ``build(entropy, on_failure)`` makes the process; ``ready(process)`` is called once it serves. A second signal does
    not wait for the drain: nothing that was acknowledged is lost by that either.
    """
    configure_logs(settings.log.level, settings.log.form)
    tune_heap()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings, build, ready))


async def _serve(
    settings: Settings,
    build: Callable[[Entropy, Callable[[str, BaseException], None]], ProcessT],
    ready: Callable[[ProcessT], None],
) -> int:
    signals = StopSignals()
    failures: list[str] = []

    def failed(task: str, error: BaseException) -> None:
        failures.append(f"{task}: {error!r}")
        signals.stopping.set()

    signals.install()
    process = build(SystemEntropy(), failed)

    def is_ready() -> None:
        freeze_heap()
        ready(process)

    return await _live(process, settings, signals, failures, is_ready)


async def _live(
    process: Process, settings: Settings, signals: StopSignals, failures: list[str], ready: Callable[[], None]
) -> int:
    """From the start to the end; the exit code."""
    try:
        has_started, problem = await _start_or_stop(process, settings, signals)
        if problem is not None:
            code, message = problem
            print(f"tidelog: {message}", file=sys.stderr)
            return code
        if has_started:
            ready()
            await signals.stopping.wait()
        else:
            _log.warning("stopped_while_starting")
        if failures:
            _log.error("stopping_after_failure", failures=failures)
        if has_started:
            await process.drain()
    except asyncio.CancelledError:
        _log.warning("stopped_without_draining")
        return INTERRUPTED
    finally:
        signals.ignore()
        await process.stop()
    return FAILED if failures else STOPPED


async def _start_or_stop(
    process: Process, settings: Settings, signals: StopSignals
) -> tuple[bool, tuple[int, str] | None]:
    """Whether it serves, and why not; neither when it was to stop meanwhile: a start may wait for others for ever."""
    async with asyncio.TaskGroup() as group:
        starting = group.create_task(_start(process, settings), name="start")
        stopping = group.create_task(signals.stopping.wait(), name="stop-signal")
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        starting.cancel()
        stopping.cancel()
    if starting.cancelled():
        return False, None
    problem = starting.result()
    return problem is None, problem


async def _start(process: Process, settings: Settings) -> tuple[int, str] | None:
    """None when it serves, else the exit code and what to tell the operator."""
    try:
        await process.start()
    except SettingsError as error:
        return WRONG_SETTING, str(error)
    except ValueError as error:  # a URL that its room cannot read
        return WRONG_SETTING, str(error)
    except StorageRefused as error:
        return WRONG_SETTING, f"{_kept_in(settings, 'storage')}: {error}"
    except StorageError as error:
        return FAILED, f"{_kept_in(settings, 'storage')}: {error}"
    except (StoreUnavailable, MetadataUnavailable) as error:
        return FAILED, f"{_kept_in(settings, 'metadata')}: {error}"
    except OSError as error:
        return WRONG_SETTING, _listen_problem(settings, error)
    return None


def _kept_in(settings: Settings, setting: Literal["storage", "metadata"]) -> str:
    """The setting that says where it is, with its value: that is ``data`` when ``setting`` itself is not given."""
    url = settings.storage if setting == "storage" else settings.metadata
    return f"data = {str(settings.data)!r}" if url is None else f"{setting} = {without_password(url)!r}"


def _listen_problem(settings: Settings, error: OSError) -> str:
    """Which address could not be had. Only the HTTP listeners' errors name theirs, at the end of the message."""
    reason = error.strerror or error
    if isinstance(error, socket.gaierror):  # it names no host
        for name in ("kafka", "http", "metadata"):
            address = getattr(settings.listen, name)
            if not _has_address(parse_address(f"listen.{name}", address)[0]):
                return f"listen.{name} = {address!r}: {reason}"
    for name in ("http", "metadata"):
        address = getattr(settings.listen, name)
        if f", {address.rpartition(':')[2]})" in str(error):
            return f"listen.{name} = {address!r}: {reason}"
    if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
        return f"listen.kafka = {settings.listen.kafka!r}: {reason}"
    return f"cannot start: {error}"


def _has_address(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror:
        return False
    return True
