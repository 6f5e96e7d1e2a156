"""A Metadata response (API key 3), versions 0-13, by hand and piece by piece.

By hand, because a cluster has tens of thousands of partitions and kio's way costs microseconds for each; in pieces, so
that the event loop has turns in between. Tests compare it with kio's byte for byte. Source: ``MetadataResponse.json``;
KIP-430 (operations: never known), KIP-482 (flexible from 9), KIP-516 (topic ids from 10).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from agent.wire.endpoints import NodeEndpoint
from agent.wire.varint import write_uvarint

FLEXIBLE_FROM: Final = 9
OPERATIONS_UNKNOWN: Final = -(2**31)

_INT16: Final = struct.Struct(">h").pack
_INT32: Final = struct.Struct(">i").pack
_ROW_V0: Final = struct.Struct(">hiiiiii").pack  # error, index, leader, 1 replica, 1 in sync
_ROW_V5: Final = struct.Struct(">hiiiiiii").pack  # + 0 offline replicas
_ROW_V7: Final = struct.Struct(">hiiiiiiii").pack  # + leader epoch, behind the leader
_ROW_V9: Final = struct.Struct(">hiiiBiBiBB").pack  # array lengths plus one in a byte; no tagged fields


class MetadataResponse:
    """In order: for each topic :meth:`topic`, then :meth:`partitions` until all are there; :meth:`end`.

    The leader is a partition's only replica and in sync, its epoch is 0, and nobody has a rack.
    """

    def __init__(
        self,
        version: int,
        brokers: Sequence[NodeEndpoint],
        cluster_id: str,
        controller_id: int,
        topic_count: int,
    ) -> None:
        self._version = version
        self._flexible = version >= FLEXIBLE_FROM
        self._left = 0
        self.out = out = bytearray()
        if version >= 3:
            out += _INT32(0)  # throttle_time_ms
        self._length(len(brokers))
        for broker in brokers:
            out += _INT32(broker.node_id)
            self._string(broker.host)
            out += _INT32(broker.port)
            if version >= 1:
                self._string(None)
            self._no_tags()
        if version >= 2:
            self._string(cluster_id)
        if version >= 1:
            out += _INT32(controller_id)
        self._length(topic_count)

    def topic(self, error_code: int, name: str | None, topic_id: bytes, partition_count: int) -> None:
        """Begin a topic; ``topic_id`` is 16 bytes. A null name goes out as an empty one before version 12."""
        assert self._left == 0, "the topic before has all its partitions"
        version, out = self._version, self.out
        out += _INT16(error_code)
        self._string("" if name is None and version < 12 else name)
        if version >= 10:
            out += topic_id
        if version >= 1:
            out.append(0)  # is_internal
        self._length(partition_count)
        self._left = partition_count
        if partition_count == 0:
            self._end_topic()

    def partitions(self, first: int, leaders: Iterable[int]) -> None:
        """The next partitions of the topic, from index ``first`` on, by the node ids of their leaders."""
        version = self._version
        if version >= 9:
            rows = [_ROW_V9(0, index, node, 0, 2, node, 2, node, 1, 0) for index, node in enumerate(leaders, first)]
        elif version >= 7:
            rows = [_ROW_V7(0, index, node, 0, 1, node, 1, node, 0) for index, node in enumerate(leaders, first)]
        elif version >= 5:
            rows = [_ROW_V5(0, index, node, 1, node, 1, node, 0) for index, node in enumerate(leaders, first)]
        else:
            rows = [_ROW_V0(0, index, node, 1, node, 1, node) for index, node in enumerate(leaders, first)]
        self.out += b"".join(rows)
        self._left -= len(rows)
        assert self._left >= 0
        if self._left == 0:
            self._end_topic()

    def end(self) -> bytearray:
        """What follows the topics; the whole body."""
        assert self._left == 0
        if 8 <= self._version <= 10:
            self.out += _INT32(OPERATIONS_UNKNOWN)
        if self._version >= 13:
            self.out += _INT16(0)
        self._no_tags()
        return self.out

    def _end_topic(self) -> None:
        if self._version >= 8:
            self.out += _INT32(OPERATIONS_UNKNOWN)
        self._no_tags()

    def _no_tags(self) -> None:
        if self._flexible:
            self.out.append(0)

    def _length(self, count: int) -> None:
        if self._flexible:
            write_uvarint(self.out, count + 1)
        else:
            self.out += _INT32(count)

    def _string(self, value: str | None) -> None:
        encoded = b"" if value is None else value.encode()
        if self._flexible:
            write_uvarint(self.out, 0 if value is None else len(encoded) + 1)
        else:
            self.out += _INT16(-1 if value is None else len(encoded))
        self.out += encoded
