"""``tidelog up``: runs the all-in-one process until a signal, or a part of it that failed, ends it."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Literal, Protocol

import structlog
import uvloop

from metadata.store.port import StoreUnavailable
from runtime.clock import Clock, SystemEntropy
from runtime.heap import freeze_heap, tune_heap
from runtime.logs import configure_logs
from runtime.settings import Settings, SettingsError, parse_address
from storage.store import StorageError, StorageRefused
from tidelog.app import Tidelog

STOPPED = 0
FAILED = 1
WRONG_SETTING = 2
INTERRUPTED = 130

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_log = structlog.get_logger("tidelog.up")


class Process(Protocol):
    """What is started, drained and stopped here: :class:`tidelog.app.Tidelog`."""

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


def run(settings: Settings, clock: Clock, process_started: float) -> int:
    """Serve until SIGTERM or Ctrl-C, then drain; the exit code. ``process_started`` is on ``clock.monotonic``.

    A second signal does not wait for the drain: nothing that was acknowledged is lost by that either.
    """
    configure_logs(settings.log.level, settings.log.form)
    tune_heap()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings, clock, process_started))


async def _serve(settings: Settings, clock: Clock, process_started: float) -> int:
    signals = StopSignals()
    failures: list[str] = []

    def failed(task: str, error: BaseException) -> None:
        failures.append(f"{task}: {error!r}")
        signals.stopping.set()

    signals.install()
    tidelog = Tidelog(settings, clock, SystemEntropy(), failed)

    def ready() -> None:
        freeze_heap()
        _print_banner(tidelog, settings, clock.monotonic() - process_started)

    return await _live(tidelog, settings, signals, failures, ready)


async def _live(
    tidelog: Process, settings: Settings, signals: StopSignals, failures: list[str], ready: Callable[[], None]
) -> int:
    """From the start to the end; the exit code."""
    try:
        problem = await _start(tidelog, settings)
        if problem is not None:
            code, message = problem
            print(f"tidelog: {message}", file=sys.stderr)
            return code
        ready()
        await signals.stopping.wait()
        if failures:
            _log.error("stopping_after_failure", failures=failures)
        await tidelog.drain()
    except asyncio.CancelledError:
        _log.warning("stopped_without_draining")
        return INTERRUPTED
    finally:
        signals.ignore()
        await tidelog.stop()
    return FAILED if failures else STOPPED


async def _start(tidelog: Process, settings: Settings) -> tuple[int, str] | None:
    """None when it serves, else the exit code and what to tell the operator."""
    try:
        await tidelog.start()
    except SettingsError as error:
        return WRONG_SETTING, str(error)
    except ValueError as error:  # a URL that its room cannot read
        return WRONG_SETTING, str(error)
    except StorageRefused as error:
        return WRONG_SETTING, f"{_kept_in(settings, 'storage')}: {error}"
    except StorageError as error:
        return FAILED, f"{_kept_in(settings, 'storage')}: {error}"
    except StoreUnavailable as error:
        return FAILED, f"{_kept_in(settings, 'metadata')}: {error}"
    except OSError as error:
        return WRONG_SETTING, _listen_problem(settings, error)
    return None


def _kept_in(settings: Settings, setting: Literal["storage", "metadata"]) -> str:
    """The setting that says where it is, with its value: that is ``data`` when ``setting`` itself is not given."""
    url = settings.storage if setting == "storage" else settings.metadata
    return f"data = {str(settings.data)!r}" if url is None else f"{setting} = {url!r}"


def _listen_problem(settings: Settings, error: OSError) -> str:
    """Which address could not be had. Only the HTTP listener's errors name theirs, at the end of the message."""
    reason = error.strerror or error
    if isinstance(error, socket.gaierror):  # it names no host
        for name in ("kafka", "http"):
            address = getattr(settings.listen, name)
            if not _has_address(parse_address(f"listen.{name}", address)[0]):
                return f"listen.{name} = {address!r}: {reason}"
    if f", {settings.listen.http.rpartition(':')[2]})" in str(error):
        return f"listen.http = {settings.listen.http!r}: {reason}"
    if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
        return f"listen.kafka = {settings.listen.kafka!r}: {reason}"
    return f"cannot start: {error}"


def _has_address(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror:
        return False
    return True


def _print_banner(tidelog: Tidelog, settings: Settings, seconds: float) -> None:
    host, _, port = tidelog.kafka_address.rpartition(":")
    option = "" if (host, port) == ("127.0.0.1", "9092") else f" --bootstrap {tidelog.kafka_address}"
    print(
        f"Tidelog {version('tidelog')} is ready after {seconds:.2f} s\n"
        f"  Kafka     {tidelog.kafka_address}\n"
        f"  HTTP      http://{tidelog.http_address}  /healthz /readyz /metrics\n"
        f"  storage   {tidelog.storage_name}\n"
        f"  metadata  {settings.metadata_url()}\n"
        f"\nTry, in another terminal:\n"
        f"  tidelog topic create logs{option}\n"
        f"  echo hello | tidelog produce logs{option}\n"
        f"  tidelog consume logs --from-beginning{option}\n"
        f"Ctrl-C drains and stops.",
        flush=True,
    )
