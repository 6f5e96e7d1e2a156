"""What metadata processes say of a cluster (``GET /cluster``), as structs; asked of all of them at once."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from metadata.agent_model import AgentLoad

ANSWER_SECONDS = 3.0


class AgentRow(msgspec.Struct, frozen=True):
    """One agent, as the leader knows it. ``silent_seconds`` is null before its first heartbeat to this leader."""

    agent: str
    node_id: int
    epoch: int
    zone: str
    group: str
    kafka: str
    http: str
    version: str
    roles: tuple[str, ...]
    condition: str
    reason: str
    silent_seconds: float | None
    load: AgentLoad


class TopicRow(msgspec.Struct, frozen=True):
    topic: str
    partitions: int
    records: int
    id: str = ""
    """Hexadecimal."""


class GroupRow(msgspec.Struct, frozen=True):
    group: str
    state: str
    lag_records: int
    lag_seconds: float


class ClusterPage(msgspec.Struct, frozen=True):
    """The answer; all but the first two fields are the leader's."""

    leader: bool
    generation: int
    agents: tuple[AgentRow, ...] = ()
    topics_count: int = 0
    partitions_count: int = 0
    topics: tuple[TopicRow, ...] = ()
    groups_count: int = 0
    groups: tuple[GroupRow, ...] = ()


class ProcessAnswer(msgspec.Struct, frozen=True):
    """What one metadata process answered; ``problem`` says why there is no page."""

    url: str
    page: ClusterPage | None
    problem: str | None


def ask_all(urls: Sequence[str], secret: str | None) -> list[ProcessAnswer]:
    """Every process's answer, in the order of ``urls``, within :data:`ANSWER_SECONDS`."""
    with ThreadPoolExecutor(len(urls)) as pool:
        return list(pool.map(lambda url: _ask(url, secret), urls))


def leader_of(answers: Sequence[ProcessAnswer]) -> ClusterPage | None:
    """The page of the one that leads: of the newest generation, if one that was replaced has not noticed."""
    pages = [answer.page for answer in answers if answer.page is not None and answer.page.leader]
    return max(pages, key=lambda page: page.generation, default=None)


def _ask(url: str, secret: str | None) -> ProcessAnswer:
    headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
    request = urllib.request.Request(f"{url}/cluster", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:
            return ProcessAnswer(url, msgspec.json.decode(response.read(), type=ClusterPage), None)
    except urllib.error.HTTPError as error:
        return ProcessAnswer(url, None, _refusal(error))
    except msgspec.DecodeError as error:
        return ProcessAnswer(url, None, f"no metadata process of a version that is known here: {error}")
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, OSError) and reason.strerror:
            reason = reason.strerror
        return ProcessAnswer(url, None, f"no answer: {str(reason).lower()}")


def _refusal(error: urllib.error.HTTPError) -> str:
    if error.code == 401:
        return "refused: give the cluster's `secret` in TIDELOG_SECRET"
    try:
        return str(json.loads(error.read())["problem"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"HTTP {error.code}"
