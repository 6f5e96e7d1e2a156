"""Bytes that cross zones are counted on the connection they cross on; everybody else's are not."""

from __future__ import annotations

from agent.wire import apis
from metadata.agent_model import AgentLoad
from tests.support.agents import agent_info
from tests.support.connections import Gate, Harness, deliver, frame, heartbeat, produce, turns


def harness_in_zone_a(gate: Gate | None = None) -> Harness:
    harness = Harness({apis.HEARTBEAT: gate} if gate is not None else None)
    harness.agent.roster.zone = "a"
    harness.agent.roster.heard([agent_info(1, "a", group="group"), agent_info(2, "b", group="group")])
    return harness


def crossed(harness: Harness) -> dict[str, tuple[int, int]]:
    return {zone: (count.received, count.sent) for zone, count in harness.metrics.cross_zone.by_zone.items()}


def in_zone(request: bytes, client_id: bytes) -> bytes:
    """The same request of a client with another name."""
    body = request[8 + 4 + 2 + len(b"test") :]
    key, version, correlation = request[4:6], request[6:8], request[8:12]
    return frame(
        int.from_bytes(key, "big"), int.from_bytes(version, "big"), int.from_bytes(correlation, "big"), body, client_id
    )


async def test_a_producer_of_another_zone_is_counted_from_its_first_byte() -> None:
    harness = harness_in_zone_a()
    connection, transport = harness.connect()
    request = in_zone(produce(1), b"shipper,zone=b")
    deliver(connection, transport, request, piece=10)
    assert crossed(harness) == {"b": (len(request), 0)}
    harness.writer.settle()
    await turns()
    assert crossed(harness) == {"b": (len(request), len(transport.written))}
    assert len(transport.written) > 0
    assert harness.metrics.cross_zone.byte_count() == len(request) + len(transport.written)


async def test_a_request_that_is_not_produce_tells_the_zone_too_and_handlers_hear_it() -> None:
    gate = Gate()
    harness = harness_in_zone_a(gate)
    connection, transport = harness.connect()
    first = in_zone(heartbeat(1), b"x ws_az=b")
    deliver(connection, transport, first)
    await turns()
    assert gate.calls[0].zone == "b"
    gate.open()
    await turns()
    assert crossed(harness) == {"b": (len(first), len(transport.written))}
    second = in_zone(heartbeat(2), b"x ws_az=a")
    deliver(connection, transport, second)
    await turns()
    assert gate.calls[1].zone == "a", "a proxy may speak for several"
    before = crossed(harness)
    gate.open()
    deliver(connection, transport, in_zone(heartbeat(3), b"x ws_az=a"))
    await turns()
    assert crossed(harness) == before


async def test_clients_of_the_own_zone_or_of_none_cross_nothing() -> None:
    for client_id in (b"shipper,zone=a", b"shipper", b"\xff\xfe"):
        harness = harness_in_zone_a()
        connection, transport = harness.connect()
        deliver(connection, transport, in_zone(produce(1), client_id))
        harness.writer.settle()
        await turns()
        assert transport.answers()
        assert crossed(harness) == {}


async def test_zones_that_clients_make_up_share_one_label() -> None:
    harness = harness_in_zone_a()
    for number in range(50):
        connection, transport = harness.connect()
        deliver(connection, transport, in_zone(produce(1), b"zone=made-up-%d" % number))
    assert list(crossed(harness)) == ["unknown"]
    assert AgentLoad().cross_zone_bytes == 0
