"""``GET /cluster`` of a metadata process: what it knows of agents, topics and groups, as JSON for people (or jq)."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from aiohttp import web

from metadata.group_model import GroupLag
from metadata.model import MetadataUnavailable
from metadata.rpc.server import RpcServer, Term
from runtime.clock import Clock

TOPICS_SHOWN_MAX = 1_000
GROUPS_SHOWN_MAX = 1_000
"""More are counted, and not shown."""


class ClusterPage:
    """Answers from the current term; a standby says only that it is one."""

    def __init__(self, server: RpcServer, clock: Clock) -> None:
        self._server = server
        self._clock = clock

    def add_routes(self, app: web.Application) -> None:
        """Before the application starts."""
        app.router.add_get("/cluster", self._cluster)

    async def _cluster(self, request: web.Request) -> web.Response:
        refusal = self._server.refuse_unauthorized(request)
        if refusal is not None:
            return refusal
        page: dict[str, Any] = {"leader": False, "generation": self._server.generation}
        term = self._server.term
        if term is not None:
            try:
                page = {"leader": True, "generation": term.generation, **await self._describe(term)}
            except MetadataUnavailable as error:
                return web.json_response({**page, "problem": str(error)}, status=503)
        return web.json_response(page)

    async def _describe(self, term: Term) -> dict[str, Any]:
        """:raises MetadataUnavailable:"""
        service = term.service
        groups = await service.list_groups()
        lags: defaultdict[str, list[GroupLag]] = defaultdict(list)
        for lag in await service.group_lags():
            lags[lag.group_id].append(lag)
        topics = sorted(term.hub.topics, key=lambda topic: topic.name)
        topics_shown = []
        for topic in topics[:TOPICS_SHOWN_MAX]:
            await asyncio.sleep(0)  # thousands of partitions each: others come in between
            offsets = await service.partition_offsets([(topic.topic_id, n) for n in range(topic.partition_count)])
            topics_shown.append(
                {
                    "topic": topic.name,
                    "id": topic.topic_id.hex(),
                    "partitions": topic.partition_count,
                    "records": sum(each.high_watermark - each.log_start_offset for each in offsets if each is not None),
                }
            )
        now_ms = self._clock.now_ms()
        return {
            "agents": [
                {
                    "agent": agent.info.agent_uid,
                    "node_id": agent.info.node_id,
                    "epoch": agent.info.agent_epoch,
                    "zone": agent.info.zone,
                    "group": agent.info.group,
                    "kafka": f"{agent.info.host}:{agent.info.port}",
                    "http": agent.info.http_address,
                    "version": agent.info.version,
                    "roles": agent.info.roles,
                    "condition": agent.info.condition.value,
                    "reason": agent.reason,
                    "silent_seconds": max(0, now_ms - agent.heard_ms) / 1000 if agent.heard_ms else None,
                    "load": {name: getattr(agent.load, name) for name in agent.load.__struct_fields__},
                }
                for agent in await service.describe_agents()
            ],
            "topics_count": len(topics),
            "partitions_count": sum(topic.partition_count for topic in topics),
            "topics": topics_shown,
            "groups_count": len(groups),
            "groups": [
                {
                    "group": group.group_id,
                    "state": group.state,
                    "lag_records": sum(lag.records for lag in lags[group.group_id]),
                    "lag_seconds": max((lag.seconds for lag in lags[group.group_id]), default=0.0),
                }
                for group in sorted(groups, key=lambda group: group.group_id)[:GROUPS_SHOWN_MAX]
            ],
        }
