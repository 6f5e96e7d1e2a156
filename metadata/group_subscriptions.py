"""Which topics the members of a group subscribe to, and so whose offsets may be deleted. Pure.

What members say about themselves is opaque to a coordinator, but for this: the subscription that Kafka's consumers
send (``ConsumerProtocolSubscription``) begins, in every version, with a version and the names of their topics.

Source: Kafka's ClassicGroup (validateOffsetDelete, computeSubscribedTopics; 3.9, 4.x), KIP-496.
"""

from __future__ import annotations

import struct

from metadata.groups import Group
from metadata.model import Refusal

CONSUMER = "consumer"
"""The protocol type of groups whose members send a ConsumerProtocolSubscription."""
_VERSION_AND_COUNT = struct.Struct(">hi")
_LENGTH = struct.Struct(">h")


def refuse_offset_deletion(group: Group) -> Refusal | None:
    """Why no offset of the group may be deleted: what its members read is for them alone to know."""
    if group.roster.members and group.protocol_type != CONSUMER:
        return Refusal.NON_EMPTY_GROUP
    return None


def subscribed_topics(group: Group) -> frozenset[str] | None:
    """The names of the topics that members subscribe to; None: not known, it may be any."""
    if not group.roster.members:
        return frozenset()
    if not group.protocol_name:  # the first generation is still to come
        return None
    names: set[str] = set()
    for member in group.roster.members.values():
        topics = subscription_topics(member.metadata(group.protocol_name))
        if topics is None:
            return None
        names.update(topics)
    return frozenset(names)


def subscription_topics(subscription: bytes) -> list[str] | None:
    """The topics of one ConsumerProtocolSubscription, whatever follows them; None: it is none."""
    try:
        version, count = _VERSION_AND_COUNT.unpack_from(subscription)
        if version < 0 or not 0 <= count <= len(subscription):
            return None
        topics = []
        position = _VERSION_AND_COUNT.size
        for _ in range(count):
            (length,) = _LENGTH.unpack_from(subscription, position)
            position += _LENGTH.size
            name = subscription[position : position + length]
            if length < 0 or len(name) != length:
                return None
            topics.append(name.decode())
            position += length
    except (struct.error, UnicodeDecodeError):
        return None
    return topics
