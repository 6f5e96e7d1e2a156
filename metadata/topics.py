"""The decisions on topics: their names, their partitions, and what is remembered of deleted ones. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from metadata.counters import Counters
from metadata.model import DeletedTopic, RecordsDeleted, RecordsDeletion, Refusal, Refused, Topic, TopicId
from metadata.partitions import PartitionState, TopicState
from metadata.retention import deletes
from metadata.store.port import Change, PartitionRow, TopicDropped, TopicHidden, TopicRestored, TopicSaved

DELETED_NAMES_MAX = 10_000
"""Names of deleted topics remembered one by one; from then on a deletion of another counts for every name."""
_DELETED = "deleted_topic/"
_DELETED_TOPICS = "deleted_topics"
"""Counters: producer ids granted when the topic of a name, or any topic, was deleted last."""
PARTITIONS_PER_TOPIC_MAX = 10_000
_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")


class Topics:
    """Every topic while commands decide, as part of :class:`metadata.state.State`."""

    def __init__(
        self,
        topics: Iterable[Topic],
        deleted: Iterable[DeletedTopic],
        partitions: Iterable[PartitionRow],
        counters: Counters,
    ) -> None:
        self.partition_count = 0
        self.by_id: dict[TopicId, TopicState] = {}
        self._by_name: dict[str, Topic] = {}
        self._by_metric_name: dict[str, str] = {}
        self._counters = counters
        self._deleted_names = counters.count(_DELETED)
        for topic in topics:
            self._index(TopicState(topic))
        self._hidden = {hidden.topic.topic_id: (TopicState(hidden.topic), hidden.deleted_ms) for hidden in deleted}
        """Deleted topics that may come back; nothing can be written to them, so their partitions stay as they are."""
        for row in partitions:
            partition = self.partition(row.topic_id, row.partition)
            partition.log_start_offset = row.log_start_offset
            partition.high_watermark = row.high_watermark
            partition.producer_id_floor = row.producer_id_floor

    def partition(self, topic_id: TopicId, partition: int) -> PartitionState:
        """One that exists, if only in a hidden topic."""
        state = self.even_hidden(topic_id)
        assert state is not None, "every partition has a topic"
        return state.partitions[partition]

    def even_hidden(self, topic_id: TopicId) -> TopicState | None:
        """A topic whose extents are there: it exists, or was deleted and may come back."""
        hidden = self._hidden.get(topic_id)
        return self.by_id.get(topic_id) if hidden is None else hidden[0]

    def create(
        self,
        name: str,
        partition_count: int,
        configs: dict[str, str],
        topic_id: TopicId,
        now_ms: int,
        partitions_max: int,
        changes: list[Change] | None,
    ) -> Topic:
        """The new topic; with ``changes`` None it is only checked (validate_only) and nothing is kept.

        ``configs`` are valid already. :raises Refused: TOPIC_ALREADY_EXISTS, INVALID_TOPIC, INVALID_PARTITIONS.
        """
        if name in self._by_name:
            raise Refused(Refusal.TOPIC_ALREADY_EXISTS, f"Topic '{name}' already exists.")
        check_topic_name(name)
        # Kafka's metrics write '.' as '_', so it refuses names that differ in nothing else.
        other = self._by_metric_name.get(name.replace(".", "_"))
        if other is not None:
            raise Refused(Refusal.INVALID_TOPIC, f"Topic '{name}' collides with existing topic '{other}'.")
        self._check_partition_count(partition_count, partition_count, partitions_max)
        topic = Topic(topic_id, name, partition_count, dict(configs), now_ms)
        if changes is not None:
            floor = self._producer_id_floor(name)
            self._index(TopicState(topic, floor))
            changes.append(TopicSaved(topic, floor))
        return topic

    def create_partitions(
        self, topic_id: TopicId, partition_count: int, partitions_max: int, changes: list[Change] | None
    ) -> Topic:
        """The topic with ``partition_count`` partitions, the first of which stay as they are.

        With ``changes`` None it is only checked. The words are those of Kafka's ReplicationControlManager.
        :raises Refused: UNKNOWN_TOPIC_ID, INVALID_PARTITIONS.
        """
        state = self._existing(topic_id)
        existing = state.topic.partition_count
        if partition_count == existing:
            raise Refused(Refusal.INVALID_PARTITIONS, f"Topic already has {existing} partition(s).")
        if partition_count < existing:
            raise Refused(
                Refusal.INVALID_PARTITIONS,
                f"The topic {state.topic.name} currently has {existing} partition(s); {partition_count} would not be an"
                " increase.",
            )
        self._check_partition_count(partition_count, partition_count - existing, partitions_max)
        topic = msgspec.structs.replace(state.topic, partition_count=partition_count)
        if changes is not None:
            floor = self._producer_id_floor(topic.name)
            state.grow(topic, floor)
            self._by_name[topic.name] = topic
            self.partition_count += partition_count - existing
            changes.append(TopicSaved(topic, floor))
        return topic

    def _check_partition_count(self, partition_count: int, additional: int, partitions_max: int) -> None:
        """:raises Refused: INVALID_PARTITIONS: too many, or none, for one topic or for all together."""
        if not 1 <= partition_count <= PARTITIONS_PER_TOPIC_MAX:
            raise Refused(
                Refusal.INVALID_PARTITIONS,
                f"Number of partitions must be between 1 and {PARTITIONS_PER_TOPIC_MAX}, got {partition_count}.",
            )
        if self.partition_count + additional > partitions_max:
            raise Refused(
                Refusal.INVALID_PARTITIONS,
                f"The cluster would have {self.partition_count + additional} partitions; the limit is"
                f" {partitions_max}.",
            )

    def _producer_id_floor(self, name: str) -> int:
        """What new partitions of a topic of this name begin with: a deleted one may have had the same."""
        return max(self._counters.get(_DELETED + name), self._counters.get(_DELETED_TOPICS))

    def delete(
        self, topic_id: TopicId, producer_ids_granted: int, hidden_ms: int | None, changes: list[Change]
    ) -> None:
        """``producer_ids_granted``: the next one to be granted. ``hidden_ms``: now, when the topic may come back; None:
        it never does. :raises Refused: UNKNOWN_TOPIC_ID."""
        self._existing(topic_id)
        state = self.by_id.pop(topic_id)
        del self._by_name[state.topic.name]
        del self._by_metric_name[state.topic.name.replace(".", "_")]
        self.partition_count -= len(state.partitions)
        self._remember_deletion(state.topic.name, producer_ids_granted, changes)
        if hidden_ms is None:
            _drop(state, changes)
        else:
            self._hidden[topic_id] = (state, hidden_ms)
            changes.append(TopicHidden(topic_id, hidden_ms))

    def deleted(self) -> list[DeletedTopic]:
        """Those that may come back, longest deleted first."""
        hidden = [DeletedTopic(state.topic, deleted_ms) for state, deleted_ms in self._hidden.values()]
        return sorted(hidden, key=lambda each: each.deleted_ms)

    def undelete(self, topic_id: TopicId, partitions_max: int, changes: list[Change]) -> Topic:
        """Bring a hidden topic back as it was. :raises Refused: UNKNOWN_TOPIC_ID, or as :meth:`create`."""
        hidden = self._hidden.get(topic_id)
        if hidden is None:
            raise Refused(Refusal.UNKNOWN_TOPIC_ID, "There is no deleted topic with this id, or not any more.")
        topic = hidden[0].topic
        self.create(topic.name, topic.partition_count, topic.configs, topic_id, topic.created_ms, partitions_max, None)
        del self._hidden[topic_id]
        self._index(hidden[0])
        changes.append(TopicRestored(topic_id))
        return topic

    def drop_hidden(self, until_ms: int, changes: list[Change]) -> list[TopicId]:
        """Topics hidden then or earlier are gone for good."""
        due = [topic_id for topic_id, (_, hidden_ms) in self._hidden.items() if hidden_ms <= until_ms]
        for topic_id in due:
            _drop(self._hidden.pop(topic_id)[0], changes)
        return due

    def _remember_deletion(self, name: str, producer_ids_granted: int, changes: list[Change]) -> None:
        """Producers that wrote to it may go on in the next topic of this name, in the middle of their sequences."""
        counter = _DELETED + name
        if producer_ids_granted and counter not in self._counters:
            if self._deleted_names == DELETED_NAMES_MAX:
                counter = _DELETED_TOPICS
            else:
                self._deleted_names += 1
        self._counters.raise_to(counter, producer_ids_granted, changes)

    def delete_records(self, deletion: RecordsDeletion, changes: list[Change]) -> RecordsDeleted:
        """Kafka's rules (``Partition.deleteRecordsOnLeader``): below the log start is no error, and changes nothing."""
        state = self.by_id.get(deletion.topic_id)
        if state is None:
            return RecordsDeleted(-1, Refusal.UNKNOWN_TOPIC_ID)
        if not 0 <= deletion.partition < len(state.partitions):
            return RecordsDeleted(-1, Refusal.UNKNOWN_TOPIC_OR_PARTITION)
        if not deletes(state.topic.configs):
            return RecordsDeleted(-1, Refusal.POLICY_VIOLATION)
        partition = state.partitions[deletion.partition]
        offset = partition.high_watermark if deletion.before_offset == -1 else deletion.before_offset
        if not 0 <= offset <= partition.high_watermark:
            return RecordsDeleted(-1, Refusal.OFFSET_OUT_OF_RANGE)
        partition.move_log_start(offset, changes)
        return RecordsDeleted(partition.log_start_offset)

    def expire_records(self, topic_id: TopicId, partition: int, offset: int, changes: list[Change]) -> bool:
        """Retention lets go of what is below ``offset``. False: nothing changed, or the topic is gone by now."""
        state = self.by_id.get(topic_id)
        if state is None or not deletes(state.topic.configs):
            return False
        return state.partitions[partition].move_log_start(offset, changes)

    def alter_configs(self, topic_id: TopicId, configs: dict[str, str], changes: list[Change]) -> Topic:
        """Replace the configs of a topic by ``configs``, valid already. :raises Refused: UNKNOWN_TOPIC_ID."""
        state = self._existing(topic_id)
        if state.topic.configs == configs:
            return state.topic
        state.topic = msgspec.structs.replace(state.topic, configs=configs)
        self._by_name[state.topic.name] = state.topic
        changes.append(TopicSaved(state.topic))
        return state.topic

    def configs(self, topic_id: TopicId) -> dict[str, str]:
        """A copy of the configs set on a topic. :raises Refused: UNKNOWN_TOPIC_ID."""
        return dict(self._existing(topic_id).topic.configs)

    def _existing(self, topic_id: TopicId) -> TopicState:
        state = self.by_id.get(topic_id)
        if state is None:
            raise Refused(Refusal.UNKNOWN_TOPIC_ID, "This server does not host this topic ID.")
        return state

    def _index(self, state: TopicState) -> None:
        topic = state.topic
        self.by_id[topic.topic_id] = state
        self._by_name[topic.name] = topic
        self._by_metric_name[topic.name.replace(".", "_")] = topic.name
        self.partition_count += len(state.partitions)


def _drop(state: TopicState, changes: list[Change]) -> None:
    for partition in state.partitions:
        partition.dropped = True
    changes.append(TopicDropped(state.topic.topic_id))


def check_topic_name(name: str) -> None:
    """Kafka's rule for topic names. :raises Refused: INVALID_TOPIC."""
    if name in (".", "..") or _TOPIC_NAME.fullmatch(name) is None:
        raise Refused(
            Refusal.INVALID_TOPIC,
            f"Topic name '{name[:300]}' is illegal: it must be 1 to 249 of the characters a-z, A-Z, 0-9, '.', '_' and"
            " '-', and neither '.' nor '..'.",
        )
