"""DeleteGroups (key 42), versions 0-2: KIP-229.

A group without members goes with its offsets; one with members is NON_EMPTY_GROUP, one that is not there
GROUP_ID_NOT_FOUND. A group that comes twice in a request is deleted, and answered, once.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Any, Final

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.group_errors import UNAVAILABLE, group_code
from metadata.model import MetadataUnavailable

DELETED_AT_ONCE: Final = 100


async def handle(_call: Call, request: Any, agent: Agent) -> Body:
    """Delete each group on its own: one that stays does not disturb the others."""
    rows: list[Body] = []
    wanted = iter(dict.fromkeys(request.groups_names))
    while group_ids := list(islice(wanted, DELETED_AT_ONCE)):
        codes = await asyncio.gather(*(_delete(group_id, agent) for group_id in group_ids))
        rows += [{"group_id": group_id, "error_code": code} for group_id, code in zip(group_ids, codes, strict=True)]
    return {"throttle_time": 0, "results": tuple(rows)}


async def _delete(group_id: str, agent: Agent) -> ErrorCode:
    try:
        return group_code(await agent.metadata.delete_group(group_id))
    except MetadataUnavailable:
        return group_code(UNAVAILABLE)
