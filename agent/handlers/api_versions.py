"""ApiVersions (key 18), versions 0-4: KIP-35, KIP-511 (client software), KIP-584 (features, none).

A version above 4 is answered in version 0 with UNSUPPORTED_VERSION and the whole table, so that the client asks again
with one we know; closing would mean endless reconnects. No tagged fields are sent: Debian's librdkafka 2.0.2 mis-skips
them and then sees no APIs at all. An invalid client software name is not refused, as it is never used.
"""

from __future__ import annotations

from typing import Any, Final

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.wire.apis import API_VERSIONS, APIS
from agent.wire.codec import encode_response

_ROWS: Final = tuple(
    {"api_key": api.key, "min_version": api.min_version, "max_version": api.max_version} for api in APIS
)


async def handle(_call: Call, _request: Any, _agent: Agent) -> Body:
    """The table, for any version that is served."""
    return {"error_code": ErrorCode.none, "api_keys": _ROWS, "throttle_time": 0}


def unsupported_version(correlation_id: int) -> bytes:
    """The whole response frame for a version that is not served."""
    return encode_response(
        API_VERSIONS, 0, correlation_id, {"error_code": ErrorCode.unsupported_version, "api_keys": _ROWS}
    )
