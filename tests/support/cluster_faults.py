"""Faults of a whole cluster: its parts killed, frozen or cut off, healed again, and how soon everybody went on."""

from __future__ import annotations

import itertools
import random
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.integration.s3_servers import ENVIRONMENT, S3Server, free_port, versitygw_command
from tests.support.cluster_world import ClusterWorld
from tests.support.recorded_client import RecordedClient, start_consumer, start_producer, wait_for_members
from tests.support.recordings import Recordings, percentile
from tests.support.server_process import ServerProcess
from tests.tools.postgres import PostgresServer

PARTS = ("agent", "metadata", "postgres", "objects")
KINDS = ("kill", "freeze", "cut")
TOPIC, GROUP, PARTITIONS = "faults", "faults-group", 6
RATE = 60.0
"""Records a second of each producer: so little that the machine is not what is tested."""

Case = tuple[tuple[str, str], ...]
"""(part, kind) of one fault, or of two at the same time."""


def alone() -> list[Case]:
    """Every part with every kind."""
    return [((part, kind),) for part in PARTS for kind in KINDS]


def pairs() -> list[Case]:
    """Any two parts at the same time, with every mixture of kinds."""
    return [
        ((first, first_kind), (second, second_kind))
        for first, second in itertools.combinations(PARTS, 2)
        for first_kind, second_kind in itertools.product(KINDS, KINDS)
    ]


def some_pairs(rng: random.Random) -> list[Case]:
    """Any two parts at the same time, each with one mixture of kinds by chance."""
    chosen = {(one[0][0], one[1][0]): one for one in rng.sample(pairs(), len(pairs()))}
    return list(chosen.values())


def name_of(case: Case) -> str:
    return " + ".join(f"{kind} {part}" for part, kind in case)


class ObjectStore(ServerProcess):
    """versitygw on a port of its own that stays the same over restarts."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        address = f"127.0.0.1:{port}"
        super().__init__("objects", versitygw_command(folder, port), address, folder / "versitygw.log")
        self.server = S3Server("versitygw", f"http://{address}", folder / "buckets")

    def is_ready(self) -> bool:
        host, _, port = self.http.rpartition(":")
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one case. Seconds after healing until all producers and the group had gone on in every partition, None: not in
    time; ``acknowledged`` while it lasted."""

    case: Case
    fault_seconds: float
    producers_seconds: float | None
    group_seconds: float | None
    acknowledged: int
    longest_ms: float
    """The slowest acknowledgement of what was sent during the fault."""

    def within(self, seconds: float) -> bool:
        return all(one is not None and one <= seconds for one in (self.producers_seconds, self.group_seconds))

    def __str__(self) -> str:
        shown = ["-" if one is None else f"{one:.1f}" for one in (self.producers_seconds, self.group_seconds)]
        return (
            f"{name_of(self.case)} for {self.fault_seconds:g} s: {self.acknowledged} acknowledged meanwhile, producers "
            f"went on after {shown[0]} s, the group after {shown[1]} s, longest {self.longest_ms / 1000:.1f} s"
        )


class FaultyCluster:
    """Three zones on PostgreSQL and versitygw under load from recorded clients in every zone."""

    def __init__(self, folder: Path, postgres: PostgresServer, objects: ObjectStore) -> None:
        self._postgres = postgres
        self._objects = objects
        bucket = objects.server.new_bucket()
        self.world = ClusterWorld(
            folder,
            metadata_store=postgres.create_database(),
            storage=objects.server.url(bucket, "records"),
            settings={"s3.request_timeout_ms": "2000"},
            variables=ENVIRONMENT,
        )
        self._folder = folder
        self._turns = itertools.count()
        self.clients: list[RecordedClient] = []

    def __enter__(self) -> FaultyCluster:
        self.world.__enter__()
        try:
            self._start_load()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for client in self.clients:
            client.kill()
        self.world.close()

    def _start_load(self) -> None:
        world = self.world
        world.create_topic(TOPIC, PARTITIONS)
        for zone, client in zip("abc", ("confluent", "confluent", "aiokafka"), strict=True):
            near = [agent.address for agent in world.agents_of(zone)]
            far = [agent.address for agent in world.agents if agent.plan.zone != zone]
            bootstrap = ",".join([*near, *far])
            name = f"producer-{zone}"
            producer = start_producer(
                self._folder,
                name,
                bootstrap,
                TOPIC,
                PARTITIONS,
                client=client,
                client_id=f"{name},zone={zone}",
                rate=RATE,
            )
            name = f"consumer-{zone}"
            consumer = start_consumer(
                self._folder, name, bootstrap, TOPIC, GROUP, client=client, client_id=f"{name},zone={zone}"
            )
            self.clients += [producer, consumer]
        wait_for_members(self.clients, PARTITIONS, 60)
        self._wait_until_going(time.monotonic(), 30)

    def recordings(self) -> Recordings:
        """Of all clients, up to now."""
        return Recordings([client.follow() for client in self.clients])

    def inflict(self, case: Case, seconds: float, resume_within_s: float) -> Outcome:
        """One case, from its beginning until everybody has gone on, or ``resume_within_s`` after healing."""
        began = time.monotonic()
        heals = [self._begin(part, kind) for part, kind in case]
        time.sleep(seconds)
        before = len([0 for one in self.recordings().producers for at, *_ in one.acknowledged if at > began])
        for heal in heals:
            heal()
        healed = time.monotonic()
        resumed = self._wait_until_going(healed, resume_within_s)
        producers = [value for name, value in resumed.items() if name != GROUP]
        latencies = self.recordings().latencies_ms(began, healed)
        return Outcome(
            case,
            seconds,
            None if None in producers else max(value for value in producers if value is not None),
            resumed[GROUP],
            before,
            percentile(latencies, 1.0),
        )

    def _wait_until_going(self, since: float, within_s: float) -> dict[str, float | None]:
        while True:
            resumed = self.recordings().resumed(since)
            if None not in resumed.values() or time.monotonic() > since + within_s:
                return resumed
            for client in self.clients:
                assert client.process.poll() is None, f"{client.name} ended\n{client.log_tail()}"
            time.sleep(0.1)

    def _begin(self, part: str, kind: str) -> Callable[[], None]:
        """Do it; what undoes it. A cut leaves connections as they are, and lets nothing through."""
        if part == "postgres":
            return self._begin_at_postgres(kind)
        server: ServerProcess
        if part == "agent":
            server = self.world.agents[next(self._turns) % len(self.world.agents)]
        else:
            server = self._objects if part == "objects" else self.world.leader()
        if kind == "kill":
            server.kill()
            return server.spawn
        if kind == "freeze":
            server.freeze()
            return server.thaw
        if part == "objects":
            return self._cut(">objects")
        return self._cut(f">{server.name}", f"{server.name}>")

    def _begin_at_postgres(self, kind: str) -> Callable[[], None]:
        if kind == "kill":
            self._postgres.kill()
            return self._postgres.start
        if kind == "freeze":
            self._postgres.freeze()
            return self._postgres.thaw
        return self._cut(">postgres")

    def _cut(self, *names: str) -> Callable[[], None]:
        links = {link.name: link for name in names for link in self.world.links(name)}
        for link in links.values():
            link.blackhole()

        def heal() -> None:
            for link in links.values():
                link.pass_()

        return heal

    def finish_and_judge(self) -> None:
        """Stop the load in order, read everything once more, and judge all that was recorded.

        :raises AssertionError: something contradicts the promises, or a client did not end well.
        """
        producers = [client for client in self.clients if client.recording.group is None]
        consumers = [client for client in self.clients if client.recording.group is not None]
        for client in producers:
            client.ask_to_finish()
        for client in producers:
            client.finish(150)
        log = self.world.read_log(TOPIC, PARTITIONS)
        ends = dict.fromkeys(range(PARTITIONS), 0)
        for partition, offset in log:
            ends[partition] = max(ends[partition], offset + 1)
        deadline = time.monotonic() + 60
        while (unread := self.recordings().unread(GROUP, ends)) > 0 and time.monotonic() < deadline:
            time.sleep(0.2)
        for client in consumers:
            client.ask_to_finish()
        for client in consumers:
            client.finish(60)
        recordings = self.recordings()
        violations = recordings.violations(log)
        print(f"{recordings.counts()}, {len(log)} in the log, {unread} unread, {len(violations)} violations")
        assert not violations, "\n".join(map(str, violations[:20]))
        failed = [f"{one.name}: {one.failed[:3]}" for one in recordings.producers if one.failed]
        assert not failed, f"every record is acknowledged in the end: {failed}"


def as_table(outcomes: Sequence[Outcome]) -> str:
    """Markdown, for docs/cluster-faults.md."""
    lines = [
        "| fault | acknowledged meanwhile | producers went on after | the group went on after |",
        "|---|---:|---:|---:|",
    ]
    for outcome in outcomes:
        seconds = [
            "not in time" if one is None else f"{one:.1f} s"
            for one in (outcome.producers_seconds, outcome.group_seconds)
        ]
        lines.append(f"| {name_of(outcome.case)} | {outcome.acknowledged:,} | {seconds[0]} | {seconds[1]} |")
    return "\n".join(lines)
