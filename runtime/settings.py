"""Every setting of every process, with its unit, its default and the reason for it.

A setting comes from, in order of precedence: a command line flag, the environment
(``TIDELOG_INGEST__LINGER_MS=100``; two underscores between section and name), a TOML file named by ``--config`` or
``TIDELOG_CONFIG`` (``[ingest]`` / ``linger_ms = 100``), the default here. An unknown or wrong setting stops
the start and is named. ``docs/configuration.md`` is generated from this file.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

KIB = 1024
MIB = 1024 * KIB


class SettingsError(Exception):
    """A setting is wrong. The message names each one, its value, and what is allowed."""


def parse_address(name: str, text: str) -> tuple[str, int]:
    """The host and port in ``host:port`` (``[::1]:9092`` for IPv6), the value of the setting ``name``.

    :raises SettingsError: it is not an address; the message names the setting.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise SettingsError(f"{name} = {text!r}: not host:port, for example 127.0.0.1:9092")
    return host, int(port)


def _address(text: str) -> str:
    try:
        parse_address("address", text)
    except SettingsError:
        raise ValueError("not host:port, for example 127.0.0.1:9092") from None
    return text


def _storage_url(url: str) -> str:
    if urlsplit(url).scheme not in ("file", "memory", "s3"):
        raise ValueError("not file:///dir, memory:// or s3://bucket/prefix?endpoint=...&region=...")
    return url


_PASSWORD = re.compile(r"(://[^:@/]*:).*@")
_PASSWORD_IN_QUERY = re.compile(r"(password=)[^&\s]*")


def _metadata_url(url: str) -> str:
    is_file = url.startswith("sqlite:///") and len(url) > len("sqlite:///") and not url.endswith("/")
    is_server = urlsplit(url).scheme in ("postgresql", "http", "https") and bool(urlsplit(url).netloc)
    if not is_file and not is_server and url != "memory://":
        raise ValueError(
            "not sqlite:///file (sqlite:////dir/file when absolute), postgresql://user@host:port/database, memory://,"
            " or, for an agent, http://host:port of the metadata processes, separated by commas"
        )
    return url


def without_password(text: str) -> str:
    """``text`` fit to be shown: the password of a URL in it is replaced."""
    return _PASSWORD_IN_QUERY.sub(r"\1***", _PASSWORD.sub(r"\1***@", text))


def setting_text(value: object) -> str:
    """``value`` as an environment variable has it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return ",".join(f"{name}={of}" for name, of in value.items())
    return str(value)


def _parts(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _pairs(value: object) -> object:
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",") if part.strip()]
    if any(not name.strip() or not of.strip() for name, _, of in pairs):
        raise ValueError("not name=value,name=value")
    return {name.strip(): of.strip() for name, _, of in pairs}


def _cidrs(cidrs: dict[str, str]) -> dict[str, str]:
    for cidr in cidrs:
        try:
            ipaddress.ip_network(cidr)
        except ValueError as error:
            raise ValueError(f"{cidr!r} is not a network: {error}") from None
    return cidrs


Address = Annotated[str, AfterValidator(_address)]
Roles = Annotated[tuple[Literal["proxy", "jobs"], ...], NoDecode, BeforeValidator(_parts)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_parts)]
Cidrs = Annotated[dict[str, str], NoDecode, BeforeValidator(_pairs), AfterValidator(_cidrs)]


class Section(BaseModel):
    """A table of the TOML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ListenSettings(Section):
    """Where this process listens."""

    kafka: Address = Field("127.0.0.1:9092", description="host:port of the Kafka listener.")
    advertise: Address | None = Field(
        None, description="host:port that clients are told to connect to; the Kafka listener's own address when unset."
    )
    http: Address = Field(
        "127.0.0.1:8080",
        description="host:port of health and metrics, and of reads between agents. Keep it private.",
    )
    metadata: Address = Field(
        "127.0.0.1:8090", description="host:port of a metadata process: calls, watches, health and metrics."
    )


class ConnectionSettings(Section):
    """What one client may cost. Over a limit the connection is closed or not read from; nobody else is disturbed."""

    connections_max: int = Field(
        16_000, ge=1, description="Open client connections; one more is closed at once and counted."
    )
    request_bytes_max: int = Field(
        100 * MIB,
        ge=KIB,
        description="Largest request frame (Kafka's socket.request.max.bytes); "
        "never more than half of memory.budget_bytes.",
    )
    requests_in_flight_max: int = Field(
        8_192, ge=1, description="Requests of one connection taken in but not yet answered; then it is not read from."
    )
    idle_ms: int = Field(
        600_000,
        ge=1_000,
        description="A connection that sends nothing for so long is closed (connections.max.idle.ms).",
    )
    frame_ms: int = Field(
        30_000, ge=100, description="A request frame that has begun must be complete within this time."
    )
    write_stall_ms: int = Field(
        60_000,
        ge=100,
        description="A client that takes its answers at less than 4 KiB/s for so long is disconnected.",
    )


class MemorySettings(Section):
    """One budget for all bytes held for clients; over it the process stops reading from them."""

    budget_bytes: int = Field(
        512 * MIB,
        ge=64 * MIB,
        description="Requests, open and uploading segments, caches and answers on their way out, together.",
    )
    cache_share: float = Field(
        0.5, gt=0, lt=0.9, description="Share of the budget for caches (newest segments, blocks, patched extents)."
    )
    cold_share: float = Field(
        0.25,
        gt=0,
        lt=1,
        description="Share of the cache that re-reads of old data may use, so they cannot push the tail out.",
    )


class IngestSettings(Section):
    """From record batches to committed segments."""

    linger_ms: int = Field(
        250, ge=0, le=60_000, description="An open segment is sealed so long after its first batch at the latest."
    )
    segment_bytes_max: int = Field(
        8 * MIB, ge=64 * KIB, le=512 * MIB, description="An open segment is sealed at this size."
    )
    uploads_max: int = Field(8, ge=1, le=256, description="Segments uploading at the same time.")
    hedge_after_ms: int = Field(
        120, ge=0, description="A PUT slower than this gets a second one to another key; 0 turns hedging off."
    )
    hedge_share_max: float = Field(
        0.2, ge=0, le=1, description="At most this share of PUTs is hedged (a slow store must not get double the load)."
    )
    upload_deadline_ms: int = Field(
        60_000,
        ge=1_000,
        description="A segment not durable and committed by then fails its producers with a retriable error.",
    )


class FetchSettings(Section):
    """Answering consumers."""

    fetch_bytes_max: int = Field(
        55 * MIB, ge=MIB, description="Largest Fetch answer, whatever the client allows (fetch.max.bytes)."
    )
    block_bytes: int = Field(4 * MIB, ge=64 * KIB, description="Old data is read in aligned blocks of this size.")
    tail_block_bytes: int = Field(
        16 * MIB,
        ge=64 * KIB,
        description="The tail is read in aligned blocks of this size: one GET for a whole segment, once in each zone.",
    )
    reads_max: int = Field(16, ge=1, description="Reads of the object store at the same time.")
    cold_reads_max: int = Field(8, ge=1, description="Of these, reads of data that is not in the tail.")
    read_deadline_ms: int = Field(
        30_000, ge=100, description="A read of the object store that takes longer fails the fetch, retriably."
    )


class TopicSettings(Section):
    """What a new topic gets, and cluster-wide topic rules."""

    auto_create: bool = Field(True, description="Kafka's auto.create.topics.enable.")
    partitions: int = Field(
        4, ge=1, le=10_000, description="Partitions of a topic made without a number (num.partitions)."
    )
    partitions_max: int = Field(100_000, ge=1, description="Partitions in the cluster; creation beyond it is refused.")


class GroupSettings(Section):
    """Consumer groups, as Kafka's broker settings of the same names."""

    initial_rebalance_delay_ms: int = Field(3_000, ge=0, description="group.initial.rebalance.delay.ms.")
    session_timeout_ms_min: int = Field(6_000, ge=1, description="group.min.session.timeout.ms.")
    session_timeout_ms_max: int = Field(1_800_000, ge=1, description="group.max.session.timeout.ms.")
    members_max: int = Field(10_000, ge=1, description="Members of one group (group.max.size).")
    offsets_retention_ms: int = Field(
        7 * 86_400_000, ge=1_000, description="Offsets of an empty group are kept so long."
    )
    offset_metadata_bytes_max: int = Field(4_096, ge=0, description="offset.metadata.max.bytes.")

    @model_validator(mode="after")
    def _session_timeouts_are_a_range(self) -> Self:
        if self.session_timeout_ms_min > self.session_timeout_ms_max:
            raise ValueError("session_timeout_ms_min is above session_timeout_ms_max")
        return self


class S3Settings(Section):
    """Talking to S3; credentials come from the usual AWS places (environment, profile, instance role)."""

    request_timeout_ms: int = Field(10_000, ge=100, description="One attempt of one request, connect included.")
    attempts_max: int = Field(
        5, ge=1, le=20, description="Attempts per operation, with exponential backoff and full jitter."
    )
    deadline_ms: int = Field(
        30_000, ge=100, description="One operation of any storage: all its attempts and the waits between them."
    )
    connections_max: int = Field(64, ge=1, description="Pooled connections.")


class AgentsSettings(Section):
    """How the metadata service watches over agents."""

    session_timeout_ms: int = Field(
        10_000,
        ge=1_000,
        description="An agent silent for so long is fenced: it cannot commit until it registers again.",
    )
    suspect_ms: int = Field(
        3_000, ge=500, description="Clients are not sent to an agent silent for so long; below session_timeout_ms."
    )
    forget_ms: int = Field(
        86_400_000, ge=60_000, description="A fenced agent that does not return loses its node id after this."
    )

    @model_validator(mode="after")
    def _suspected_before_fenced(self) -> Self:
        if self.suspect_ms >= self.session_timeout_ms:
            raise ValueError("suspect_ms is not below session_timeout_ms")
        return self


class LifecycleSettings(Section):
    """What is deleted when. The metadata service decides, agents with the role `jobs` do it."""

    deletion_grace_ms: int = Field(
        600_000,
        ge=0,
        description="An object that nothing references any more is deleted after this: longer than a fetch takes, and "
        "than what agents know of extents may be out of date.",
    )
    undelete_ms: int = Field(
        3_600_000,
        ge=0,
        description="A deleted topic can be brought back for so long (`tidelog topic undelete`), and takes up its room "
        "meanwhile; 0: never.",
    )
    count_interval_ms: int = Field(
        30_000,
        ge=100,
        description="Pause between two counts of what the bucket holds (tidelog_metadata_segments_bytes); longer where "
        "counting takes more than a fiftieth of it.",
    )
    retention_interval_ms: int = Field(
        60_000,
        ge=10,
        description="Pause between two looks for what retention.ms and retention.bytes let go "
        "(log.retention.check.interval.ms).",
    )
    orphan_age_ms: int = Field(
        600_000, ge=0, description="An object that no commit can name any more is deleted when it is so old."
    )
    sweep_interval_ms: int = Field(
        86_400_000,
        ge=1_000,
        description="The whole bucket is listed for orphans once in this time; what an agent left that was fenced is "
        "looked for at once, by itself.",
    )
    job_lease_ms: int = Field(
        60_000, ge=1_000, description="An agent that neither finishes nor renews a job for so long loses it to another."
    )


class JobsSettings(Section):
    """Background jobs of an agent with the role `jobs`."""

    at_once: int = Field(2, ge=1, le=64, description="Jobs an agent does at the same time.")
    poll_ms: int = Field(1_000, ge=10, description="Pause between two questions for work when there was none.")


class CompactionSettings(Section):
    """Many small segments become few large ones. The metadata service plans, agents with the role `jobs` do it."""

    enabled: bool = Field(True, description="Whether the metadata service plans compaction.")
    job_bytes: int = Field(
        64 * MIB, ge=64 * KIB, description="Newly ingested segments of this size together are compacted in one job."
    )
    fan_in: int = Field(
        8, ge=2, le=64, description="Results of so many jobs are compacted together again, until extents are large."
    )
    min_age_ms: int = Field(60_000, ge=0, description="Newer segments are left alone: they are still read from memory.")
    wait_ms: int = Field(
        600_000, ge=0, description="Segments older than this are compacted even when they are less than `job_bytes`."
    )
    segment_bytes_max: int = Field(
        64 * MIB,
        ge=MIB,
        le=512 * MIB,
        description="Size of a compacted segment, but never more than an eighth of memory.budget_bytes. An agent "
        "holds twice as much while it compacts.",
    )
    clean_interval_ms: int = Field(
        15_000,
        ge=100,
        description="Partitions of topics with cleanup.policy=compact are looked at so often (log.cleaner.backoff.ms).",
    )
    bytes_per_second_max: int = Field(
        64 * MIB, ge=64 * KIB, description="What an agent reads and writes for compaction, together."
    )


class LeadershipSettings(Section):
    """Several metadata processes, one of them active."""

    lease_ms: int = Field(
        4_000, ge=1_000, description="A leader that did not renew for so long is replaced (PostgreSQL only)."
    )


class JournalSettings(Section):
    """The metadata in the bucket: enough to build the database anew (docs/operations.md)."""

    enabled: bool = Field(
        True, description="Write it. For `tidelog metadata` only where storage is set, the same as the agents'."
    )
    interval_ms: int = Field(
        1_000, ge=10, le=600_000, description="What became durable is put into the bucket after so long at the latest."
    )
    entry_bytes: int = Field(
        4 * MIB, ge=4 * KIB, le=64 * MIB, description="Or at this size, before compression, whichever comes first."
    )
    buffer_bytes_max: int = Field(
        64 * MIB,
        ge=MIB,
        description="Held while the bucket is away; what exceeds it is dropped, and a snapshot follows.",
    )
    snapshot_bytes_min: int = Field(
        64 * MIB,
        ge=64 * KIB,
        description="A new snapshot is made when the entries since the last one are larger than that, and than this.",
    )


class TlsSettings(Section):
    """TLS for the Kafka listener; files are read again when they change, without a restart."""

    certificate: Path | None = Field(None, description="PEM file with the certificate chain. Unset: plaintext.")
    key: Path | None = Field(None, description="PEM file with the private key.")
    client_ca: Path | None = Field(
        None, description="PEM file with the CAs of client certificates; when set, clients must show one (mTLS)."
    )
    handshake_ms: int = Field(
        10_000, ge=100, description="A client that has not finished the handshake by then is disconnected."
    )
    handshakes_max: int = Field(
        500,
        ge=1,
        description="Handshakes under way at the same time; more wait for their turn. Clients that have not sent "
        "anything yet count as connections only.",
    )

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca needs certificate and key")
        return self


class RoutingSettings(Section):
    """Which agents a client is sent to."""

    strategy: Literal["partition", "client"] = Field(
        "partition",
        description="partition: leaders spread by partition; client: one agent for all a client does (one connection "
        "each where thousands of clients meet many agents). A client.id with strategy=client chooses for itself.",
    )
    cidrs: Cidrs = Field(
        {}, description="Client networks to zones, as 10.0.1.0/24=a,10.0.2.0/24=b, for clients that do not name theirs."
    )
    principals: Names = Field(
        (), description="Certificate names (CN or DNS names) this group admits; empty: all. Needs tls.client_ca."
    )


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe line that is written."
    )
    form: Literal["auto", "console", "json"] = Field(
        "auto", description="auto: coloured on a terminal, JSON elsewhere."
    )


class Settings(BaseSettings):
    """The whole tree. Build it with :func:`runtime.configuration.load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix="TIDELOG_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )
    data: Path = Field(Path("tidelog-data"), description="Folder for everything kept on this machine.")
    storage: Annotated[str, AfterValidator(_storage_url)] | None = Field(
        None,
        description="file:///dir, memory:// or s3://bucket/prefix?endpoint=...&region=...; under data when unset.",
    )
    metadata: Annotated[str, AfterValidator(_metadata_url)] | None = Field(
        None,
        description="sqlite:///file, postgresql://user@host:port/database (the password in PGPASSWORD or a passfile), "
        "or memory:// to forget everything at the end; a file under data when unset. For `tidelog agent`: "
        "http://host:port of the metadata processes, with commas.",
    )
    secret: SecretStr | None = Field(
        None,
        min_length=16,
        description="Shared by all processes of a cluster; calls between them must carry it. Unset: anyone may call.",
    )
    zone: str = Field("local", min_length=1, max_length=64, description="Availability zone of this agent.")
    group: str = Field("default", min_length=1, max_length=64, description="Agent group: a class of clients.")
    roles: Roles = Field(("proxy", "jobs"), description="proxy: serves clients; jobs: does background work.")
    drain_ms: int = Field(
        25_000, ge=0, description="Time to flush, commit and answer after SIGTERM, before what is left is cut off."
    )
    listen: ListenSettings = ListenSettings()
    connection: ConnectionSettings = ConnectionSettings()
    memory: MemorySettings = MemorySettings()
    ingest: IngestSettings = IngestSettings()
    fetch: FetchSettings = FetchSettings()
    topics: TopicSettings = TopicSettings()
    groups: GroupSettings = GroupSettings()
    s3: S3Settings = S3Settings()
    agents: AgentsSettings = AgentsSettings()
    lifecycle: LifecycleSettings = LifecycleSettings()
    jobs: JobsSettings = JobsSettings()
    compaction: CompactionSettings = CompactionSettings()
    leadership: LeadershipSettings = LeadershipSettings()
    journal: JournalSettings = JournalSettings()
    tls: TlsSettings = TlsSettings()
    routing: RoutingSettings = RoutingSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _principals_come_from_certificates(self) -> Self:
        if self.routing.principals and self.tls.client_ca is None:
            raise ValueError(
                "routing.principals admits clients by the names in their certificates: it needs tls.client_ca"
            )
        return self

    def storage_url(self) -> str:
        """Where segments live."""
        return self.storage if self.storage is not None else f"file://{quote(str(self.data.absolute()))}/objects"

    def metadata_url(self) -> str:
        """Where the metadata lives."""
        if self.metadata is not None:
            return self.metadata
        return f"sqlite:///{quote(str(self.data.absolute()))}/metadata.sqlite"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed in: ``runtime.configuration`` merges the sources, so that an error can name its own."""
        return (init_settings,)
