"""``tidelog metadata``: one of several metadata processes on one store. One leads and serves, the others stand by.

Everything is on one HTTP listener from the start: calls and watches of agents, health, metrics, and the cluster page.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

from agent.file_limit import raise_file_limit
from metadata.journal.metrics import JournalMetrics
from metadata.leadership import Leadership
from metadata.metrics import MetadataMetrics
from metadata.model import MetadataUnavailable
from metadata.rpc.metrics import RpcServerMetrics
from metadata.rpc.server import RpcServer
from metadata.service import MetadataService
from metadata.store.factory import MetadataUrlError, open_metadata_store
from metadata.store.memory import MemoryMetadataStore
from metadata.store.port import MetadataStore
from runtime.clock import Clock, Entropy
from runtime.settings import Settings, SettingsError, parse_address, without_password
from runtime.tasks import Supervisor
from storage.factory import open_store
from storage.metrics import StorageMetrics
from tidelog.cluster_page import ClusterPage
from tidelog.group_metrics import GroupMetrics
from tidelog.journal import open_journal
from tidelog.parts import ProcessParts
from tidelog.serve import run_process

CONNECTIONS_MAX = 16_000
"""Of all agents: 64 each, and one for each consumer that waits for its group. Beyond it idle ones make room."""


class MetadataProcess:
    """A metadata service that leads when it can, and its HTTP side. Standing by, it holds no state and answers 503."""

    def __init__(
        self, settings: Settings, clock: Clock, entropy: Entropy, on_failure: Callable[[str, BaseException], None]
    ) -> None:
        self._settings = settings
        raise_file_limit(CONNECTIONS_MAX, "raise ulimit -n: agents have up to a hundred connections each")
        self._parts = parts = ProcessParts(settings, clock, entropy, on_failure)
        parts.http.connections_max = CONNECTIONS_MAX
        secret = None if settings.secret is None else settings.secret.get_secret_value()
        self._server = RpcServer(clock, RpcServerMetrics(parts.registry), secret)
        self._metrics = MetadataMetrics(parts.registry)
        self._journal_metrics = JournalMetrics(parts.registry)
        self._group_metrics = GroupMetrics(parts.registry, clock)
        self._leadership: Leadership | None = None
        self.address = ""

    async def start(self) -> None:
        """Listen, and begin to wait for leadership. On an error everything started so far is stopped again.

        :raises runtime.settings.SettingsError: the address or the store's URL is wrong.
        :raises storage.store.StorageRefused: the folder of a ``file://`` storage cannot be used.
        :raises OSError: the address cannot be bound.
        """
        settings, parts = self._settings, self._parts
        host, port = parse_address("listen.metadata", settings.listen.metadata)
        try:
            store = self._open_store()
        except MetadataUrlError as error:
            raise SettingsError(f"metadata = {without_password(settings.metadata_url())!r}: {error}") from error
        if settings.storage is not None:
            bucket = open_store(
                settings.storage,
                s3=settings.s3,
                clock=parts.clock,
                entropy=parts.entropy,
                metrics=StorageMetrics(parts.registry),
            )
            parts.object_store = bucket
            parts.health.add_fact("journal", self._journal_state)
            parts.closes("store", bucket.close)
        in_memory = store if isinstance(store, MemoryMetadataStore) else None
        self._leadership = leadership = Leadership(
            lambda: in_memory or self._open_store(),
            self._build_service,
            self._server,
            parts.clock,
            parts.entropy,
            parts.supervisor,
            settings.leadership.lease_ms,
            self._forget,
        )
        self._server.add_routes(parts.http.app)
        ClusterPage(self._server, parts.clock).add_routes(parts.http.app)
        parts.http.before_scrape(self._refresh_groups)
        parts.health.add_fact("role", lambda: "standby" if self._server.term is None else "leader")
        parts.health.add_readiness("metadata", self._problem)
        try:
            self.address = f"{host}:{await parts.http.start(host, port)}"
        except BaseException:
            await parts.close()
            raise
        parts.closes("http", parts.http.stop)
        parts.closes("leadership", leadership.stop)
        leadership.start()
        parts.health.started()

    @property
    def bucket(self) -> str | None:
        """Where the journal goes."""
        return None if self._parts.object_store is None else self._parts.object_store.name

    async def drain(self) -> None:
        """Make room for a standby: finish what was decided, and close the store."""
        self._parts.health.draining("shutting down")
        if self._leadership is not None:
            await self._leadership.stop()

    async def stop(self) -> None:
        """Close everything. Idempotent."""
        await self._parts.close()

    def _open_store(self) -> MetadataStore:
        settings = self._settings
        return open_metadata_store(settings.metadata_url(), settings.leadership.lease_ms, self._parts.clock)

    def _build_service(self, store: MetadataStore, supervisor: Supervisor) -> MetadataService:
        settings, parts = self._settings, self._parts
        return MetadataService(
            store,
            parts.clock,
            parts.entropy,
            supervisor,
            self._metrics,
            settings.groups,
            settings.topics,
            settings.agents,
            settings.lifecycle,
            settings.compaction,
            open_journal(parts.object_store, store, settings.journal, parts.clock, self._journal_metrics),
        )

    def _journal_state(self) -> str:
        term = self._server.term
        return "standby" if term is None else term.service.journal_state()

    def _forget(self) -> None:
        self._metrics.forget_state()
        self._group_metrics.forget()

    def _problem(self) -> str | None:
        assert self._leadership is not None, "asked after the start"
        term = self._server.term
        return self._leadership.problem() if term is None else term.service.problem()

    async def _refresh_groups(self) -> None:
        term = self._server.term
        if term is not None:
            try:
                await self._group_metrics.refresh(term.service)
            except MetadataUnavailable:
                return  # the last figures stay


def run(settings: Settings, clock: Clock, process_started: float) -> int:
    """Serve until a signal ends it; the exit code. ``process_started`` is on ``clock.monotonic``."""
    return run_process(
        settings,
        lambda entropy, failed: MetadataProcess(settings, clock, entropy, failed),
        lambda process: _print_banner(process, settings, clock.monotonic() - process_started),
    )


def _print_banner(process: MetadataProcess, settings: Settings, seconds: float) -> None:
    print(
        f"Tidelog {version('tidelog')} metadata is ready after {seconds:.2f} s\n"
        f"  HTTP      http://{process.address}  /rpc /watch /cluster /healthz /readyz /metrics\n"
        f"  store     {without_password(settings.metadata_url())}\n"
        f"  journal   {'off: no --storage' if process.bucket is None else process.bucket}\n"
        f"  secret    {'not set: anyone who reaches the address may call' if settings.secret is None else 'required'}\n"
        f"\nGive agents all metadata processes: --metadata http://{process.address},http://...\n"
        f"Ctrl-C stops; a standby takes over at once.",
        flush=True,
    )
