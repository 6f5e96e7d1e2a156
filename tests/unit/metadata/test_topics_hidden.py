"""Deleted topics that may come back, as decided; the contract suite has the rest."""

from __future__ import annotations

import pytest

from metadata.counters import Counters
from metadata.model import DeletedTopic, Refusal, Refused
from metadata.store.port import Change, PartitionRow, TopicDropped, TopicHidden, TopicRestored
from metadata.topics import Topics
from tests.support.metadata import topic, topic_id


def made() -> Topics:
    return Topics([topic(1), topic(2)], [], [PartitionRow(topic_id(1), 1, 3, 9, 5)], Counters({}))


def test_a_hidden_topic_keeps_its_partitions_and_gives_up_its_name_and_its_room() -> None:
    topics, changes = made(), list[Change]()
    topics.delete(topic_id(1), 0, 70, changes)
    assert changes == [TopicHidden(topic_id(1), 70)]
    assert topic_id(1) not in topics.by_id and topics.even_hidden(topic_id(1)) is not None
    assert topics.partition_count == 2
    assert topics.deleted() == [DeletedTopic(topic(1), 70)]
    assert topics.undelete(topic_id(1), 4, changes) == topic(1)
    assert changes[1:] == [TopicRestored(topic_id(1))]
    partition = topics.partition(topic_id(1), 1)
    assert (partition.log_start_offset, partition.high_watermark, partition.dropped) == (3, 9, False)
    assert topics.deleted() == [] and topics.partition_count == 4


def test_one_that_does_not_fit_any_more_stays_hidden() -> None:
    topics, changes = made(), list[Change]()
    topics.delete(topic_id(1), 0, 70, [])
    with pytest.raises(Refused) as refused:
        topics.undelete(topic_id(1), 3, changes)
    assert refused.value.refusal is Refusal.INVALID_PARTITIONS
    topics.create("topic-1", 1, {}, topic_id(3), 1, 100, [])
    with pytest.raises(Refused) as refused:
        topics.undelete(topic_id(1), 100, changes)
    assert refused.value.refusal is Refusal.TOPIC_ALREADY_EXISTS
    assert changes == [] and topics.deleted() == [DeletedTopic(topic(1), 70)]


def test_hidden_topics_are_dropped_when_their_time_is_over() -> None:
    topics, changes = made(), list[Change]()
    topics.delete(topic_id(2), 0, 70, [])
    topics.delete(topic_id(1), 0, 80, [])
    kept = topics.partition(topic_id(2), 0)
    assert topics.drop_hidden(69, changes) == []
    assert topics.drop_hidden(70, changes) == [topic_id(2)]
    assert changes == [TopicDropped(topic_id(2))] and kept.dropped
    assert [each.topic.topic_id for each in topics.deleted()] == [topic_id(1)]
    with pytest.raises(Refused):
        topics.undelete(topic_id(2), 100, changes)
