"""Everything in one process: the place where an agent's and the metadata service's parts are built and joined.

Start: store, metadata, registration, subscription, ingest, Kafka listener, HTTP, ready. Shutdown goes the other
way round, in order: unready, stop accepting, seal, upload, commit, answer, close.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from importlib.metadata import version

import structlog
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from agent.context import Agent, AgentIdentity
from agent.fetch.fetcher import Fetcher
from agent.fetch.metrics import FetchMetrics
from agent.metrics import AgentMetrics
from agent.server import KafkaServer
from agent.topics import TopicDirectory
from ingest.metrics import IngestMetrics
from ingest.writer import SegmentWriter
from metadata.agent_model import AgentCondition, AgentHeartbeat, AgentInfo, AgentRegistered, AgentRegistration
from metadata.metrics import MetadataMetrics
from metadata.model import Extent, Fenced, MetadataUnavailable, TopicsChanged
from metadata.service import MetadataService
from metadata.store.factory import open_metadata_store
from runtime.budget import Budget
from runtime.clock import Clock, Entropy
from runtime.health import Health
from runtime.http import HttpServer
from runtime.settings import Settings, parse_address
from runtime.tasks import Supervisor
from storage.factory import open_store
from storage.metrics import StorageMetrics
from storage.store import ObjectStore, StorageUnavailable
from tidelog.group_metrics import GroupMetrics

STORE_CHECK_SECONDS = 5.0
"""How long a start waits for an object store that does not answer well."""

_log = structlog.get_logger("tidelog.app")


class _Events:
    """Passes what became durable on to the agent's parts, in commit order."""

    def __init__(self, topics: TopicDirectory, fetcher: Fetcher) -> None:
        self._topics = topics
        self._fetcher = fetcher

    def topics_changed(self, change: TopicsChanged) -> None:
        self._topics.apply(change)
        if change.deleted:
            self._fetcher.topic_deleted(change.deleted)

    def extents_committed(self, extents: Sequence[Extent]) -> None:
        self._fetcher.extents_committed(extents)

    def agents_changed(self, agents: Sequence[AgentInfo]) -> None:
        """One process is the only agent."""

    def resynchronize(self) -> None:
        self._fetcher.resynchronize()


class Tidelog:
    """The all-in-one process: one agent, the metadata service and the HTTP side on one event loop.

    ``on_failure(task, error)`` is called when a background task dies: the owner should stop the process.
    """

    def __init__(
        self, settings: Settings, clock: Clock, entropy: Entropy, on_failure: Callable[[str, BaseException], None]
    ) -> None:
        self._settings = settings
        self._on_failure = on_failure
        self._clock = clock
        self._entropy = entropy
        disable_created_metrics()  # type: ignore[no-untyped-call]  # series that nobody asks for
        self.registry = CollectorRegistry()
        self._health = Health()
        self._supervisor = Supervisor(on_failure)
        self._closers: list[tuple[str, Callable[[], Awaitable[None]]]] = []
        self._writer: SegmentWriter | None = None
        self._server: KafkaServer | None = None
        self.kafka_address = ""
        self.http_address = ""
        self.storage_name = ""

    async def start(self) -> None:
        """Serve clients when this returns. On an error everything started so far is stopped again.

        :raises runtime.settings.SettingsError: an address or URL in the settings is wrong; the message names it.
        :raises storage.store.StorageError: the object store cannot be used.
        :raises metadata.store.port.StoreUnavailable: the metadata store cannot be used.
        """
        try:
            await self._start()
        except BaseException:
            await self._close()
            raise

    async def _start(self) -> None:
        settings, clock, entropy = self._settings, self._clock, self._entropy
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        kafka_host, kafka_port = parse_address("listen.kafka", settings.listen.kafka)
        http_host, http_port = parse_address("listen.http", settings.listen.http)

        store = open_store(
            settings.storage_url(),
            s3=settings.s3,
            clock=clock,
            entropy=entropy,
            metrics=StorageMetrics(self.registry),
        )
        self._closers.append(("store", store.close))
        await self._check(store)
        self.storage_name = store.name

        service = MetadataService(
            open_metadata_store(settings.metadata_url()),
            clock,
            entropy,
            self._supervisor,
            MetadataMetrics(self.registry),
            settings.groups,
            settings.topics,
            settings.agents,
        )
        self._closers.append(("metadata", service.stop))
        await service.start()

        budget = Budget(settings.memory.budget_bytes)
        agent_metrics = AgentMetrics(self.registry, budget)
        fetcher = Fetcher(store, service, settings, budget, clock, self._supervisor, FetchMetrics(self.registry))
        writer = SegmentWriter(
            store,
            service,
            settings.ingest,
            budget,
            clock,
            entropy,
            self._supervisor,
            IngestMetrics(self.registry),
            fetcher,
            on_fenced=self._fenced,
        )
        self._writer = writer
        topics = TopicDirectory()
        identity = AgentIdentity("", 0, 0, kafka_host, kafka_port, settings.zone, settings.group)
        agent = Agent(settings, clock, entropy, identity, service, topics, writer, fetcher, budget, agent_metrics)
        server = KafkaServer(agent, self._supervisor)
        self._server = server
        self._closers.append(("kafka", server.close))
        bound_port = await server.bind(kafka_host, kafka_port)

        advertised_host, advertised_port = kafka_host, bound_port
        if settings.listen.advertise is not None:
            advertised_host, advertised_port = parse_address("listen.advertise", settings.listen.advertise)
        registered = await service.register_agent(
            AgentRegistration(
                agent_uid=f"{settings.zone}/{settings.group}/{advertised_host}:{advertised_port}",
                zone=settings.zone,
                group=settings.group,
                host=advertised_host,
                port=advertised_port,
                version=version("tidelog"),
            )
        )
        agent.identity = replace(
            identity,
            cluster_id=registered.cluster_id,
            node_id=registered.node_id,
            agent_epoch=registered.agent_epoch,
            host=advertised_host,
            port=advertised_port,
        )
        subscription = await service.subscribe(_Events(topics, fetcher))
        topics.reset(subscription.topics)
        writer.start(registered.agent_epoch)

        http = HttpServer(self._health, self.registry)
        group_metrics = GroupMetrics(self.registry, clock)
        http.before_scrape(lambda: group_metrics.refresh(service))
        bound_http_port = await http.start(http_host, http_port)
        self._closers.append(("http", http.stop))
        self._health.add_readiness("ingest", writer.problem)
        self._health.add_readiness("metadata", service.problem)

        await server.start()
        self.kafka_address = f"{advertised_host}:{advertised_port}"
        self.http_address = f"{http_host}:{bound_http_port}"
        self._supervisor.start("agent-heartbeat", self._heartbeat(service, registered))
        self._health.started()
        _log.info("started", kafka=self.kafka_address, http=self.http_address, storage=store.name, zone=settings.zone)

    async def _heartbeat(self, service: MetadataService, registered: AgentRegistered) -> None:
        """Say that this agent lives, ten times in its session timeout."""
        heartbeat = AgentHeartbeat(registered.agent_epoch, AgentCondition.READY)
        while True:
            try:
                await service.heartbeat_agent(heartbeat)
            except Fenced:
                self._fenced()
                return
            except MetadataUnavailable as error:
                _log.warning("heartbeat_missed", error=str(error))
            await self._clock.sleep(registered.session_timeout_ms / 10_000)

    async def _check(self, store: ObjectStore) -> None:
        """Ask the store until it answers: one slow or failed answer is no reason not to start.

        :raises storage.store.StorageUnavailable: it did not work for :data:`STORE_CHECK_SECONDS`.
        :raises storage.store.StorageRefused: at once.
        """
        deadline = self._clock.monotonic() + STORE_CHECK_SECONDS
        while True:
            try:
                return await store.check()
            except StorageUnavailable as error:
                if self._clock.monotonic() >= deadline:
                    raise
                _log.warning("store_check_retried", error=str(error))
            await self._clock.sleep(self._entropy.uniform(0.2, 0.5))

    def _fenced(self) -> None:
        """Another process registered as this agent: nothing can be committed any more, so make room for it."""
        self._on_failure("agent", Fenced("another process has registered as this agent"))

    async def drain(self) -> None:
        """Unready, stop accepting, then seal, upload, commit and answer what was taken in.

        What is not done within ``drain_ms`` is given up: its producers were never acknowledged and will retry.
        """
        assert self._writer is not None and self._server is not None, "drain after start"
        self._health.draining("shutting down")
        await self._server.stop_accepting()
        began = self._clock.monotonic()
        try:
            async with asyncio.timeout(self._settings.drain_ms / 1000):
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._writer.drain(), name="drain-writer")
                    group.create_task(self._server.drain(), name="drain-connections")
        except TimeoutError:
            _log.warning("drain_incomplete", after_ms=self._settings.drain_ms)
        else:
            _log.info("drained", seconds=round(self._clock.monotonic() - began, 3))

    async def stop(self) -> None:
        """Close everything, newest first. Idempotent."""
        if self._writer is not None:
            await self._writer.stop()
        await self._close()
        _log.info("stopped")

    async def _close(self) -> None:
        while self._closers:
            name, close = self._closers.pop()
            try:
                await close()
            except Exception as error:
                _log.error("close_failed", part=name, error=repr(error))
        await self._supervisor.stop()
