import re

import pytest

from metadata.cleaning_jobs import cleaning_policy
from metadata.config_definitions import LONG_MAX, ConfigType, Support
from metadata.retention import retention_policy
from metadata.topic_configs import TOPIC_CONFIGS, TopicPolicy, effective, topic_policy, validate_topic_configs

ASKED_FOR_BY_TOOLS = [
    "cleanup.policy",
    "compression.type",
    "compression.gzip.level",
    "compression.lz4.level",
    "compression.zstd.level",
    "delete.retention.ms",
    "file.delete.delay.ms",
    "flush.messages",
    "flush.ms",
    "follower.replication.throttled.replicas",
    "index.interval.bytes",
    "leader.replication.throttled.replicas",
    "local.retention.bytes",
    "local.retention.ms",
    "max.compaction.lag.ms",
    "max.message.bytes",
    "message.timestamp.after.max.ms",
    "message.timestamp.before.max.ms",
    "message.timestamp.type",
    "min.cleanable.dirty.ratio",
    "min.compaction.lag.ms",
    "min.insync.replicas",
    "preallocate",
    "remote.log.copy.disable",
    "remote.log.delete.on.disable",
    "remote.storage.enable",
    "retention.bytes",
    "retention.ms",
    "segment.bytes",
    "segment.index.bytes",
    "segment.jitter.ms",
    "segment.ms",
    "unclean.leader.election.enable",
]


def test_the_table_is_kafkas_list_in_order() -> None:
    assert list(TOPIC_CONFIGS) == sorted(ASKED_FOR_BY_TOOLS)


@pytest.mark.parametrize("name", sorted(ASKED_FOR_BY_TOOLS))
def test_every_row_accepts_its_own_default_and_explains_itself(name: str) -> None:
    row = TOPIC_CONFIGS[name]
    validate_topic_configs({name: row.default})
    assert row.documentation.endswith(".")
    assert row.reason


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cleanup.policy", "compact"),
        ("cleanup.policy", "compact, delete"),
        ("compression.type", "producer"),
        ("compression.type", "uncompressed"),
        ("compression.type", "zstd"),
        ("retention.ms", "-1"),
        ("retention.ms", " 60000 "),
        ("retention.bytes", "1073741824"),
        ("preallocate", "TRUE"),
        ("min.insync.replicas", "2"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("unclean.leader.election.enable", "true"),
        ("leader.replication.throttled.replicas", "*"),
        ("leader.replication.throttled.replicas", "0:1,1:2"),
        ("remote.storage.enable", "true"),
    ],
)
def test_values_that_tools_set_are_accepted(name: str, value: str) -> None:
    validate_topic_configs({name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("cleanup.polic", "delete", "Unknown topic config name: cleanup.polic"),
        ("cleanup.policy", "keep", "Invalid value keep for configuration cleanup.policy: String must be one of:"),
        ("cleanup.policy", "", "String must be one of"),
        ("compression.type", "brotli", "String must be one of: uncompressed, zstd, lz4, snappy, gzip, producer"),
        ("compression.type", "gzip,lz4", "String must be one of"),
        ("retention.ms", "-2", "Invalid value -2 for configuration retention.ms: Value must be at least -1"),
        ("retention.ms", "1_000", "Not a number of type LONG"),
        ("retention.ms", "a week", "Not a number of type LONG"),
        ("retention.ms", str(LONG_MAX + 1), "Not a number of type LONG"),
        ("max.message.bytes", str(2**31), "Not a number of type INT"),
        ("max.message.bytes", "٣", "Not a number of type INT"),
        ("min.cleanable.dirty.ratio", "1.5", "Value must be no more than 1"),
        ("min.cleanable.dirty.ratio", "nan", "Not a number of type DOUBLE"),
        ("min.cleanable.dirty.ratio", "half", "Not a number of type DOUBLE"),
        ("preallocate", "yes", "Expected value to be either true or false"),
        ("message.timestamp.type", "logappendtime", "String must be one of: CreateTime, LogAppendTime"),
        ("leader.replication.throttled.replicas", "all", "Must be the literal '*'"),
        ("remote.log.copy.disable", "true", "Tidelog supports only false"),
        ("compression.zstd.level", "19", "Tidelog supports only 3"),
        ("min.insync.replicas", "0", "Value must be at least 1"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_in_kafkas_words(name: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        validate_topic_configs({name: value})


def test_compaction_lags_must_not_contradict_each_other() -> None:
    validate_topic_configs({"min.compaction.lag.ms": "5", "max.compaction.lag.ms": "5"})
    with pytest.raises(ValueError, match="conflict topic config setting"):
        validate_topic_configs({"min.compaction.lag.ms": "6", "max.compaction.lag.ms": "5"})


def test_the_policy_of_a_topic_without_configs_is_the_tables_defaults() -> None:
    assert topic_policy({}) == TopicPolicy(
        max_message_bytes=1_048_588,
        compression_type="producer",
        log_append_time=False,
        timestamp_before_max_ms=LONG_MAX,
        timestamp_after_max_ms=3_600_000,
        compacted=False,
    )


def test_the_policy_follows_what_is_set() -> None:
    policy = topic_policy(
        {
            "max.message.bytes": " 100 ",
            "compression.type": "lz4",
            "message.timestamp.type": "LogAppendTime",
            "message.timestamp.before.max.ms": "1",
            "message.timestamp.after.max.ms": "2",
            "cleanup.policy": "delete,compact",
        }
    )
    assert policy == TopicPolicy(100, "lz4", True, 1, 2, True)


def test_every_honoured_row_reaches_the_policy() -> None:
    """A row that claims to be honoured but changes nothing would be a lie to whoever reads it."""
    changed = {
        ConfigType.INT: "7",
        ConfigType.LONG: "7",
        ConfigType.DOUBLE: "0.7",
        ConfigType.STRING: "",
        ConfigType.LIST: "",
    }
    for row in TOPIC_CONFIGS.values():
        if row.support is Support.HONOURED:
            value = changed[row.kind] or next(choice for choice in row.choices if choice != row.default)
            policies = [
                (topic_policy(configs), retention_policy(configs), cleaning_policy(configs))
                for configs in ({row.name: value}, {})
            ]
            assert policies[0] != policies[1], row.name


def test_effective_prefers_what_is_set() -> None:
    assert effective({"retention.ms": "5"}, "retention.ms") == "5"
    assert effective({}, "retention.ms") == "604800000"
