"""Three zones in steady state, as the kernel counts it: no connection carries a byte between two zones, whether it is a
producer's, a consumer's, or a read from another agent's cache."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster_world import ClusterWorld
from tests.support.recorded_client import RecordedClient, start_consumer, start_producer, wait_for_members
from tests.support.sockets import ZoneSockets, require_ss

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timed, pytest.mark.timeout(300)]

TOPIC, PARTITIONS = "zones", 6
STEADY_SECONDS = float(os.environ.get("TIDELOG_TEST_STEADY_SECONDS", "12"))
SETTLED_WITHIN_SECONDS = 60


@pytest.fixture
def world(tmp_path: Path) -> Iterator[ClusterWorld]:
    require_ss()
    with ClusterWorld(tmp_path, agents_per_zone=2, proxied=False) as running:
        yield running


def _clients(world: ClusterWorld, folder: Path) -> dict[str, list[RecordedClient]]:
    """In each zone a producer and a consumer of its own of two libraries, that are given every agent's address."""
    found: dict[str, list[RecordedClient]] = {}
    for zone in world.spec.zones:
        found[zone] = []
        for library in ("confluent", "aiokafka"):
            name = f"{library}-{zone}"
            client_id = f"{name},zone={zone}"
            bootstrap = world.bootstrap()
            if library == "confluent":
                found[zone].append(
                    start_producer(
                        folder, f"p-{name}", bootstrap, TOPIC, PARTITIONS, client_id=client_id, rate=60, value_bytes=500
                    )
                )
                found[zone].append(start_consumer(folder, f"c-{name}", bootstrap, TOPIC, name, client_id=client_id))
            else:
                found[zone].append(
                    start_consumer(folder, f"c-{name}", bootstrap, TOPIC, name, client="aiokafka", client_id=client_id)
                )
    return found


def _crossed(world: ClusterWorld) -> int:
    """What agents counted, of clients and peers."""
    return sum(agent["load"]["cross_zone_bytes_total"] for agent in world.page()["agents"])


def test_no_socket_carries_a_byte_between_zones(world: ClusterWorld, tmp_path: Path) -> None:
    world.create_topic(TOPIC, PARTITIONS)
    clients = _clients(world, tmp_path)
    try:
        for client in (one for of_zone in clients.values() for one in of_zone):
            if client.recording.group is not None:
                wait_for_members([client], PARTITIONS, 60)
        zones = {client.process.pid: zone for zone, of_zone in clients.items() for client in of_zone}
        agents = {agent.pid: agent.plan.zone for agent in world.agents}
        _wait_until_settled(zones | agents)

        crossed = _crossed(world)
        polled = {client.name: client.follow().polled_count for of_zone in clients.values() for client in of_zone}
        sockets = ZoneSockets(zones | agents)
        deadline = time.monotonic() + STEADY_SECONDS
        while time.monotonic() < deadline:
            time.sleep(0.25)
            sockets.look()
        time.sleep(2.5)  # heartbeats tell the last of it

        names = {agent.pid: agent.name for agent in world.agents}
        names |= {client.process.pid: client.name for of_zone in clients.values() for client in of_zone}
        peers = {pair: count for pair, count in sockets.within.items() if all(pid in agents for pid in pair)}
        print(f"within zones: {sum(sockets.within.values()):,} bytes, between agents {sum(peers.values()):,}")
        assert not sockets.across, {f"{names[a]} and {names[b]}": count for (a, b), count in sockets.across.items()}
        assert _crossed(world) == crossed, "and agents count the same"
        for zone, of_zone in clients.items():
            assert sum(count for pair, count in peers.items() if agents[pair[0]] == zone) > 10_000, (
                f"zone {zone}'s agents share what they read"
            )
            for client in of_zone:
                pid = client.process.pid
                carried = sum(count for pair, count in sockets.within.items() if pid in pair)
                assert carried > STEADY_SECONDS * 60 * 500 * 0.5, f"{client.name} was at work: {carried}"
                if client.recording.group is not None:
                    read = client.follow().polled_count - polled[client.name]
                    assert read > STEADY_SECONDS * 3 * 60 * 0.5, f"{client.name} reads what all zones write: {read}"
    finally:
        for client in (one for of_zone in clients.values() for one in of_zone):
            client.kill()


def _wait_until_settled(zones: dict[int, str]) -> None:
    """Clients ask anywhere first; wait until a second has passed without a byte across."""
    deadline = time.monotonic() + SETTLED_WITHIN_SECONDS
    while True:
        sockets = ZoneSockets(zones)
        for _ in range(12):
            time.sleep(0.5)
            sockets.look()
        if not sockets.across:
            return
        assert time.monotonic() < deadline, f"still crossing: {sockets.across}"
