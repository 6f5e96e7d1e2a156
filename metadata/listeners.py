"""Who hears what became durable, in-process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import structlog

from metadata.agent_model import AgentInfo
from metadata.client import MetadataListener
from metadata.model import Topic, TopicId

_log = structlog.get_logger("tidelog.metadata")


class MetadataSubscription:
    """Implements :class:`metadata.client.Subscription`; in-process every partition's extents are announced."""

    def __init__(self, topics: tuple[Topic, ...], agents: tuple[AgentInfo, ...], close: Callable[[], None]) -> None:
        self.topics = topics
        self.agents = agents
        self._close = close

    async def follow(self, partitions: Sequence[tuple[TopicId, int]]) -> None:
        """They are announced anyway."""

    def unfollow(self, partitions: Sequence[tuple[TopicId, int]]) -> None:
        """They go on being announced."""

    def close(self) -> None:
        """The listener hears nothing more. Idempotent."""
        self._close()


class Listeners:
    """One listener's failure is its own: it is told to start over, and dropped when it cannot even do that."""

    def __init__(self) -> None:
        self._listeners: list[MetadataListener] = []

    def add(
        self, listener: MetadataListener, topics: tuple[Topic, ...], agents: tuple[AgentInfo, ...]
    ) -> MetadataSubscription:
        """``listener`` hears all that comes after ``topics`` and ``agents``."""
        self._listeners.append(listener)
        return MetadataSubscription(topics, agents, partial(self._drop, listener))

    def tell(self, event: Callable[[MetadataListener], None]) -> None:
        """Call ``event`` with each."""
        for listener in tuple(self._listeners):
            try:
                event(listener)
            except Exception as error:
                _log.error("metadata_listener_failed", listener=type(listener).__name__, error=repr(error))
                self._resynchronize(listener)

    def resynchronize(self) -> None:
        """There was a gap: all start over."""
        for listener in tuple(self._listeners):
            self._resynchronize(listener)

    def _resynchronize(self, listener: MetadataListener) -> None:
        try:
            listener.resynchronize()
        except Exception as error:
            self._drop(listener)
            _log.error("metadata_listener_dropped", listener=type(listener).__name__, error=repr(error))

    def _drop(self, listener: MetadataListener) -> None:
        self._listeners = [kept for kept in self._listeners if kept is not listener]
