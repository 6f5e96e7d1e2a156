"""What the cluster demo knows of its cluster: the state file of ``tidelog cluster up``, and what the leader says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tidelog.cluster.page import ClusterPage, ask_all, leader_of
from tidelog.cluster.state_file import ClusterState, ProcessState, read_state


class DemoFailed(Exception):
    """The message is the reason, for the user."""


class ClusterView:
    """Looks when it is told to. ``last_words()`` is what to show when the cluster is not there."""

    def __init__(self, data: Path, last_words: Callable[[], str]) -> None:
        self._data = data
        self._last_words = last_words
        self._page: ClusterPage | None = None
        self._crossed: dict[int, int] = {}
        """Bytes by agent epoch: one that dies keeps what it had counted when it was last heard."""

    @property
    def exists(self) -> bool:
        return read_state(self._data) is not None

    def state(self) -> ClusterState:
        """:raises DemoFailed: the cluster has ended, or not begun."""
        state = read_state(self._data)
        if state is None:
            raise DemoFailed(f"the cluster is not there:\n{self._last_words()}")
        return state

    def look(self) -> ClusterPage | None:
        """What the leader says now; None while nobody leads."""
        page = leader_of(ask_all([f"http://{process.http}" for process in self.state().metadata], None))
        if page is not None:
            self._page = page
            for agent in page.agents:
                self._crossed[agent.epoch] = agent.load.cross_zone_bytes_total
        return page

    @property
    def agents_ready(self) -> int:
        """As of the last look."""
        return 0 if self._page is None else sum(agent.condition == "ready" for agent in self._page.agents)

    @property
    def generation(self) -> int:
        """-1 before anybody led."""
        return -1 if self._page is None else self._page.generation

    @property
    def crossed_bytes(self) -> int:
        """Between zones, by all agents there ever were, as of the last look."""
        return sum(self._crossed.values())

    def leader(self) -> ProcessState:
        """The metadata process that leads, looked up now. :raises DemoFailed: none does."""
        state = self.state()
        answers = ask_all([f"http://{process.http}" for process in state.metadata], None)
        page = leader_of(answers)
        for answer, process in zip(answers, state.metadata, strict=True):
            if page is not None and answer.page == page:
                return process
        raise DemoFailed("no metadata process leads")
