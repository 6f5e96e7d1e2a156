"""What travels between :class:`metadata.rpc.client.RemoteMetadata` and :class:`metadata.rpc.server.RpcServer`.

``POST /rpc/METHOD``: the body is the MessagePack array [Head, [arguments]], the answer an :class:`Answer`.
``GET /rpc``: 200 from the leader, 503 from the others, with a :class:`Presence`.
``GET /watch?client=ID&watch=ID&member=CLIENT``: a stream of frames, each a length (4 bytes, big-endian) and an
:data:`Event`; ``member`` is the client of the same agent's calls.
``POST /watch/ID/follow``: the body is a :class:`Step`; when it is answered the partitions are followed.
A process that does not lead says 503, one that has too much to do 429, a missing or wrong secret is 401.
"""

from __future__ import annotations

import enum
import hmac
from typing import Annotated

import msgspec

from metadata.agent_model import AgentInfo
from metadata.model import (
    Extent,
    Fenced,
    LogStart,
    MetadataError,
    MetadataUnavailable,
    Refusal,
    Refused,
    Topic,
    TopicsChanged,
)

ID_BYTES = 16
REQUEST_BYTES_MAX = 32 * 1024 * 1024
"""Largest body of a call. A commit of 30,000 batches is 1 MB; a JoinGroup or SyncGroup may carry more."""
FRAME_BYTES_MAX = 128 * 1024 * 1024
"""Largest frame of a watch a client takes: 100,000 topics with a dozen configs each are about 40 MB."""
BEAT_SECONDS = 1.0
"""Between two beats of a watch."""
BEATS_MISSED_MAX = 3
"""A watcher that heard nothing for so many beats starts over."""
LENGTH_BYTES = 4
SHARED_LANE = 0
"""Of all calls of a client but the parked ones."""

_encoder = msgspec.msgpack.Encoder()
_Id = Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
_Natural = Annotated[int, msgspec.Meta(ge=0)]


class Head(msgspec.Struct, frozen=True, array_like=True):
    """Whose call this is, and which. A repetition has the same ``client``, ``lane`` and ``number``."""

    client: _Id
    lane: _Natural
    """Numbers count for each lane by itself. Calls that may park have one each, so that they hold up nothing."""
    number: _Natural
    settled_below: _Natural
    """The caller has given up waiting for, or seen the answers of, all calls of the lane below."""
    generation: int
    """The highest the client has seen. A mutating call is executed under this one only: a copy that is delayed until
    after a failover does nothing."""
    wait_ms: _Natural
    """Answer within this time, PENDING if need be."""

    @property
    def call_id(self) -> str:
        """Names this call for ever."""
        return f"{self.client.hex()}/{self.lane}/{self.number}"


class Outcome(enum.IntEnum):
    """What the value of an :class:`Answer` is."""

    VALUE = 0
    REFUSED = 1
    """(refusal, message)"""
    FENCED = 2
    """message"""
    UNAVAILABLE = 3
    """message; nothing is remembered, a repetition is executed anew"""
    FAILED = 4
    """message: a defect in the service"""
    PENDING = 5
    """It is under way; ask again."""
    SETTLED = 6
    """A copy of a settled call, or of one whose answer had to be forgotten: not executed."""
    OTHER_GENERATION = 7
    """Not executed: the call was meant for an earlier leader. Send it again with this answer's generation."""


class Answer(msgspec.Struct, frozen=True, array_like=True):
    generation: int
    outcome: Outcome
    value: msgspec.Raw


class Presence(msgspec.Struct, frozen=True):
    """What a metadata process says of itself; ``generation`` -1 when it has never led."""

    leader: bool
    generation: int
    cluster_id: str = ""
    """Of the leader; a standby has not looked."""


# --- watches ------------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The first frame: everything as it is now; what follows comes after it."""

    generation: int
    topics: tuple[Topic, ...]
    agents: tuple[AgentInfo, ...]


class Beat(msgspec.Struct, frozen=True, array_like=True, tag=1):
    generation: int


class ExtentAnnounced(msgspec.Struct, frozen=True, array_like=True, tag=2):
    extent: Extent


class TopicsAnnounced(msgspec.Struct, frozen=True, array_like=True, tag=3):
    change: TopicsChanged


class AgentsAnnounced(msgspec.Struct, frozen=True, array_like=True, tag=4):
    agents: tuple[AgentInfo, ...]


class LogStartsAnnounced(msgspec.Struct, frozen=True, array_like=True, tag=6):
    moved: tuple[LogStart, ...]


class StartOver(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """:meth:`metadata.client.MetadataListener.resynchronize`"""


Event = Hello | Beat | ExtentAnnounced | TopicsAnnounced | AgentsAnnounced | LogStartsAnnounced | StartOver


class Step(msgspec.Struct, frozen=True, array_like=True):
    """A change of what a watch follows. Steps count up; a late copy of an earlier one does nothing."""

    number: int
    follow: tuple[tuple[bytes, int], ...]
    unfollow: tuple[tuple[bytes, int], ...]


def frame(event: Event) -> bytes:
    """``event`` with its length before it."""
    body = _encoder.encode(event)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


# --- errors and secrets ---------------------------------------------------------------------------------------

_refused_decoder = msgspec.msgpack.Decoder(tuple[Refusal, str])
_text_decoder = msgspec.msgpack.Decoder(str)


def encode_error(error: MetadataError) -> tuple[Outcome, bytes]:
    """``error`` as data."""
    if isinstance(error, Refused):
        return Outcome.REFUSED, _encoder.encode((error.refusal, str(error)))
    outcome = Outcome.FENCED if isinstance(error, Fenced) else Outcome.UNAVAILABLE
    return outcome, _encoder.encode(str(error))


def decode_error(answer: Answer) -> MetadataError:
    """The error an answer carries; a defect of the service and a settled call are MetadataUnavailable here."""
    if answer.outcome is Outcome.REFUSED:
        return Refused(*_refused_decoder.decode(answer.value))
    message = _text_decoder.decode(answer.value)
    return Fenced(message) if answer.outcome is Outcome.FENCED else MetadataUnavailable(message)


def authorization(secret: str) -> str:
    """The Authorization header of a caller that knows ``secret``."""
    return f"Bearer {secret}"


def is_authorized(header: str, secret: str) -> bool:
    """Whether ``header`` shows ``secret``; takes as long whatever is wrong."""
    return hmac.compare_digest(header.encode("utf-8", "surrogateescape"), authorization(secret).encode())
