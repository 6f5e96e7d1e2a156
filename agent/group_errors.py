"""What the handlers of the consumer group APIs have in common: how a refusal looks to a client."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from kio.schema.errors import ErrorCode

from agent.errors import error_code
from metadata.model import Refusal

UNAVAILABLE: Final = Refusal.NOT_COORDINATOR
"""For a metadata service that cannot answer: the only retriable code that every client expects from every group API
(Java fails on COORDINATOR_LOAD_IN_PROGRESS after a Heartbeat, and on COORDINATOR_NOT_AVAILABLE after an OffsetFetch).
They ask FindCoordinator again, are sent here again, and repeat the request."""

MILLISECOND: Final = timedelta(milliseconds=1)


def group_code(refusal: Refusal | None) -> ErrorCode:
    """The Kafka error code, NONE without a refusal."""
    return ErrorCode.none if refusal is None else error_code(refusal)
