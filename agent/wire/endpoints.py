"""Addresses of agents in answers (KIP-951): the tagged fields that Produce and Fetch share."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agent.wire.varint import write_uvarint

NO_LEADER: Final = -1
_INT32: Final = struct.Struct(">i")
_TWO_INT32: Final = struct.Struct(">ii")


@dataclass(frozen=True, slots=True, order=True)
class NodeEndpoint:
    """An agent as clients know it. Its rack is never told (see the Metadata handler)."""

    node_id: int
    host: str
    port: int


def write_endpoints(out: bytearray, endpoints: Sequence[NodeEndpoint]) -> None:
    """A section of tagged fields whose only one is ``node_endpoints`` (tag 0); an empty section without endpoints."""
    if not endpoints:
        out.append(0)
        return
    rows = bytearray()
    write_uvarint(rows, len(endpoints) + 1)
    for endpoint in endpoints:
        host = endpoint.host.encode()
        rows += _INT32.pack(endpoint.node_id)
        write_uvarint(rows, len(host) + 1)
        rows += host
        rows += _INT32.pack(endpoint.port)
        rows += b"\0\0"  # rack is null, no tagged fields
    out += b"\x01\x00"
    write_uvarint(out, len(rows))
    out += rows


def current_leader(tag: int, leader_id: int) -> bytes:
    """A section of tagged fields whose only one is ``current_leader``, 9 bytes; our leader epoch is always 0."""
    return bytes((1, tag, 9)) + _TWO_INT32.pack(leader_id, 0) + b"\0"
