"""``tidelog up``: runs the all-in-one process until a signal, or a part of it that failed, ends it."""

from __future__ import annotations

import asyncio
import errno
import signal
import sys
from importlib.metadata import version

import structlog
import uvloop

from metadata.store.port import StoreUnavailable
from runtime.clock import Clock, SystemEntropy
from runtime.heap import freeze_heap, tune_heap
from runtime.logs import configure_logs
from runtime.settings import Settings, SettingsError
from storage.store import StorageError, StorageRefused
from tidelog.app import Tidelog

STOPPED = 0
FAILED = 1
WRONG_SETTING = 2
INTERRUPTED = 130

_log = structlog.get_logger("tidelog.up")


def run(settings: Settings, clock: Clock, process_started: float) -> int:
    """Serve until SIGTERM or Ctrl-C, then drain; the exit code. ``process_started`` is on ``clock.monotonic``.

    A second signal does not wait for the drain: nothing that was acknowledged is lost by that either.
    """
    configure_logs(settings.log.level, settings.log.form)
    tune_heap()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings, clock, process_started))


async def _serve(settings: Settings, clock: Clock, process_started: float) -> int:
    stopping = asyncio.Event()
    failures: list[str] = []

    def failed(task: str, error: BaseException) -> None:
        failures.append(f"{task}: {error!r}")
        stopping.set()

    serving = asyncio.current_task()
    assert serving is not None

    def asked_to_stop() -> None:
        if stopping.is_set():
            serving.cancel()
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop)

    tidelog = Tidelog(settings, clock, SystemEntropy(), failed)
    try:
        problem = await _start(tidelog, settings)
        if problem is not None:
            code, message = problem
            print(f"tidelog: {message}", file=sys.stderr)
            return code
        freeze_heap()
        _print_banner(tidelog, settings, clock.monotonic() - process_started)
        await stopping.wait()
        if failures:
            _log.error("stopping_after_failure", failures=failures)
        await tidelog.drain()
    except asyncio.CancelledError:
        _log.warning("stopped_without_draining")
        return INTERRUPTED
    finally:
        await tidelog.stop()
    return FAILED if failures else STOPPED


async def _start(tidelog: Tidelog, settings: Settings) -> tuple[int, str] | None:
    """None when it serves, else the exit code and what to tell the operator."""
    try:
        await tidelog.start()
    except SettingsError as error:
        return WRONG_SETTING, str(error)
    except ValueError as error:  # a URL that its room cannot read
        return WRONG_SETTING, str(error)
    except StorageRefused as error:
        return WRONG_SETTING, f"storage = {settings.storage_url()!r}: {error}"
    except StorageError as error:
        return FAILED, f"storage = {settings.storage_url()!r}: {error}"
    except StoreUnavailable as error:
        return FAILED, f"metadata = {settings.metadata_url()!r}: {error}"
    except OSError as error:
        return WRONG_SETTING, _listen_problem(settings, error)
    return None


def _listen_problem(settings: Settings, error: OSError) -> str:
    """Which address could not be had. Only the HTTP listener's errors name theirs, at the end of the message."""
    reason = error.strerror or error
    if f", {settings.listen.http.rpartition(':')[2]})" in str(error):
        return f"listen.http = {settings.listen.http!r}: {reason}"
    if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
        return f"listen.kafka = {settings.listen.kafka!r}: {reason}"
    return f"cannot start: {error}"


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
