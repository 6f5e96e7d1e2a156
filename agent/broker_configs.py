"""This agent's settings under the names Kafka has for them: what tools see of a broker. Only what is real here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.context import AgentIdentity
from metadata.config_definitions import ConfigType
from metadata.topic_configs import TOPIC_CONFIGS
from runtime.settings import Settings


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """One read-only config. ``default`` is Tidelog's own default, in the same form as ``value``."""

    name: str
    kind: ConfigType
    value: str
    default: str
    documentation: str


def _listener(settings: Settings) -> str:
    return f"{'PLAINTEXT' if settings.tls.certificate is None else 'SSL'}://{settings.listen.kafka}"


_FROM_SETTINGS: tuple[tuple[str, ConfigType, str, Callable[[Settings], object]], ...] = (
    ("auto.create.topics.enable", ConfigType.BOOLEAN, "topics.auto_create", lambda s: s.topics.auto_create),
    ("connections.max.idle.ms", ConfigType.LONG, "connection.idle_ms", lambda s: s.connection.idle_ms),
    ("fetch.max.bytes", ConfigType.INT, "fetch.fetch_bytes_max", lambda s: s.fetch.fetch_bytes_max),
    (
        "group.initial.rebalance.delay.ms",
        ConfigType.INT,
        "groups.initial_rebalance_delay_ms",
        lambda s: s.groups.initial_rebalance_delay_ms,
    ),
    (
        "group.max.session.timeout.ms",
        ConfigType.INT,
        "groups.session_timeout_ms_max",
        lambda s: s.groups.session_timeout_ms_max,
    ),
    ("group.max.size", ConfigType.INT, "groups.members_max", lambda s: s.groups.members_max),
    (
        "group.min.session.timeout.ms",
        ConfigType.INT,
        "groups.session_timeout_ms_min",
        lambda s: s.groups.session_timeout_ms_min,
    ),
    ("listeners", ConfigType.STRING, "listen.kafka", _listener),
    ("max.connections", ConfigType.INT, "connection.connections_max", lambda s: s.connection.connections_max),
    ("num.partitions", ConfigType.INT, "topics.partitions", lambda s: s.topics.partitions),
    (
        "offset.metadata.max.bytes",
        ConfigType.INT,
        "groups.offset_metadata_bytes_max",
        lambda s: s.groups.offset_metadata_bytes_max,
    ),
    (
        "offsets.retention.minutes",
        ConfigType.INT,
        "groups.offsets_retention_ms",
        lambda s: s.groups.offsets_retention_ms // 60_000,
    ),
    (
        "socket.request.max.bytes",
        ConfigType.INT,
        "connection.request_bytes_max",
        lambda s: s.connection.request_bytes_max,
    ),
)

_FROM_TOPIC_DEFAULTS = ("compression.type", "max.message.bytes", "message.timestamp.type")
"""Topic configs whose broker-wide default tools look for; it cannot be changed."""


def broker_configs(settings: Settings, identity: AgentIdentity) -> list[BrokerConfig]:
    """Every config of this agent, by name."""
    address = f"PLAINTEXT://{identity.host}:{identity.port}"
    node_id = str(identity.node_id)
    rows = [
        BrokerConfig("advertised.listeners", ConfigType.STRING, address, "", "Where clients are told to connect."),
        BrokerConfig("broker.id", ConfigType.INT, node_id, "", "The node id the metadata service gave this agent."),
        BrokerConfig("node.id", ConfigType.INT, node_id, "", "The node id the metadata service gave this agent."),
        BrokerConfig(
            "default.replication.factor", ConfigType.INT, "1", "1", "The object store keeps the copies, not agents."
        ),
        BrokerConfig("delete.topic.enable", ConfigType.BOOLEAN, "true", "true", "Topics can be deleted."),
    ]
    defaults = Settings()
    for name, kind, setting, read in _FROM_SETTINGS:
        documentation = f"The setting {setting}."
        rows.append(BrokerConfig(name, kind, _text(read(settings)), _text(read(defaults)), documentation))
    for topic_config in _FROM_TOPIC_DEFAULTS:
        row = TOPIC_CONFIGS[topic_config]
        name = row.broker_name or row.name
        rows.append(BrokerConfig(name, row.kind, row.default, row.default, f"{row.documentation} Set it on the topic."))
    return sorted(rows, key=lambda row: row.name)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
