"""Requests from bytes and answers to bytes, for every API but the two hand-written ones (Produce, Fetch's answer).

Requests are decoded by kio's native reader into the entity of their exact version. Nothing a peer sends provokes
anything but :class:`DecodeError`; leftovers after a body are ignored (librdkafka sends three bytes too many).

A version's schemas are loaded and compiled with its first request: 2 to 10 ms, once. All that are served would be half
a second and 13 MB, of which a fleet's few kinds of client need little.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final

from kio.index import load_request_schema, load_response_schema
from kio.serial import entity_reader
from kio.static.constants import EntityType

from agent.wire.apis import API_BY_KEY, API_VERSIONS
from agent.wire.encode import NameTree, Writer, entity_encoder, name_tree
from agent.wire.errors import DecodeError, EncodeError
from agent.wire.frames import FrameBuffer
from agent.wire.schema import EntityPlan, entity_plan, versions_of
from agent.wire.varint import skip_tags
from agent.wire.walk import checked

BODY_BYTES_MAX: Final = 2 * 1024 * 1024
"""Largest body of a request other than Produce. Decoding multiplies bytes into objects; Kafka's own largest such
requests (group assignments, offset commits) end at the 1 MB its coordinator can store."""
_FIXED_HEADER: Final = struct.Struct(">hhih")
_PREFIX: Final = struct.Struct(">ii")


@dataclass(frozen=True, slots=True)
class EncodedResponse:
    """An answer a handler encoded itself: what follows the response header, in pieces that are sent as they are.

    The chunks are borrowed until ``release`` is called: once, after the last byte has left the process or the
    connection is gone. Until then the lender counts them against the budget. ``byte_length`` is their sum.
    """

    chunks: Sequence[bytes | bytearray | memoryview]
    byte_length: int
    release: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class RequestHeader:
    """A request's header; ``body_start`` is where its body begins in the buffer it was read from."""

    api_key: int
    api_version: int
    correlation_id: int
    client_id: str | None
    body_start: int


def decode_header(buffer: FrameBuffer, start: int, end: int) -> RequestHeader:
    """The header of the request that lies in ``buffer`` from ``start`` to ``end``.

    Only for API keys that are served. Unknown tagged fields are skipped.

    :raises DecodeError: it is cut short, or its client id is not UTF-8.
    """
    position = start + _FIXED_HEADER.size
    if position > end:
        raise DecodeError("a request is shorter than its header")
    api_key, api_version, correlation_id, client_id_length = _FIXED_HEADER.unpack_from(buffer, start)
    client_id = None
    if client_id_length >= 0:
        client_id_start = position
        position += client_id_length
        if position > end:
            raise DecodeError("a client id is longer than its request")
        try:
            client_id = str(buffer[client_id_start:position], "utf-8")
        except UnicodeDecodeError:
            raise DecodeError("a client id is not UTF-8") from None
    if api_version >= API_BY_KEY[api_key].flexible_from:
        position = skip_tags(buffer, position)
    if position > end:
        raise DecodeError("a header is longer than its request")
    return RequestHeader(api_key, api_version, correlation_id, client_id, position)


def client_id_of(buffer: FrameBuffer, start: int, end: int) -> str | None:
    """The client id of a request that nobody else reads it from; None when it has none that is text."""
    try:
        return decode_header(buffer, start, end).client_id
    except DecodeError:
        return None


def decode_request(api_key: int, api_version: int, body: bytes) -> Any:
    """The kio entity of a served request's body.

    :raises DecodeError: it is not one, or it is larger than any client's.
    """
    if len(body) > BODY_BYTES_MAX:
        raise DecodeError(f"a {API_BY_KEY[api_key].name} request of {len(body)} bytes")
    read, plan = _request_decoder(api_key, api_version)
    body = checked(body, plan)
    try:
        entity, _ = read(body, 0)
    except Exception as error:  # whatever the native reader makes of hostile bytes, it is the peer's fault
        raise DecodeError(f"not a {API_BY_KEY[api_key].name} request v{api_version}: {error}") from None
    return entity


@cache
def _request_decoder(api_key: int, api_version: int) -> tuple[Callable[[bytes, int], tuple[Any, int]], EntityPlan]:
    schema = load_request_schema(api_key, api_version)
    return entity_reader(schema), entity_plan(schema)


@cache
def _response_encoder(api_key: int, api_version: int) -> Writer:
    plan = entity_plan(load_response_schema(api_key, api_version))
    return entity_encoder(plan, partial(_response_names, api_key))


@cache
def _response_names(api_key: int) -> NameTree:
    versions = versions_of(api_key, EntityType.response)
    return name_tree([entity_plan(load_response_schema(api_key, version)) for version in versions])


def response_prefix(api_key: int, api_version: int, correlation_id: int, body_bytes: int) -> bytes:
    """The length and the response header that go before a body of ``body_bytes``."""
    if api_version >= API_BY_KEY[api_key].flexible_from and api_key != API_VERSIONS:
        return _PREFIX.pack(body_bytes + 5, correlation_id) + b"\x00"
    return _PREFIX.pack(body_bytes + 4, correlation_id)


def encode_response(api_key: int, api_version: int, correlation_id: int, body: Mapping[str, Any]) -> bytes:
    """A whole response frame. ``body`` may carry fields of other versions; what it leaves out gets its default.

    :raises EncodeError: a name no version has, a value that does not fit its field, or an answer far too long.
    """
    out = bytearray()
    try:
        _response_encoder(api_key, api_version)(out, body)
    except EncodeError:
        raise
    except (struct.error, TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        raise EncodeError(f"{API_BY_KEY[api_key].name} v{api_version}: {error}") from error
    return response_prefix(api_key, api_version, correlation_id, len(out)) + out


@cache
def has_error_code(api_key: int, api_version: int) -> bool:
    """Whether an answer of this version has one error code for the whole request."""
    plan = entity_plan(load_response_schema(api_key, api_version))
    return any(field.name == "error_code" for field in plan.fields)
