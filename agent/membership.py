"""This agent as a member of the cluster: registered, heard every second, taken out when it is sick, registered anew
when it was fenced.

=================  =============================================================================================
what happens       then
=================  =============================================================================================
a heartbeat is due its load and its diagnosis go to the metadata service; a change of condition does not wait for it
no answer          the next heartbeat; out of the answers when it lasts (:mod:`agent.diagnosis`)
fenced (silence)   everything pending fails, retriably; a new epoch; the writer goes on under it
fenced (replaced)  another process has registered as this agent: make room for it
draining           DRAINING at once, and goodbye when everything is done
=================  =============================================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import structlog

from agent.context import Agent
from agent.diagnosis import HEALTHY, Symptoms, diagnose
from agent.load import LoadMeter, LoopProbe
from agent.wire.endpoints import NodeEndpoint
from metadata.agent_model import AgentCondition, AgentHeartbeat, AgentLoad, AgentRegistered, AgentRegistration
from metadata.model import Fenced, MetadataUnavailable
from runtime.tasks import Supervisor
from storage.store import ObjectStore, StorageError

ANSWER_SECONDS_MAX: Final = 3.0
"""A heartbeat is given up after this, for the next one; silence of that length makes an agent suspect anyway."""
RETRY_SECONDS: Final = (0.1, 2.0)
"""First and longest pause before registering anew is tried again."""
DRAINING_SECONDS_MAX: Final = 1.0
"""How long a drain waits until everybody has heard of it."""
GOODBYE_SECONDS_MAX: Final = 2.0
STORE_PROBE_SECONDS: Final = 2.0
"""Pause between two looks whether a store works again that failed us."""

_log = structlog.get_logger("tidelog.agent.membership")


class Membership:
    """:meth:`register` until it works, :meth:`start`, :meth:`begin_drain`, :meth:`leave`. One event loop.

    ``on_replaced(error)``: the process must end. ``agent.identity`` follows the registrations.
    """

    def __init__(
        self,
        agent: Agent,
        registration: AgentRegistration,
        store: ObjectStore,
        supervisor: Supervisor,
        on_replaced: Callable[[Fenced], None],
    ) -> None:
        self._agent = agent
        self._registration = registration
        self._store = store
        self._supervisor = supervisor
        self._on_replaced = on_replaced
        self._probe = LoopProbe(agent.clock)
        self._meter = LoadMeter(agent.metrics, agent.budget, self._probe, agent.clock)
        self._beat_seconds = 1.0
        self._beating: asyncio.Task[None] | None = None
        self._due = asyncio.Event()
        """A heartbeat is due now."""
        self._answered = asyncio.Event()
        """Set, and replaced, when a heartbeat was answered."""
        self._fenced = False
        self._registration_unknown = False
        """An attempt to register may have worked without our hearing of it."""
        self._draining = False
        self._diagnosis = HEALTHY
        self._uploads_fail_since: float | None = None
        self._commits_fail_since: float | None = None
        self._beats_fail_since: float | None = None
        self._beat_problem = ""
        self._store_doubted = False

    # --- registering --------------------------------------------------------------------------------------

    async def register(self) -> None:
        """Get an epoch. The writer is not told: it starts with ``agent.identity.agent_epoch``.

        :raises metadata.model.MetadataUnavailable: nobody answered; it may be repeated.
        """
        self._registration_unknown = True
        registered = await self._agent.metadata.register_agent(self._registration)
        self._registration_unknown = False
        self._beat_seconds = registered.session_timeout_ms / 10_000
        self._became(registered)

    def _became(self, registered: AgentRegistered) -> None:
        agent = self._agent
        agent.identity = replace(
            agent.identity,
            cluster_id=registered.cluster_id,
            node_id=registered.node_id,
            agent_epoch=registered.agent_epoch,
            host=self._registration.host,
            port=self._registration.port,
        )
        self._show(AgentCondition.STARTING if self._beating is None else self.condition)

    def start(self) -> None:
        """READY from now on, and heard of."""
        self._supervisor.start("agent-loop-probe", self._probe.run())
        self._beating = self._supervisor.start("agent-heartbeat", self._beat_forever())

    def fenced(self) -> None:
        """The writer found out that its epoch can commit no more (its ``on_fenced``)."""
        self._fenced = True
        self._due.set()

    # --- condition ----------------------------------------------------------------------------------------

    @property
    def condition(self) -> AgentCondition:
        if self._draining:
            return AgentCondition.DRAINING
        return AgentCondition.SICK if self._diagnosis.reason else AgentCondition.READY

    def problem(self) -> str | None:
        """Why clients should not be sent here, None when they should: also to a sick agent that is the only one."""
        if self._fenced:
            return "fenced: registering anew"
        return self._diagnosis.reason or None if self._agent.roster.has_others() else None

    def _show(self, condition: AgentCondition) -> None:
        identity = self._agent.identity
        self._agent.roster.is_now(NodeEndpoint(identity.node_id, identity.host, identity.port), condition)
        self._agent.metrics.condition = condition

    def _examine(self) -> None:
        """See how this agent does, and tell clients and people when that has changed."""
        now, before = self._agent.clock.monotonic(), self._diagnosis
        symptoms = self._symptoms(now)
        self._diagnosis = diagnose(symptoms, before, now)
        reason = self._diagnosis.reason
        if reason and symptoms.uploads_fail_seconds > 0 and not self._store_doubted:
            # Its clients go, and without them nothing is uploaded that would show whether the store works again.
            self._store_doubted = True
            self._supervisor.start("agent-store-probe", self._watch_store())
        if reason and not before.reason:
            _log.warning("agent_sick", reason=reason)
        elif before.reason and not reason:
            _log.info("agent_well", was=before.reason)
        self._show(self.condition)

    def _symptoms(self, now: float) -> Symptoms:
        uploads, commits = self._agent.writer.upload_problem(), self._agent.writer.commit_problem()
        self._uploads_fail_since = _since(self._uploads_fail_since, uploads is not None or self._store_doubted, now)
        self._commits_fail_since = _since(self._commits_fail_since, commits is not None, now)
        stalls = self._probe.stalls(now)
        away_since = min(
            (since for since in (self._commits_fail_since, self._beats_fail_since) if since is not None), default=now
        )
        return Symptoms(
            stalls=len(stalls),
            stall_seconds_max=max(stalls, default=0.0),
            uploads_fail_seconds=0.0 if self._uploads_fail_since is None else now - self._uploads_fail_since,
            uploads_problem=uploads or "the store has not worked since",
            metadata_away_seconds=now - away_since,
            metadata_problem=commits or self._beat_problem,
        )

    async def _watch_store(self) -> None:
        while True:
            await self._agent.clock.sleep(STORE_PROBE_SECONDS)
            with contextlib.suppress(StorageError):
                await self._store.check()
                self._store_doubted = False
                return

    # --- heartbeats ---------------------------------------------------------------------------------------

    async def _beat_forever(self) -> None:
        while True:
            self._due.clear()
            self._examine()
            load = self._meter.measure()
            if self._fenced:
                if self._draining or not await self._register_anew():
                    return
                self._examine()
            await self._beat(load)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._beat_seconds):
                    await self._due.wait()

    async def _beat(self, load: AgentLoad) -> None:
        epoch = self._agent.identity.agent_epoch
        heartbeat = AgentHeartbeat(epoch, self.condition, self._diagnosis.reason, load)
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                await self._agent.metadata.heartbeat_agent(heartbeat)
        except Fenced:
            self._fenced = True
            self._due.set()
        except (MetadataUnavailable, TimeoutError) as error:
            if self._beats_fail_since is None:
                self._beats_fail_since = self._agent.clock.monotonic()
                _log.warning("heartbeat_missed", error=str(error) or "no answer in time")
            self._beat_problem = str(error) or "no answer in time"
        else:
            if self._beats_fail_since is not None:
                self._beats_fail_since = None
                _log.info("heartbeat_heard_again")
            answered, self._answered = self._answered, asyncio.Event()
            answered.set()

    async def _register_anew(self) -> bool:
        """A new epoch for a writer that fails what it has and goes on; False when the process has to end instead."""
        writer, old_epoch = self._agent.writer, self._agent.identity.agent_epoch
        await writer.fence()
        pause = RETRY_SECONDS[0]
        while True:
            try:
                if await self._is_replaced(old_epoch):
                    uid = self._registration.agent_uid
                    self._on_replaced(Fenced(f"another process has registered as this agent ({uid})"))
                    return False
                await self.register()
                break
            except MetadataUnavailable as error:
                _log.warning("registration_retried", error=str(error))
            await self._agent.clock.sleep(self._agent.entropy.uniform(pause / 2, pause))
            pause = min(pause * 2, RETRY_SECONDS[1])
        self._fenced = False
        self._beats_fail_since = None
        writer.start(self._agent.identity.agent_epoch)
        _log.warning("agent_registered_anew", old_epoch=old_epoch, agent_epoch=self._agent.identity.agent_epoch)
        return True

    async def _is_replaced(self, old_epoch: int) -> bool:
        """Whether somebody else has our place. :raises MetadataUnavailable:"""
        if self._registration_unknown:
            return False  # a newer epoch may well be our own
        uid = self._registration.agent_uid
        return any(
            described.info.agent_uid == uid and described.info.agent_epoch > old_epoch
            for described in await self._agent.metadata.describe_agents()
        )

    # --- leaving ------------------------------------------------------------------------------------------

    async def begin_drain(self) -> None:
        """DRAINING; returns when everybody has heard of it, or after a moment (then they will)."""
        self._draining = True
        self._show(self.condition)
        roster = self._agent.roster
        if self._beating is None or not roster.has_others():
            self._due.set()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAINING_SECONDS_MAX):
                while roster.told_condition() not in (AgentCondition.DRAINING, None):
                    answered = self._answered
                    self._due.set()
                    await answered.wait()
                    await self._agent.clock.sleep(0.01)  # the roster comes by another way than the answer

    async def leave(self) -> None:
        """No more heartbeats; the epoch is given up, so that nothing of it can be committed later."""
        if self._beating is None:
            return
        self._beating.cancel()
        self._beating = None
        if self._fenced:
            return
        epoch = self._agent.identity.agent_epoch
        try:
            async with asyncio.timeout(GOODBYE_SECONDS_MAX):
                await self._agent.metadata.leave_agent(epoch)
        except (MetadataUnavailable, Fenced, TimeoutError) as error:
            _log.warning("goodbye_unheard", agent_epoch=epoch, error=str(error) or "no answer in time")


def _since(before: float | None, holds: bool, now: float) -> float | None:
    """Since when something holds without a break."""
    if not holds:
        return None
    return now if before is None else before
