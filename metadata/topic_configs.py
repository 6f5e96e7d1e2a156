"""Topic configs: Kafka's names, types, defaults and validation, and what the data path needs of them.

The table lists every topic config of Kafka 4.x (``org.apache.kafka.common.config.TopicConfig``), because tools ask
for them and create topics with them. Each row says honestly what a value other than the default does here. A name
that is not in the table is refused, as by Kafka.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

import msgspec

from metadata.config_definitions import LONG_MAX, ConfigDefinition, ConfigType, Support, split_list

CompressionType = Literal["producer", "uncompressed", "gzip", "snappy", "lz4", "zstd"]

_OWN_SEGMENTS = "segments hold many partitions and are sealed by the ingest settings"
_ALWAYS_DURABLE = "records are acknowledged only once they are durable in object storage"
_NO_REPLICAS = "no partition is replicated between agents; the object store keeps the copies"
_NO_TIERS = "all records are in object storage from the start; there is no local tier"
_NO_LEVELS = "recompression uses each codec's default level"

_DEFINITIONS = (
    ConfigDefinition(
        name="cleanup.policy",
        kind=ConfigType.LIST,
        default="delete",
        choices=("compact", "delete"),
        documentation="What happens to old records: delete by age and size, compact by key, or both.",
        support=Support.HONOURED,
        reason="agents with the role jobs delete, and compact by key; compact refuses records without a key",
        broker_name="log.cleanup.policy",
    ),
    ConfigDefinition(
        name="compression.gzip.level",
        kind=ConfigType.INT,
        default="-1",
        minimum=-1,
        maximum=9,
        documentation="Level used when compression.type is gzip.",
        support=Support.REFUSED,
        reason=_NO_LEVELS,
        broker_name="compression.gzip.level",
    ),
    ConfigDefinition(
        name="compression.lz4.level",
        kind=ConfigType.INT,
        default="9",
        minimum=1,
        maximum=17,
        documentation="Level used when compression.type is lz4.",
        support=Support.REFUSED,
        reason=_NO_LEVELS,
        broker_name="compression.lz4.level",
    ),
    ConfigDefinition(
        name="compression.type",
        kind=ConfigType.STRING,
        default="producer",
        choices=("uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"),
        documentation="The codec batches are stored with; producer keeps what the producer chose.",
        support=Support.HONOURED,
        reason="batches are recompressed unless it is producer",
        broker_name="compression.type",
    ),
    ConfigDefinition(
        name="compression.zstd.level",
        kind=ConfigType.INT,
        default="3",
        minimum=-131072,
        maximum=22,
        documentation="Level used when compression.type is zstd.",
        support=Support.REFUSED,
        reason=_NO_LEVELS,
        broker_name="compression.zstd.level",
    ),
    ConfigDefinition(
        name="delete.retention.ms",
        kind=ConfigType.LONG,
        default="86400000",
        minimum=0,
        documentation="How long the tombstones of a compacted topic are kept.",
        support=Support.HONOURED,
        reason="tombstones stay so long after the cleaning that first met them, and go with a later one, as in Kafka",
        broker_name="log.cleaner.delete.retention.ms",
    ),
    ConfigDefinition(
        name="file.delete.delay.ms",
        kind=ConfigType.LONG,
        default="60000",
        minimum=0,
        documentation="How long a deleted file stays on a Kafka broker's disk.",
        support=Support.NO_MEANING,
        reason="agents keep no log files",
        broker_name="log.segment.delete.delay.ms",
    ),
    ConfigDefinition(
        name="flush.messages",
        kind=ConfigType.LONG,
        default=str(LONG_MAX),
        minimum=1,
        documentation="Records after which a Kafka broker forces its log to disk.",
        support=Support.NO_MEANING,
        reason=_ALWAYS_DURABLE,
        broker_name="log.flush.interval.messages",
    ),
    ConfigDefinition(
        name="flush.ms",
        kind=ConfigType.LONG,
        default=str(LONG_MAX),
        minimum=0,
        documentation="Time after which a Kafka broker forces its log to disk.",
        support=Support.NO_MEANING,
        reason=_ALWAYS_DURABLE,
        broker_name="log.flush.interval.ms",
    ),
    ConfigDefinition(
        name="follower.replication.throttled.replicas",
        kind=ConfigType.LIST,
        default="",
        documentation="Replicas whose replication is throttled on the follower's side.",
        support=Support.NO_MEANING,
        reason=_NO_REPLICAS,
    ),
    ConfigDefinition(
        name="index.interval.bytes",
        kind=ConfigType.INT,
        default="4096",
        minimum=0,
        documentation="How often a Kafka broker adds an entry to its offset index.",
        support=Support.NO_MEANING,
        reason="extents are the index, one per partition and segment",
        broker_name="log.index.interval.bytes",
    ),
    ConfigDefinition(
        name="leader.replication.throttled.replicas",
        kind=ConfigType.LIST,
        default="",
        documentation="Replicas whose replication is throttled on the leader's side.",
        support=Support.NO_MEANING,
        reason=_NO_REPLICAS,
    ),
    ConfigDefinition(
        name="local.retention.bytes",
        kind=ConfigType.LONG,
        default="-2",
        minimum=-2,
        documentation="Bytes kept on a Kafka broker's disk beside tiered storage.",
        support=Support.NO_MEANING,
        reason=_NO_TIERS,
        broker_name="log.local.retention.bytes",
    ),
    ConfigDefinition(
        name="local.retention.ms",
        kind=ConfigType.LONG,
        default="-2",
        minimum=-2,
        documentation="Time records stay on a Kafka broker's disk beside tiered storage.",
        support=Support.NO_MEANING,
        reason=_NO_TIERS,
        broker_name="log.local.retention.ms",
    ),
    ConfigDefinition(
        name="max.compaction.lag.ms",
        kind=ConfigType.LONG,
        default=str(LONG_MAX),
        minimum=1,
        documentation="The longest a record of a compacted topic may wait for compaction.",
        support=Support.HONOURED,
        reason="a log with an older record that is not compacted is compacted whatever its dirty share",
        broker_name="log.cleaner.max.compaction.lag.ms",
    ),
    ConfigDefinition(
        name="max.message.bytes",
        kind=ConfigType.INT,
        default="1048588",
        minimum=0,
        documentation="The largest record batch accepted, after compression if it is compressed.",
        support=Support.HONOURED,
        reason="larger batches get MESSAGE_TOO_LARGE",
        broker_name="message.max.bytes",
    ),
    ConfigDefinition(
        name="message.timestamp.after.max.ms",
        kind=ConfigType.LONG,
        default="3600000",
        minimum=0,
        documentation="How far a CreateTime timestamp may lie ahead of the agent's clock.",
        support=Support.HONOURED,
        reason="batches beyond it get INVALID_TIMESTAMP",
        broker_name="log.message.timestamp.after.max.ms",
    ),
    ConfigDefinition(
        name="message.timestamp.before.max.ms",
        kind=ConfigType.LONG,
        default=str(LONG_MAX),
        minimum=0,
        documentation="How far a CreateTime timestamp may lie behind the agent's clock.",
        support=Support.HONOURED,
        reason="batches beyond it get INVALID_TIMESTAMP",
        broker_name="log.message.timestamp.before.max.ms",
    ),
    ConfigDefinition(
        name="message.timestamp.type",
        kind=ConfigType.STRING,
        default="CreateTime",
        choices=("CreateTime", "LogAppendTime"),
        documentation="Whether records keep the producer's timestamp or get the time they were appended.",
        support=Support.HONOURED,
        reason="LogAppendTime batches get the agent's clock",
        broker_name="log.message.timestamp.type",
    ),
    ConfigDefinition(
        name="min.cleanable.dirty.ratio",
        kind=ConfigType.DOUBLE,
        default="0.5",
        minimum=0,
        maximum=1,
        documentation="Share of a log that must be uncompacted before it is compacted.",
        support=Support.HONOURED,
        reason="of the bytes of a partition's extents, compressed",
        broker_name="log.cleaner.min.cleanable.ratio",
    ),
    ConfigDefinition(
        name="min.compaction.lag.ms",
        kind=ConfigType.LONG,
        default="0",
        minimum=0,
        documentation="The least time a record of a compacted topic stays uncompacted.",
        support=Support.HONOURED,
        reason="extents with a younger record are left alone, and all behind them",
        broker_name="log.cleaner.min.compaction.lag.ms",
    ),
    ConfigDefinition(
        name="min.insync.replicas",
        kind=ConfigType.INT,
        default="1",
        minimum=1,
        documentation="Replicas a Kafka broker waits for before it acknowledges acks=all.",
        support=Support.NO_MEANING,
        reason=_ALWAYS_DURABLE,
        broker_name="min.insync.replicas",
    ),
    ConfigDefinition(
        name="preallocate",
        kind=ConfigType.BOOLEAN,
        default="false",
        documentation="Whether a Kafka broker preallocates its log files.",
        support=Support.NO_MEANING,
        reason="agents keep no log files",
        broker_name="log.preallocate",
    ),
    ConfigDefinition(
        name="remote.log.copy.disable",
        kind=ConfigType.BOOLEAN,
        default="false",
        documentation="Whether records are no longer copied to tiered storage.",
        support=Support.REFUSED,
        reason=_NO_TIERS,
    ),
    ConfigDefinition(
        name="remote.log.delete.on.disable",
        kind=ConfigType.BOOLEAN,
        default="false",
        documentation="Whether turning tiered storage off deletes what is there.",
        support=Support.REFUSED,
        reason=_NO_TIERS,
    ),
    ConfigDefinition(
        name="remote.storage.enable",
        kind=ConfigType.BOOLEAN,
        default="false",
        documentation="Whether records are copied to tiered storage.",
        support=Support.NO_MEANING,
        reason=_NO_TIERS,
    ),
    ConfigDefinition(
        name="retention.bytes",
        kind=ConfigType.LONG,
        default="-1",
        documentation="Bytes of a partition kept before the oldest are deleted; -1 for no limit.",
        support=Support.HONOURED,
        reason="whole extents, oldest first, while as much as this is left without them",
        broker_name="log.retention.bytes",
    ),
    ConfigDefinition(
        name="retention.ms",
        kind=ConfigType.LONG,
        default="604800000",
        minimum=-1,
        documentation="How long records are kept; -1 for ever.",
        support=Support.HONOURED,
        reason="whole extents, oldest first, once the largest timestamp in them is older",
        broker_name="log.retention.ms",
    ),
    ConfigDefinition(
        name="segment.bytes",
        kind=ConfigType.INT,
        default="1073741824",
        minimum=14,
        documentation="Size of a Kafka broker's log files.",
        support=Support.NO_MEANING,
        reason=_OWN_SEGMENTS,
        broker_name="log.segment.bytes",
    ),
    ConfigDefinition(
        name="segment.index.bytes",
        kind=ConfigType.INT,
        default="10485760",
        minimum=4,
        documentation="Size of a Kafka broker's index files.",
        support=Support.NO_MEANING,
        reason=_OWN_SEGMENTS,
        broker_name="log.index.size.max.bytes",
    ),
    ConfigDefinition(
        name="segment.jitter.ms",
        kind=ConfigType.LONG,
        default="0",
        minimum=0,
        documentation="Random time taken off segment.ms.",
        support=Support.NO_MEANING,
        reason=_OWN_SEGMENTS,
        broker_name="log.roll.jitter.ms",
    ),
    ConfigDefinition(
        name="segment.ms",
        kind=ConfigType.LONG,
        default="604800000",
        minimum=1,
        documentation="Time after which a Kafka broker begins a new log file.",
        support=Support.NO_MEANING,
        reason=_OWN_SEGMENTS,
        broker_name="log.roll.ms",
    ),
    ConfigDefinition(
        name="unclean.leader.election.enable",
        kind=ConfigType.BOOLEAN,
        default="false",
        documentation="Whether a replica that is behind may become leader, losing records.",
        support=Support.NO_MEANING,
        reason=_NO_REPLICAS,
        broker_name="unclean.leader.election.enable",
    ),
)

TOPIC_CONFIGS: dict[str, ConfigDefinition] = {definition.name: definition for definition in _DEFINITIONS}
"""Every config a topic can have, by name, in alphabetical order."""


class ListEdit(msgspec.Struct, frozen=True, array_like=True, tag="list"):
    """What becomes of a LIST config: items to add, where they are missing, and items to take away."""

    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


ConfigChanges = Mapping[str, str | ListEdit | None]
"""By name: a value to set, a list to edit, or None for back to the default."""


def changed_configs(configs: Mapping[str, str], changes: ConfigChanges) -> dict[str, str]:
    """``configs``, set on a topic, after ``changes``; not validated yet.

    :raises ValueError: a config that is no list cannot be edited like one.
    """
    changed = dict(configs)
    for name, change in changes.items():
        if change is None:
            changed.pop(name, None)
        elif isinstance(change, str):
            changed[name] = change
        else:
            definition = TOPIC_CONFIGS.get(name)
            if definition is None or definition.kind is not ConfigType.LIST:
                raise ValueError(f"{name} is not a list")
            items = split_list(effective(changed, name))
            items += [item for item in change.add if item not in items]
            changed[name] = ",".join(item for item in items if item not in change.remove)
    return changed


def validate_topic_configs(configs: Mapping[str, str]) -> None:
    """Check the configs set on a topic, each alone and all together.

    :raises ValueError: the first problem, in Kafka's words; an agent answers it as INVALID_CONFIG.
    """
    for name, value in configs.items():
        definition = TOPIC_CONFIGS.get(name)
        if definition is None:
            raise ValueError(f"Unknown topic config name: {name}")
        definition.check(value)
    lag_min, lag_max = (int(effective(configs, f"{edge}.compaction.lag.ms")) for edge in ("min", "max"))
    if lag_min > lag_max:
        raise ValueError(
            f"conflict topic config setting min.compaction.lag.ms ({lag_min}) > max.compaction.lag.ms ({lag_max})"
        )


def effective(configs: Mapping[str, str], name: str) -> str:
    """The value of ``name`` for a topic on which ``configs`` are set."""
    return configs.get(name, TOPIC_CONFIGS[name].default).strip()


@dataclass(frozen=True, slots=True)
class TopicPolicy:
    """The effective configs the data path acts on, parsed once per change of the topic."""

    max_message_bytes: int
    compression_type: CompressionType
    log_append_time: bool
    timestamp_before_max_ms: int
    timestamp_after_max_ms: int
    compacted: bool


def topic_policy(configs: Mapping[str, str]) -> TopicPolicy:
    """What ``configs`` (only the ones set on the topic, already validated) mean together with the defaults."""
    return TopicPolicy(
        max_message_bytes=int(effective(configs, "max.message.bytes")),
        compression_type=cast(CompressionType, effective(configs, "compression.type")),
        log_append_time=effective(configs, "message.timestamp.type") == "LogAppendTime",
        timestamp_before_max_ms=int(effective(configs, "message.timestamp.before.max.ms")),
        timestamp_after_max_ms=int(effective(configs, "message.timestamp.after.max.ms")),
        compacted="compact" in split_list(effective(configs, "cleanup.policy")),
    )
