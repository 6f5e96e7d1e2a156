"""A metadata service over any store, behind any transport, for contract suites of its client."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from metadata.agent_model import AgentHeartbeat, AgentLoad
from metadata.client import MetadataClient
from metadata.model import ExtentsFound, ExtentsQuery, Topic
from metadata.store.factory import open_metadata_store
from metadata.store.memory import MemoryMetadataStore
from runtime.settings import LifecycleSettings, TopicSettings
from tests.support.metadata import Recorder, RoundTripClient, SettableClock, running_service
from tests.support.metadata_rpc import RpcNode, remote_metadata


class World:
    """A service that can be restarted over the same store, with a transport before it."""

    def __init__(self, url: str, transport: str, lifecycle: LifecycleSettings | None = None) -> None:
        self.lifecycle = lifecycle
        self._node = RpcNode() if transport == "http" else None
        self._clients = AsyncExitStack()
        self._url = url
        self.store = open_metadata_store(self._url)
        self._stack = AsyncExitStack()
        self._starts = 0
        self.clock = SettableClock()
        self.client: MetadataClient
        self.epoch = -1
        self.topic: Topic

    async def start(self) -> None:
        if self._starts and not isinstance(self.store, MemoryMetadataStore):
            self.store = open_metadata_store(self._url)
        self._starts += 1
        service = await self._stack.enter_async_context(
            running_service(
                self.store,
                self.clock,
                self._starts,
                TopicSettings(partitions_max=100),
                lifecycle=self.lifecycle,
            )
        )
        if self._node is None:
            self.client = RoundTripClient(service)  # type: ignore[assignment]
            return
        if self._starts == 1:
            await self._node.start()
            self._clients.push_async_callback(self._node.stop)
            self.client = await self._clients.enter_async_context(remote_metadata([self._node.url]))
        await self._node.lead(service, self._starts)
        self._stack.push_async_callback(self._node.stand_by)

    async def stop(self) -> None:
        await self._stack.aclose()
        await self._clients.aclose()

    async def restart(self) -> None:
        """Remote clients outlive it, as they do in agents."""
        await self._stack.aclose()
        await self.start()

    async def heard(self, listener: Recorder, count: int = 0, rosters: int = 0) -> None:
        """Wait until ``listener`` has heard so many things: at once in-process, soon over a network."""
        async with asyncio.timeout(5):
            while len(listener.heard) < count or len(listener.rosters) < rosters:
                await asyncio.sleep(0.001)

    async def found(self, offset: int, byte_max: int = 10**9, partition: int = 0) -> ExtentsFound:
        (found,) = await self.client.find_extents([ExtentsQuery(self.topic.topic_id, partition, offset, byte_max)])
        return found

    async def pass_seconds(self, seconds: float) -> None:
        """For everybody who sleeps, in steps, with the agents heard in between; and by the wall clock."""
        until = self.clock.monotonic() + seconds
        while (left := until - self.clock.monotonic()) > 0:
            step = min(left, 2.0)
            for described in await self.client.describe_agents():
                info = described.info
                await self.client.heartbeat_agent(AgentHeartbeat(info.agent_epoch, info.condition, "", AgentLoad()))
            self.clock.wall_ms += int(step * 1000)
            await self.clock.pass_seconds(step)
