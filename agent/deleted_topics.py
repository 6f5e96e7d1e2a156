"""Deleted topics that can come back, on the agent's HTTP address: Kafka's protocol has no words for it.

``GET /topics/deleted``: a JSON list. ``POST /topics/undelete?id=ID``: brings one back, and answers with it. As all of
that address it is for operators and other agents: keep it private.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from aiohttp import web

from metadata.client import MetadataClient
from metadata.model import DeletedTopic, MetadataError, Refused, Topic

ID_BYTES = 16


class DeletedTopics:
    """The two routes, over ``metadata``."""

    def __init__(self, metadata: MetadataClient) -> None:
        self._metadata = metadata

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/topics/deleted", self._list)
        app.router.add_post("/topics/undelete", self._undelete)

    async def _list(self, _: web.Request) -> web.Response:
        try:
            return web.json_response([_shown(deleted) for deleted in await self._metadata.deleted_topics()])
        except MetadataError as error:
            return web.Response(status=503, text=str(error))

    async def _undelete(self, request: web.Request) -> web.Response:
        try:
            topic_id = base64.b64decode(request.query.get("id", "") + "==", altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            topic_id = b""
        if len(topic_id) != ID_BYTES:
            return web.Response(status=400, text="id is not a topic's id, such as HhMqYQpcQVyW0vWnvcyKtw")
        try:
            topic = await self._metadata.undelete_topic(topic_id)
        except Refused as refused:
            return web.Response(status=409, text=str(refused))
        except MetadataError as error:
            return web.Response(status=503, text=str(error))
        return web.json_response(_named(topic))


def _named(topic: Topic) -> dict[str, Any]:
    name = base64.urlsafe_b64encode(topic.topic_id).decode().rstrip("=")
    return {"topic": topic.name, "topic_id": name, "partitions": topic.partition_count}


def _shown(deleted: DeletedTopic) -> dict[str, Any]:
    return _named(deleted.topic) | {"deleted_ms": deleted.deleted_ms}
