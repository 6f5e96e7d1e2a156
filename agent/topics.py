"""The agent's own view of all topics, so that the data path looks a topic up without a call.

It may be *stale*: the commit, not this view, decides whether a topic exists. A handler that misses a topic
here, or finds one that a client says is gone, asks the metadata service.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from ingest.rewrite import stores_as_sent
from metadata.model import Topic, TopicId, TopicsChanged
from metadata.topic_configs import TopicPolicy, topic_policy


@dataclass(frozen=True, slots=True)
class TopicView:
    """A topic with its configs parsed. ``uuid`` is the id in the form kio wants."""

    topic_id: TopicId
    uuid: uuid.UUID
    name: str
    partition_count: int
    policy: TopicPolicy
    stores_as_sent: bool
    """Every valid batch is stored as it was sent (:func:`ingest.rewrite.stores_as_sent`)."""
    topic: Topic


class TopicDirectory:
    """Topics by name and by id; fed by the metadata subscription. One event loop."""

    def __init__(self) -> None:
        self._by_name: dict[str, TopicView] = {}
        self._by_id: dict[TopicId, TopicView] = {}

    def reset(self, topics: Iterable[Topic]) -> None:
        """Forget everything, then know exactly ``topics``."""
        self._by_name.clear()
        self._by_id.clear()
        self.apply(TopicsChanged(upserted=tuple(topics)))

    def apply(self, change: TopicsChanged) -> None:
        for topic_id in change.deleted:
            view = self._by_id.pop(topic_id, None)
            if view is not None and self._by_name.get(view.name) is view:
                del self._by_name[view.name]
        for topic in change.upserted:
            policy = topic_policy(topic.configs)
            view = TopicView(
                topic.topic_id,
                uuid.UUID(bytes=topic.topic_id),
                topic.name,
                topic.partition_count,
                policy,
                stores_as_sent(policy),
                topic,
            )
            self._by_id[topic.topic_id] = view
            self._by_name[topic.name] = view

    def by_name(self, name: str) -> TopicView | None:
        return self._by_name.get(name)

    def by_id(self, topic_id: TopicId) -> TopicView | None:
        return self._by_id.get(topic_id)

    def all(self) -> list[TopicView]:
        """Every topic, by name."""
        return [self._by_name[name] for name in sorted(self._by_name)]

    def __len__(self) -> int:
        return len(self._by_id)
