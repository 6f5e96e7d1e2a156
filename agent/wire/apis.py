"""The table of API keys and versions this agent offers, as data. ``docs/apis.md`` is generated from it.

``min_version`` and ``max_version`` are what ApiVersions advertises, ``served_min`` the lowest version that is really
answered. They differ where clients draw conclusions from a range (Produce, see its note). ``flexible_from`` is the
first version with compact types and tagged fields (KIP-482), and so the one whose request header has them too.

Source: ``shared/reference/kafka.md`` ("What to offer", the rows marked "first" and "next"); Kafka's message schemas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PRODUCE: Final = 0
FETCH: Final = 1
LIST_OFFSETS: Final = 2
METADATA: Final = 3
OFFSET_COMMIT: Final = 8
OFFSET_FETCH: Final = 9
FIND_COORDINATOR: Final = 10
JOIN_GROUP: Final = 11
HEARTBEAT: Final = 12
LEAVE_GROUP: Final = 13
SYNC_GROUP: Final = 14
DESCRIBE_GROUPS: Final = 15
LIST_GROUPS: Final = 16
API_VERSIONS: Final = 18
CREATE_TOPICS: Final = 19
DELETE_TOPICS: Final = 20
DELETE_RECORDS: Final = 21
INIT_PRODUCER_ID: Final = 22
OFFSET_FOR_LEADER_EPOCH: Final = 23
DESCRIBE_CONFIGS: Final = 32
ALTER_CONFIGS: Final = 33
DESCRIBE_LOG_DIRS: Final = 35
CREATE_PARTITIONS: Final = 37
DELETE_GROUPS: Final = 42
INCREMENTAL_ALTER_CONFIGS: Final = 44
OFFSET_DELETE: Final = 47
DESCRIBE_CLUSTER: Final = 60
DESCRIBE_PRODUCERS: Final = 61
DESCRIBE_TOPIC_PARTITIONS: Final = 75


@dataclass(frozen=True, slots=True)
class Api:
    """One row of the table."""

    key: int
    name: str
    min_version: int
    max_version: int
    served_min: int
    flexible_from: int
    note: str

    def serves(self, version: int) -> bool:
        """Whether a request of this version is answered."""
        return self.served_min <= version <= self.max_version


def _api(
    key: int,
    name: str,
    min_version: int,
    max_version: int,
    flexible_from: int,
    note: str,
    served_min: int | None = None,
) -> Api:
    served = min_version if served_min is None else served_min
    return Api(key, name, min_version, max_version, served, flexible_from, note)


APIS: Final[tuple[Api, ...]] = (
    _api(
        PRODUCE,
        "Produce",
        0,
        12,
        9,
        "Advertised from 0: with a minimum of 3, librdkafka 2.0.2 silently sends gzip, snappy and lz4 uncompressed. No "
        "client of today sends 0-2. Version 13 addresses topics by id only, and Java never goes back below it.",
        served_min=3,
    ),
    _api(
        FETCH,
        "Fetch",
        4,
        16,
        12,
        "A minimum above 4 makes librdkafka 2.0.2 fall back to message format 0. Topic ids (13+) are durable here.",
    ),
    _api(LIST_OFFSETS, "ListOffsets", 1, 7, 6, "8 and 9 ask for offsets of tiered storage, which is not a tier here."),
    _api(METADATA, "Metadata", 0, 13, 9, "Clients start cold at 0, where an empty list means all topics."),
    _api(OFFSET_COMMIT, "OffsetCommit", 2, 9, 8, "0 and 1 belong to offsets in ZooKeeper; 10 needs topic ids."),
    _api(OFFSET_FETCH, "OffsetFetch", 1, 9, 6, "0 read offsets from ZooKeeper; 10 needs topic ids."),
    _api(FIND_COORDINATOR, "FindCoordinator", 0, 5, 3, "6 finds share groups' coordinators, which do not exist here."),
    _api(JOIN_GROUP, "JoinGroup", 0, 9, 6, ""),
    _api(HEARTBEAT, "Heartbeat", 0, 4, 4, ""),
    _api(LEAVE_GROUP, "LeaveGroup", 0, 5, 4, ""),
    _api(SYNC_GROUP, "SyncGroup", 0, 5, 4, ""),
    _api(DESCRIBE_GROUPS, "DescribeGroups", 0, 5, 5, "6 is for the new group protocol (KIP-848)."),
    _api(LIST_GROUPS, "ListGroups", 0, 5, 3, ""),
    _api(
        API_VERSIONS,
        "ApiVersions",
        0,
        4,
        3,
        "A version above 4 is answered in version 0 with error 35. The answer carries no tagged fields, which Debian's "
        "librdkafka 2.0.2 mis-skips, and its header is always version 0.",
    ),
    _api(CREATE_TOPICS, "CreateTopics", 2, 7, 5, "No client sends 0 or 1 any more."),
    _api(DELETE_TOPICS, "DeleteTopics", 1, 6, 4, ""),
    _api(DELETE_RECORDS, "DeleteRecords", 0, 2, 2, "Any agent answers for any partition."),
    _api(INIT_PRODUCER_ID, "InitProducerId", 0, 5, 2, "For idempotence. A transactional id is refused with error 53."),
    _api(OFFSET_FOR_LEADER_EPOCH, "OffsetForLeaderEpoch", 2, 4, 4, "The leader epoch is always 0."),
    _api(DESCRIBE_CONFIGS, "DescribeConfigs", 1, 4, 4, ""),
    _api(ALTER_CONFIGS, "AlterConfigs", 0, 2, 2, "Topics only: agents are configured by files."),
    _api(
        DESCRIBE_LOG_DIRS,
        "DescribeLogDirs",
        1,
        4,
        2,
        "The object store is the one log dir; sizes are bytes in it. No client sends 0; 5 tells of cordoned dirs.",
    ),
    _api(CREATE_PARTITIONS, "CreatePartitions", 0, 3, 2, ""),
    _api(DELETE_GROUPS, "DeleteGroups", 0, 2, 2, ""),
    _api(INCREMENTAL_ALTER_CONFIGS, "IncrementalAlterConfigs", 0, 1, 1, "Topics only: agents are configured by files."),
    _api(OFFSET_DELETE, "OffsetDelete", 0, 0, 1, ""),
    _api(DESCRIBE_PRODUCERS, "DescribeProducers", 0, 0, 0, "Idempotent producers; there are no transactions."),
    _api(DESCRIBE_TOPIC_PARTITIONS, "DescribeTopicPartitions", 0, 0, 0, ""),
    _api(DESCRIBE_CLUSTER, "DescribeCluster", 0, 1, 0, "2 lists fenced brokers, which are never shown here."),
)

API_BY_KEY: Final[dict[int, Api]] = {api.key: api for api in APIS}
