"""``tidelog agent``: one agent of a cluster, beside metadata processes it reaches over HTTP."""

from __future__ import annotations

from importlib.metadata import version
from urllib.parse import urlsplit

from metadata.rpc.client import RemoteMetadata
from metadata.rpc.metrics import RpcClientMetrics
from runtime.clock import Clock
from runtime.settings import Settings, SettingsError, without_password
from tidelog.app import AgentProcess
from tidelog.parts import ProcessParts
from tidelog.serve import run_process


def run(settings: Settings, clock: Clock, process_started: float) -> int:
    """Serve until a signal ends it; the exit code. ``process_started`` is on ``clock.monotonic``."""
    return run_process(
        settings,
        lambda entropy, failed: AgentProcess(settings, clock, entropy, failed, reach_metadata),
        lambda process: _print_banner(process, settings, clock.monotonic() - process_started),
    )


def metadata_addresses(settings: Settings) -> list[str]:
    """``settings.metadata`` as the addresses of metadata processes.

    :raises runtime.settings.SettingsError: it is something else.
    """
    if settings.metadata is None:
        raise SettingsError("metadata is not given: http://host:port of the metadata processes, separated by commas")
    addresses = [part.strip().rstrip("/") for part in settings.metadata.split(",") if part.strip()]
    if not addresses or not all(_is_address(address) for address in addresses):
        raise SettingsError(
            f"metadata = {without_password(settings.metadata)!r}: not http://host:port of the metadata processes,"
            " separated by commas"
        )
    return addresses


def _is_address(text: str) -> bool:
    url = urlsplit(text)
    try:
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port is not None and not url.path
    except ValueError:  # the port
        return False


async def reach_metadata(parts: ProcessParts) -> RemoteMetadata:
    """A client of the cluster's metadata processes; closed with the process, watched by readiness.

    :raises runtime.settings.SettingsError: the setting ``metadata`` does not name any.
    """
    settings = parts.settings
    metadata = RemoteMetadata(
        metadata_addresses(settings),
        parts.clock,
        parts.entropy,
        parts.supervisor,
        RpcClientMetrics(parts.registry),
        None if settings.secret is None else settings.secret.get_secret_value(),
    )
    parts.closes("metadata", metadata.close)
    await metadata.start()
    parts.health.add_readiness("metadata", metadata.problem)
    return metadata


def _print_banner(process: AgentProcess, settings: Settings, seconds: float) -> None:
    print(
        f"Tidelog {version('tidelog')} agent is ready after {seconds:.2f} s\n"
        f"  zone, group  {settings.zone}, {settings.group}\n"
        f"  Kafka        {process.kafka_address}\n"
        f"  HTTP         http://{process.http_address}  /healthz /readyz /metrics\n"
        f"  storage      {process.storage_name}\n"
        f"  metadata     {settings.metadata}\n"
        f"SIGTERM moves its clients to other agents and stops it.",
        flush=True,
    )
