"""An agent's process: the place where its parts are built and joined, around a metadata service near or far.

Start: object store, metadata, Kafka address, registration, subscription, ingest, HTTP, Kafka listener, ready. Shutdown
goes the other way round, in order: unready, stop accepting, seal, upload, commit, answer, close.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version

import structlog

from agent.context import Agent, AgentIdentity
from agent.deleted_topics import DeletedTopics
from agent.drain import drain
from agent.fetch.fetcher import Fetcher
from agent.fetch.metrics import FetchMetrics
from agent.jobs.cleaning import CleanPartitions
from agent.jobs.compaction import CompactSegments
from agent.jobs.deletion import DeleteObjects, SweepOrphans
from agent.jobs.metrics import JobMetrics
from agent.jobs.runner import JobHandler, JobRunner
from agent.jobs.swapping import Swapper
from agent.membership import Membership
from agent.metrics import AgentMetrics
from agent.roster import Roster
from agent.server import KafkaServer
from agent.topics import TopicDirectory
from ingest.compaction.cleaner import Cleaner
from ingest.compaction.metrics import CompactionMetrics
from ingest.compaction.rewrite import Rewriter
from ingest.compaction.throttle import Throttle
from ingest.compaction.write import SegmentNames
from ingest.metrics import IngestMetrics
from ingest.writer import SegmentWriter
from metadata.agent_model import AgentInfo, AgentRegistration
from metadata.client import MetadataClient
from metadata.model import Extent, Fenced, LogStart, MetadataUnavailable, TopicsChanged
from runtime.budget import Budget
from runtime.clock import Clock, Entropy
from runtime.settings import Settings, parse_address
from storage.factory import open_store
from storage.metrics import StorageMetrics
from storage.store import ObjectStore, StorageUnavailable
from tidelog.parts import ProcessParts

STORE_CHECK_SECONDS = 5.0
"""How long a start waits for an object store that does not answer well."""
METADATA_WAIT_SECONDS = 60.0
"""How long a start waits for an active metadata process."""
METADATA_ATTEMPT_SECONDS = 5.0
"""So often it says that it waits."""

COMPACTION_BUDGET_SHARE = 8
"""A compacted segment takes at most this part of an agent's memory; while it is made, twice that."""

OpenMetadata = Callable[[ProcessParts], Awaitable[MetadataClient]]
"""Starts (or reaches) the metadata service and adds what there is to close, watch and measure of it to the parts."""

_log = structlog.get_logger("tidelog.app")


class _Events:
    """Passes what became durable on to the agent's parts, in commit order."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def topics_changed(self, change: TopicsChanged) -> None:
        self._agent.topics.apply(change)
        if change.deleted:
            self._agent.fetcher.topic_deleted(change.deleted)

    def extents_committed(self, extents: Sequence[Extent]) -> None:
        self._agent.fetcher.extents_committed(extents)

    def log_starts_moved(self, moved: Sequence[LogStart]) -> None:
        self._agent.fetcher.log_starts_moved(moved)

    def agents_changed(self, agents: Sequence[AgentInfo]) -> None:
        self._agent.roster.heard(agents)
        self._agent.fetcher.agents_changed(agents, self._agent.identity.node_id)

    def resynchronize(self) -> None:
        self._agent.fetcher.resynchronize()


class AgentProcess:
    """One agent and its HTTP side on one event loop, and the metadata service that ``open_metadata`` gives.

    ``on_failure(task, error)`` is called when a background task dies: the owner should stop the process.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        entropy: Entropy,
        on_failure: Callable[[str, BaseException], None],
        open_metadata: OpenMetadata,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._parts = ProcessParts(settings, clock, entropy, on_failure)
        self._open_metadata = open_metadata
        self._agent: Agent | None = None
        self._server: KafkaServer | None = None
        self._membership: Membership | None = None
        self._jobs: JobRunner | None = None
        self.kafka_address = ""
        self.http_address = ""
        self.storage_name = ""

    async def start(self) -> None:
        """Serve clients when this returns. On an error everything started so far is stopped again.

        :raises runtime.settings.SettingsError: an address or URL in the settings is wrong; the message names it.
        :raises storage.store.StorageError: the object store cannot be used.
        :raises metadata.store.port.StoreUnavailable: the metadata store cannot be used.
        :raises metadata.model.MetadataUnavailable: no metadata process was active for too long.
        """
        try:
            await self._start()
        except BaseException:
            await self._parts.close()
            raise

    async def _start(self) -> None:
        settings, clock, parts = self._settings, self._clock, self._parts
        kafka_host, kafka_port = parse_address("listen.kafka", settings.listen.kafka)
        http_host, http_port = parse_address("listen.http", settings.listen.http)

        store = open_store(
            settings.storage_url(),
            s3=settings.s3,
            clock=clock,
            entropy=parts.entropy,
            metrics=StorageMetrics(parts.registry),
        )
        parts.closes("store", store.close)
        parts.object_store = store
        await self._check(store)
        self.storage_name = store.name
        metadata = await self._open_metadata(parts)

        budget = Budget(settings.memory.budget_bytes)
        agent_metrics = AgentMetrics(parts.registry, budget)
        fetcher = Fetcher(store, metadata, settings, budget, clock, parts.supervisor, FetchMetrics(parts.registry))
        parts.closes("peers", fetcher.close)
        roster = Roster(settings.zone, settings.group, settings.routing, agent_metrics)
        writer = SegmentWriter(
            store,
            metadata,
            settings.ingest,
            budget,
            clock,
            parts.entropy,
            parts.supervisor,
            IngestMetrics(parts.registry),
            fetcher,
            on_fenced=self._fenced,
        )
        topics = TopicDirectory()
        identity = AgentIdentity("", 0, 0, kafka_host, kafka_port, settings.zone, settings.group)
        agent = Agent(
            settings, clock, parts.entropy, identity, metadata, topics, writer, fetcher, budget, agent_metrics, roster
        )
        self._agent = agent
        server = KafkaServer(agent, parts.supervisor)
        self._server = server
        parts.closes("kafka", server.close)
        bound_port = await server.bind(kafka_host, kafka_port)

        advertised_host, advertised_port = kafka_host, bound_port
        if settings.listen.advertise is not None:
            advertised_host, advertised_port = parse_address("listen.advertise", settings.listen.advertise)
        fetcher.peer_server.add_to(parts.http.app)
        DeletedTopics(metadata).add_to(parts.http.app)
        bound_http_port = await parts.http.start(http_host, http_port)
        parts.closes("http", parts.http.stop)
        registration = AgentRegistration(
            agent_uid=f"{settings.zone}/{settings.group}/{advertised_host}:{advertised_port}",
            zone=settings.zone,
            group=settings.group,
            host=advertised_host,
            port=advertised_port,
            version=version("tidelog"),
            http_address=_reachable(http_host, bound_http_port, advertised_host),
            roles=settings.roles,
        )
        membership = Membership(agent, registration, store, parts.supervisor, self._replaced)
        self._membership = membership
        await self._register(membership)
        events = _Events(agent)
        subscription = await metadata.subscribe(events)
        topics.reset(subscription.topics)
        events.agents_changed(subscription.agents)
        fetcher.follower.start(subscription)
        writer.start(agent.identity.agent_epoch)

        parts.health.add_readiness("ingest", writer.problem)
        parts.health.add_readiness("agent", membership.problem)
        await server.start()
        membership.start()
        if "jobs" in settings.roles:
            self._start_jobs(agent, store)
        self.kafka_address = f"{advertised_host}:{advertised_port}"
        self.http_address = f"{http_host}:{bound_http_port}"
        parts.health.started()
        _log.info("started", kafka=self.kafka_address, http=self.http_address, storage=store.name, zone=settings.zone)

    def _start_jobs(self, agent: Agent, store: ObjectStore) -> None:
        parts, metadata = self._parts, agent.metadata
        metrics = JobMetrics(parts.registry)
        self._jobs = JobRunner(
            metadata,
            [
                DeleteObjects(store, metrics),
                SweepOrphans(store, metadata, self._clock, metrics),
                *self._compaction(agent, store),
            ],
            self._settings.jobs,
            lambda: agent.identity.agent_epoch,
            self._clock,
            parts.entropy,
            parts.supervisor,
            metrics,
        )
        self._jobs.start()
        parts.closes("jobs", self._jobs.stop)

    def _compaction(self, agent: Agent, store: ObjectStore) -> list[JobHandler]:
        """The handlers that rewrite segments. They share names, pace and memory."""
        parts, settings, clock, metadata = self._parts, self._settings.compaction, self._clock, agent.metadata
        metrics = CompactionMetrics(parts.registry)
        names, throttle = SegmentNames(parts.entropy), Throttle(settings.bytes_per_second_max, clock)
        segment_bytes_max = min(settings.segment_bytes_max, agent.budget.limit_bytes // COMPACTION_BUDGET_SHARE)
        shared = (store, names, throttle, agent.budget, clock, metrics, segment_bytes_max)
        swapper, turn = Swapper(store, metadata, clock, metrics), asyncio.Lock()

        def agent_epoch() -> int:
            return agent.identity.agent_epoch

        return [
            CompactSegments(metadata, Rewriter(*shared), swapper, agent_epoch, clock, turn),
            CleanPartitions(metadata, Cleaner(*shared), swapper, agent_epoch, clock, turn),
        ]

    async def _register(self, membership: Membership) -> None:
        """Ask for an epoch until there is one: metadata processes may be started after agents.

        :raises metadata.model.MetadataUnavailable: there was none for :data:`METADATA_WAIT_SECONDS`.
        """
        deadline = self._clock.monotonic() + METADATA_WAIT_SECONDS
        while True:
            try:
                async with asyncio.timeout(METADATA_ATTEMPT_SECONDS):
                    return await membership.register()
            except (MetadataUnavailable, TimeoutError) as error:
                reason = str(error) or "no answer"
                if self._clock.monotonic() >= deadline:
                    raise MetadataUnavailable(f"{reason} (tried for {METADATA_WAIT_SECONDS:.0f} s)") from error
                _log.warning("waiting_for_metadata", metadata=self._settings.metadata_url(), error=reason)
            await self._clock.sleep(self._parts.entropy.uniform(0.2, 0.5))

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
            await self._clock.sleep(self._parts.entropy.uniform(0.2, 0.5))

    def _fenced(self) -> None:
        assert self._membership is not None, "only a registered agent can be fenced"
        self._membership.fenced()

    def _replaced(self, error: Fenced) -> None:
        """Another process registered as this agent: nothing can be committed any more, so make room for it."""
        self._parts.on_failure("agent", error)

    async def drain(self) -> None:
        """Move clients to other agents, then seal, upload, commit and answer what was taken in; say what became of it.

        What is not done within ``drain_ms`` is given up: its producers were never acknowledged and will retry.
        """
        assert self._agent is not None and self._server is not None and self._membership is not None, "after start"
        self._parts.health.draining("shutting down")
        if self._jobs is not None:
            await self._jobs.stop()
        seconds_max = self._settings.drain_ms / 1000
        report = await drain(self._agent, self._server, self._membership, self._parts.supervisor, seconds_max)
        with contextlib.suppress(OSError):  # nobody may be listening any more
            print(report.sentence(), flush=True)

    async def stop(self) -> None:
        """Close everything, newest first. Idempotent."""
        if self._agent is not None:
            await self._agent.writer.stop()
        await self._parts.close()
        _log.info("stopped")


def _reachable(host: str, port: int, advertised_host: str) -> str:
    """host:port where other agents reach the HTTP listener: a host that means every address of this machine is no
    address of any, so it is the one that clients are told."""
    try:
        is_any = ipaddress.ip_address(host).is_unspecified
    except ValueError:  # a name
        is_any = False
    host = advertised_host if is_any else host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
