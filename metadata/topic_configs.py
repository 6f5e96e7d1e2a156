"""Topic configs: Kafka's names, types, defaults and validation, and what the data path needs of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CompressionType = Literal["producer", "uncompressed", "gzip", "snappy", "lz4", "zstd"]


@dataclass(frozen=True, slots=True)
class TopicPolicy:
    """The effective configs the data path acts on, parsed once per change of the topic."""

    max_message_bytes: int
    compression_type: CompressionType
    log_append_time: bool
    timestamp_before_max_ms: int
    timestamp_after_max_ms: int
    compacted: bool


def topic_policy(configs: dict[str, str]) -> TopicPolicy:
    """What ``configs`` (only the ones set on the topic) mean together with the defaults."""
    return TopicPolicy(
        max_message_bytes=int(configs.get("max.message.bytes", 1_048_588)),
        compression_type=configs.get("compression.type", "producer"),  # type: ignore[arg-type]
        log_append_time=configs.get("message.timestamp.type") == "LogAppendTime",
        timestamp_before_max_ms=int(configs.get("message.timestamp.before.max.ms", 2**63 - 1)),
        timestamp_after_max_ms=int(configs.get("message.timestamp.after.max.ms", 3_600_000)),
        compacted="compact" in configs.get("cleanup.policy", "delete"),
    )
