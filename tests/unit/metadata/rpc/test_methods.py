"""The table of calls against the port it is the wire format of."""

from __future__ import annotations

import inspect

import msgspec
import pytest

from metadata.client import MetadataClient
from metadata.model import Refusal
from metadata.rpc.client import RemoteMetadata
from metadata.rpc.methods import FIND_EXTENTS, HEARTBEAT, METHODS, Pace
from metadata.rpc.wire import Head
from metadata.service import MetadataService

HEAD = Head(bytes(16), 0, 1, 0, 1, 100)
CALLS = {
    name
    for name in dir(MetadataClient)
    if not name.startswith("_") and inspect.iscoroutinefunction(getattr(MetadataClient, name))
}


def test_the_table_has_every_call_of_the_port() -> None:
    assert len(CALLS) > 20
    assert set(METHODS) == CALLS - {"subscribe"}


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("implementation", [RemoteMetadata, MetadataService])
def test_both_ends_take_the_arguments_in_the_ports_order(implementation: type, name: str) -> None:
    def parameters(of: type) -> list[str]:
        return list(inspect.signature(getattr(of, name)).parameters)

    assert parameters(implementation)[: len(parameters(MetadataClient))] == parameters(MetadataClient)


def test_calls_that_only_look_are_the_ones_not_kept() -> None:
    looking = {name for name, method in METHODS.items() if not method.mutating}
    assert looking == {name for name in METHODS if name.startswith(("find_", "describe_", "list_", "fetch_"))} | {
        "partition_offsets",
        "partition_bytes",
        "group_lags",
        "deleted_topics",
    }
    assert {name for name, method in METHODS.items() if method.pace is Pace.PARKED} == {"join_group", "sync_group"}


def test_the_calls_that_are_remembered_are_those_the_service_takes_an_id_for() -> None:
    taking = {name for name in METHODS if "call_id" in inspect.signature(getattr(MetadataService, name)).parameters}
    assert {name for name, method in METHODS.items() if method.remembered} == taking
    assert len(taking) == 9


def test_arguments_and_answers_travel() -> None:
    arguments = ("group", 3, "member", None)
    assert HEARTBEAT.decode_request(HEARTBEAT.encode_request(HEAD, arguments)) == (HEAD, arguments)
    for answer in (None, Refusal.UNKNOWN_MEMBER_ID):
        assert HEARTBEAT.decode_answer(msgspec.Raw(msgspec.msgpack.encode(answer))) == answer


def test_text_that_is_no_utf8_is_refused() -> None:
    body = HEARTBEAT.encode_request(HEAD, ("group", 3, "member", None)).replace(b"member", b"\xff" * 6)
    with pytest.raises(ValueError, match="utf-8"):
        HEARTBEAT.decode_request(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode([HEAD]),
        msgspec.msgpack.encode([HEAD, []]),
        msgspec.msgpack.encode([HEAD, [["not a query"]]]),
        msgspec.msgpack.encode([["short", 0, 1, 0, 1, 100], [[]]]),
        msgspec.msgpack.encode([[bytes(16), 0, -1, 0, 1, 100], [[]]]),
        b"\x92" + msgspec.msgpack.encode(HEAD) + b"\x92\x90" + b"\x91" * 100_000 + b"\xc0",
        msgspec.msgpack.encode([HEAD, [[[b"topic", "0", 0, 0]]]]),
    ],
)
def test_a_body_that_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        FIND_EXTENTS.decode_request(body)
