"""The HTTP side of deleted topics, and the command line that asks it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from agent.deleted_topics import DeletedTopics
from metadata.model import DeletedTopic, MetadataUnavailable, Refusal, Refused, Topic
from tests.support.metadata import topic, topic_id
from tidelog.connecting import CommandFailed
from tidelog.undelete import deleted_topics, undelete_topic


class Metadata:
    def __init__(self) -> None:
        self.hidden = {number: topic(number, name="logs" if number < 3 else "other") for number in (1, 2, 3)}
        self.away = False

    async def deleted_topics(self) -> list[DeletedTopic]:
        if self.away:
            raise MetadataUnavailable("planted")
        return [DeletedTopic(each, 1_000) for each in self.hidden.values()]

    async def undelete_topic(self, wanted: bytes) -> Topic:
        found = self.hidden.pop(int.from_bytes(wanted, "big"), None)
        if found is None:
            raise Refused(Refusal.UNKNOWN_TOPIC_ID, "there is no such topic")
        return found


@pytest.fixture
async def served() -> AsyncIterator[tuple[Metadata, str]]:
    fake = Metadata()
    client: Any = fake
    app = web.Application()
    DeletedTopics(client).add_to(app)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield fake, f"127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def shown(number: int) -> str:
    return base64.urlsafe_b64encode(topic_id(number)).decode().rstrip("=")


async def test_topics_are_listed_and_brought_back_by_id_or_by_a_name_that_only_one_had(
    served: tuple[Metadata, str],
) -> None:
    _, http = served
    topics = await asyncio.to_thread(deleted_topics, http)
    assert [(each["topic"], each["topic_id"]) for each in topics] == [
        ("logs", shown(1)),
        ("logs", shown(2)),
        ("other", shown(3)),
    ]
    with pytest.raises(CommandFailed, match=f"2 deleted topics were called 'logs'.*{shown(2)}"):
        await asyncio.to_thread(undelete_topic, http, "logs")
    assert (await asyncio.to_thread(undelete_topic, http, shown(2)))["topic"] == "logs"
    assert (await asyncio.to_thread(undelete_topic, http, "other"))["topic_id"] == shown(3)
    with pytest.raises(CommandFailed, match="no deleted topic"):
        await asyncio.to_thread(undelete_topic, http, "other")


async def test_failures_say_what_is_wrong(served: tuple[Metadata, str]) -> None:
    fake, http = served
    fake.away = True
    with pytest.raises(CommandFailed, match="planted"):
        await asyncio.to_thread(deleted_topics, http)
    with pytest.raises(CommandFailed, match=r"no agent answers at http://127\.0\.0\.1:1 "):
        await asyncio.to_thread(deleted_topics, "127.0.0.1:1")
