"""The product's processes on simulated machines: the real agents and metadata processes, with fakes only at the ports.

:func:`simulated` puts the fakes where the processes are put together (``tidelog.app``, ``tidelog.metadata_process``)
and where connections are made; everything between is the product's own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol
from unittest import mock

import structlog

import agent.fetch.peers
import agent.load
import agent.neighbours
import metadata.rpc.leader
import tidelog.app
import tidelog.metadata_process
import tidelog.parts
from metadata.model import MetadataUnavailable
from metadata.store.port import StoreUnavailable
from runtime.clock import SeededEntropy
from runtime.settings import (
    CompactionSettings,
    FetchSettings,
    GroupSettings,
    IngestSettings,
    JobsSettings,
    LifecycleSettings,
    ListenSettings,
    S3Settings,
    Settings,
)
from storage.metered import MeteredStore
from storage.retry import RetryingStore, RetryPolicy
from storage.store import StorageError
from tests.simulation.database import SimMetadataStore
from tests.simulation.http import SimHttpServer, SimSession, aiohttp_shim
from tests.simulation.loop import PROCESS, SimClock, SimProcess
from tests.simulation.network import Network
from tests.simulation.object_store import SimObjectStore
from tests.simulation.sockets import Disconnected, Link, SimKafkaServer
from tidelog.agent import reach_metadata

METADATA_PORT = 8090
LOOP_PROBE_SECONDS = 0.25
"""Instead of 50 ms: a quarter of all steps would be these."""
RESTART_SECONDS = 0.5
DELETION_GRACE_MS = 7_000
ORPHAN_AGE_MS = 4_000
"""Short, so that sweeps meet objects that are on their way to be committed."""


class Site(Protocol):
    """What a machine needs of its world."""

    loop: Any
    network: Network
    database: Any
    bucket: Any
    trace: Any
    rng: Any
    referee: Any


def agent_settings(host: str, zone: str, metadata_hosts: list[str]) -> Settings:
    """An agent of the simulation: small segments, short deadlines."""
    return Settings(
        zone=zone,
        storage="memory://",
        metadata=",".join(f"http://{each}:{METADATA_PORT}" for each in metadata_hosts),
        listen=ListenSettings(kafka=f"{host}:9092", http=f"{host}:8080"),
        ingest=IngestSettings(linger_ms=60, segment_bytes_max=64 * 1024, upload_deadline_ms=15_000),
        fetch=FetchSettings(block_bytes=64 * 1024, tail_block_bytes=64 * 1024, read_deadline_ms=8_000),
        s3=S3Settings(deadline_ms=10_000),
        jobs=JobsSettings(poll_ms=500),
        drain_ms=8_000,
    )


def metadata_settings(host: str) -> Settings:
    return Settings(
        metadata="memory://",
        storage="memory://",
        listen=ListenSettings(metadata=f"{host}:{METADATA_PORT}"),
        groups=GroupSettings(initial_rebalance_delay_ms=500),
        lifecycle=LifecycleSettings(
            deletion_grace_ms=DELETION_GRACE_MS,
            orphan_age_ms=ORPHAN_AGE_MS,
            sweep_interval_ms=8_000,
            job_lease_ms=1_500,
        ),
        compaction=CompactionSettings(job_bytes=64 * 1024, fan_in=2, min_age_ms=500, wait_ms=2_500),
    )


class Machine:
    """A host on which one process runs, dies and is started again, as an orchestrator would."""

    def __init__(self, site: Site, host: str, zone: str, build: Callable[[Machine, Any, Any, Any], Any]) -> None:
        self.site = site
        self.host = host
        self.zone = zone
        self.process: SimProcess | None = None
        self.server: Any = None
        self.wanted = False
        """It should run: whatever ends it, it is started again."""
        self._build = build
        self._lives = 0
        self._stopping = asyncio.Event()

    @property
    def up(self) -> bool:
        return self.process is not None and not self.process.dead

    def start(self) -> None:
        """Start a process, unless one runs."""
        self.wanted = True
        if self.up:
            return
        site = self.site
        self._lives += 1
        self.process = process = SimProcess(f"{self.host}.{self._lives}", self.host, self.zone)
        site.network.processes[self.host] = process
        site.trace.note(process, "starts")
        self._stopping = asyncio.Event()
        site.loop.start_in(process, f"life of {process}", self._live(process, self._stopping))

    def crash(self, silently: bool) -> None:
        """SIGKILL; ``silently``: the whole machine, so that nobody is told."""
        process = self.process
        if process is None or process.dead:
            return
        self.site.trace.note(process, "dies", "silently" if silently else "")
        self.site.loop.kill(process)
        self.site.network.died(process, silently)
        if not silently:
            self.site.database.process_died(process)
        self.server = None

    def stop(self) -> None:
        """SIGTERM: it drains and ends."""
        if self.up:
            self._stopping.set()

    async def _live(self, process: SimProcess, stopping: asyncio.Event) -> None:
        """From a start to an exit, in the process's own context."""
        site = self.site
        failures: list[str] = []

        def failed(name: str, error: BaseException) -> None:
            failures.append(f"{name}: {error!r}")
            stopping.set()

        server = None
        try:
            server = self._build(self, SimClock(site.loop, process), SeededEntropy(site.rng.getrandbits(64)), failed)
            await server.start()
            self.server = server
            site.trace.note(process, "serves")
            await stopping.wait()
            site.trace.note(process, "drains", *failures)
            await server.drain()
        except (MetadataUnavailable, StorageError, StoreUnavailable) as error:
            site.trace.note(process, "gives up", error)
        except Exception as error:
            site.referee.violation("failed inside", f"{process}: its life ended with {error!r}")
        finally:
            if server is not None:
                await server.stop()
        self.server = None
        site.trace.note(process, "ends")
        site.loop.call_later(0.0, self._ended, process, context=site.loop.world_context)

    def _ended(self, process: SimProcess) -> None:
        if process.dead:
            return
        self.site.loop.kill(process)
        self.site.network.died(process, False)
        self.site.database.process_died(process)
        if self.wanted:
            self.site.loop.call_later(RESTART_SECONDS, self._again, context=self.site.loop.world_context)

    def _again(self) -> None:
        if self.wanted:
            self.start()


def build_agent(metadata_hosts: list[str]) -> Callable[[Machine, Any, Any, Any], Any]:
    """How a machine makes an agent's process."""

    def build(machine: Machine, clock: Any, entropy: Any, failed: Any) -> Any:
        settings = agent_settings(machine.host, machine.zone, metadata_hosts)
        return tidelog.app.AgentProcess(settings, clock, entropy, failed, reach_metadata)

    return build


def build_metadata(machine: Machine, clock: Any, entropy: Any, failed: Any) -> Any:
    """How a machine makes a metadata process."""
    return tidelog.metadata_process.MetadataProcess(metadata_settings(machine.host), clock, entropy, failed)


@contextlib.contextmanager
def simulated(site: Site) -> Iterator[None]:
    """The product talks to ``site``'s ports instead of the real ones."""
    network = site.network

    def open_store(_url: str, *, s3: S3Settings, clock: Any, entropy: Any, metrics: Any) -> Any:
        policy = RetryPolicy(attempts_max=s3.attempts_max, deadline_ms=s3.deadline_ms)
        store = MeteredStore(SimObjectStore(site.bucket), metrics, clock)
        return RetryingStore(store, policy, clock, entropy, metrics)

    def http_server(*_: Any) -> SimHttpServer:
        process = PROCESS.get()
        assert process is not None
        return SimHttpServer(network, process)

    async def connects(endpoint: Any) -> bool:
        try:
            link = await Link.connect(network, endpoint.host, endpoint.port)
        except Disconnected:
            return False
        link.close()
        return True

    def collect(_logger: Any, level: str, event: dict[str, Any]) -> Any:
        process = PROCESS.get()
        name = str(event.pop("event"))
        event.pop("exc_info", None)
        site.trace.note(process, f"{level}:{name}", *(f"{key}={value}" for key, value in event.items()))
        site.referee.log_line(process, level, name, event)
        raise structlog.DropEvent

    def nothing(*_: Any, **__: Any) -> None: ...

    before = structlog.get_config()
    structlog.configure(processors=[collect], cache_logger_on_first_use=False)
    with contextlib.ExitStack() as stack:
        stack.callback(structlog.configure, **before)
        for target, name, value in (
            (tidelog.app, "open_store", open_store),
            (tidelog.app, "KafkaServer", SimKafkaServer),
            (tidelog.metadata_process, "open_store", open_store),
            (tidelog.parts, "HttpServer", http_server),
            (tidelog.parts, "ProcessCollector", nothing),
            (tidelog.parts, "PlatformCollector", nothing),
            (tidelog.parts, "GCCollector", nothing),
            (tidelog.metadata_process, "raise_file_limit", nothing),
            (
                tidelog.metadata_process,
                "open_metadata_store",
                lambda *_, **__: SimMetadataStore(site.database),
            ),
            (metadata.rpc.leader, "aiohttp", aiohttp_shim),
            (agent.fetch.peers, "aiohttp", aiohttp_shim),
            (agent.neighbours, "_connects", connects),
            (agent.load, "PROBE_SECONDS", LOOP_PROBE_SECONDS),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        stack.enter_context(mock.patch.object(tidelog.app, "print", nothing, create=True))
        for holder in (SimKafkaServer, SimSession):
            stack.enter_context(mock.patch.object(holder, "network", network, create=True))
        yield
