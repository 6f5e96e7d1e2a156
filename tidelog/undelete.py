"""``tidelog topic deleted`` and ``undelete``: over an agent's HTTP address, since Kafka's protocol knows neither."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from datetime import datetime
from typing import Any
from urllib.parse import quote

from tidelog.connecting import CommandFailed

SECONDS = 10.0
HTTP = "127.0.0.1:8080"


def deleted_topics(http: str) -> list[dict[str, Any]]:
    """Topics that can come back, longest deleted first. :raises CommandFailed:"""
    topics: list[dict[str, Any]] = _ask(http, "/topics/deleted", "GET")
    for topic in topics:
        topic["deleted"] = datetime.fromtimestamp(topic.pop("deleted_ms") / 1000).astimezone().isoformat("T", "seconds")
    return topics


def undelete_topic(http: str, wanted: str) -> dict[str, Any]:
    """Bring back the deleted topic with this id, or the only one with this name. :raises CommandFailed:"""
    topics = deleted_topics(http)
    matching = [topic for topic in topics if topic["topic_id"] == wanted] or [
        topic for topic in topics if topic["topic"] == wanted
    ]
    if not matching:
        raise CommandFailed(f"no deleted topic has the id or name {wanted!r}; `tidelog topic deleted` lists them")
    if len(matching) > 1:
        ids = ", ".join(topic["topic_id"] for topic in matching)
        raise CommandFailed(f"{len(matching)} deleted topics were called {wanted!r}; choose by id: {ids}")
    topic: dict[str, Any] = _ask(http, f"/topics/undelete?id={quote(matching[0]['topic_id'])}", "POST")
    return topic


def _ask(http: str, path: str, method: str) -> Any:
    request = urllib.request.Request(f"http://{http}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise CommandFailed(f"{http}: {error.read().decode(errors='replace')}") from error
    except (OSError, ValueError) as error:
        raise CommandFailed(f"no agent answers at http://{http} ({error}); give --http HOST:PORT") from error
