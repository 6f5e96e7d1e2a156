"""``tidelog up``: everything in one process."""

from __future__ import annotations

from importlib.metadata import version

from runtime.clock import Clock
from runtime.settings import Settings, without_password
from tidelog.app import AgentProcess
from tidelog.metadata_parts import start_metadata_service
from tidelog.serve import run_process


def run(settings: Settings, clock: Clock, process_started: float) -> int:
    """Serve until a signal ends it; the exit code. ``process_started`` is on ``clock.monotonic``."""
    return run_process(
        settings,
        lambda entropy, failed: AgentProcess(settings, clock, entropy, failed, start_metadata_service),
        lambda process: _print_banner(process, settings, clock.monotonic() - process_started),
    )


def _print_banner(process: AgentProcess, settings: Settings, seconds: float) -> None:
    host, _, port = process.kafka_address.rpartition(":")
    option = "" if (host, port) == ("127.0.0.1", "9092") else f" --bootstrap {process.kafka_address}"
    print(
        f"Tidelog {version('tidelog')} is ready after {seconds:.2f} s\n"
        f"  Kafka     {process.kafka_address}\n"
        f"  HTTP      http://{process.http_address}  /healthz /readyz /metrics\n"
        f"  storage   {process.storage_name}\n"
        f"  metadata  {without_password(settings.metadata_url())}\n"
        f"\nTry, in another terminal:\n"
        f"  tidelog topic create logs{option}\n"
        f"  echo hello | tidelog produce logs{option}\n"
        f"  tidelog consume logs --from-beginning{option}\n"
        f"Ctrl-C drains and stops.",
        flush=True,
    )
