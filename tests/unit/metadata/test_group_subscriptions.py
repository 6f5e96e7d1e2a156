"""Which topics the members of a group read, from what they say about themselves."""

from __future__ import annotations

import struct

import pytest

from metadata.group_subscriptions import subscription_topics


def subscription(*topics: bytes, version: int = 1, behind: bytes = b"") -> bytes:
    names = b"".join(struct.pack(">h", len(name)) + name for name in topics)
    return struct.pack(">hi", version, len(topics)) + names + behind


@pytest.mark.parametrize("version", [0, 1, 2, 3, 99])
def test_topics_stand_at_the_beginning_in_every_version(version: int) -> None:
    behind = b"\xff\xff\xff\xff\x00\x00\x00\x01rest of later versions"
    assert subscription_topics(subscription(b"logs", "größe".encode(), version=version, behind=behind)) == [
        "logs",
        "größe",
    ]
    assert subscription_topics(subscription(version=version)) == []


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"nonsense",
        subscription(b"logs")[:-1],
        subscription(b"logs")[:-5],
        subscription(b"\xff\xfe"),
        subscription(version=-1),
        struct.pack(">hi", 0, -1),
        struct.pack(">hi", 0, 2**31 - 1),
        struct.pack(">hih", 0, 1, -1),
    ],
)
def test_what_is_no_subscription_says_nothing(broken: bytes) -> None:
    assert subscription_topics(broken) is None
