"""Watches over agents: who registered, who lives, who fell silent. Drives :mod:`metadata.agents`.

Registrations and fences are durable and go through the pipeline; what is heard in between stays in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import structlog

from metadata.agent_model import (
    AgentCondition,
    AgentDescription,
    AgentHeartbeat,
    AgentInfo,
    AgentRegistered,
    AgentRegistration,
)
from metadata.agents import AgentRegistry
from metadata.model import MetadataUnavailable
from metadata.pipeline import CommandPipeline, Transaction
from metadata.state import State
from metadata.store.port import AgentSaved, StoreSnapshot
from runtime.clock import Clock
from runtime.settings import AgentsSettings
from runtime.tasks import Supervisor

_log = structlog.get_logger("tidelog.metadata.agents")

LOOK_SECONDS = 0.25
"""Pause between two looks for silent agents."""
POSTPONED_SECONDS = 1.0
"""When nothing can be decided, fencing is tried again after this."""
FORGOTTEN_PER_COMMAND = 100
"""Agents forgotten in one command."""


class AgentWatch:
    """The part of the metadata service that knows agents. ``state`` gives the deciding state of the moment.

    ``changed`` hears the roster, on the loop, whenever something in it changed.
    """

    def __init__(
        self,
        pipeline: CommandPipeline,
        clock: Clock,
        supervisor: Supervisor,
        settings: AgentsSettings,
        state: Callable[[], State],
        changed: Callable[[Sequence[AgentInfo]], None],
    ) -> None:
        self._pipeline = pipeline
        self._clock = clock
        self._supervisor = supervisor
        self._settings = settings
        self._state = state
        self._changed = changed
        self._registry = AgentRegistry(settings.suspect_ms, settings.session_timeout_ms)
        self._told: Sequence[AgentInfo] = ()

    @property
    def roster(self) -> tuple[AgentInfo, ...]:
        """Every agent whose epoch is not durably fenced, by node id."""
        return self._registry.roster

    def start(self) -> None:
        """Begin to look for silent agents; the supervisor ends it."""
        self._supervisor.start("metadata-agents", self._watch())

    def load(self, snapshot: StoreSnapshot) -> None:
        """At the start every agent is taken for alive. After a failed write, what is new to us never got an answer."""
        first = not self._pipeline.started
        condition = AgentCondition.READY if first else AgentCondition.STARTING
        self._registry.load(snapshot.agents, condition, self._now())
        self._publish()

    # --- calls ------------------------------------------------------------------------------------------

    def register(self, registration: AgentRegistration, transaction: Transaction) -> AgentRegistered:
        """Decide a registration."""
        saved = self._state().register_agent(registration, self._clock.now_ms(), transaction.changes)
        transaction.after_durable(partial(self._registered, saved))
        return AgentRegistered(
            self._state().cluster_id, saved.node_id, saved.agent_epoch, self._settings.session_timeout_ms
        )

    def leave(self, agent_epoch: int, transaction: Transaction) -> None:
        """Decide a goodbye. An epoch that is fenced already stays so."""
        self._fence([agent_epoch], "it left", transaction)

    def heard(self, heartbeat: AgentHeartbeat) -> None:
        """:raises metadata.model.Fenced:"""
        self._registry.heard(heartbeat, self._now(), self._clock.now_ms())
        self._publish()

    def describe(self) -> list[AgentDescription]:
        return self._registry.describe()

    def excuse(self) -> None:
        """Heartbeats could not be taken for a while: their silence counts from now."""
        self._registry.excuse(self._now())
        self._publish()

    def forget(self, transaction: Transaction) -> None:
        """Decide to drop agents that have been fenced for long."""
        before_ms = self._clock.now_ms() - self._settings.forget_ms
        self._state().forget_agents(before_ms, FORGOTTEN_PER_COMMAND, transaction.changes)

    # --- time -------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            self._registry.look(self._now())
            self._publish()
            if self._registry.silent(self._now()):
                try:
                    await self._pipeline.run(self._fence_silent)
                except MetadataUnavailable as error:
                    _log.warning("agent_fencing_postponed", error=str(error))
                    await self._clock.sleep(POSTPONED_SECONDS)

    def _fence_silent(self, transaction: Transaction) -> None:
        """Decided anew in its turn: somebody may have been heard meanwhile."""
        self._fence(self._registry.silent(self._now()), "it was silent", transaction)

    def _fence(self, agent_epochs: Sequence[int], why: str, transaction: Transaction) -> None:
        for agent_epoch in agent_epochs:
            saved = self._state().fence_agent(agent_epoch, self._clock.now_ms(), transaction.changes)
            if saved is not None:
                transaction.after_durable(partial(self._fenced, saved, agent_epoch, why))

    def _registered(self, saved: AgentSaved) -> None:
        _log.info("agent_registered", agent=saved.agent_uid, node_id=saved.node_id, agent_epoch=saved.agent_epoch)
        self._registry.registered(saved, self._now())
        self._publish()

    def _fenced(self, saved: AgentSaved, agent_epoch: int, why: str) -> None:
        _log.info("agent_fenced", agent=saved.agent_uid, agent_epoch=agent_epoch, why=why)
        self._registry.gone(agent_epoch)
        self._publish()

    def _publish(self) -> None:
        roster = self._registry.roster
        if roster is not self._told:
            self._told = roster
            self._changed(roster)

    def _now(self) -> int:
        return int(self._clock.monotonic() * 1000)
