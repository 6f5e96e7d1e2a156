"""A whole cluster and its clients in one loop: built from a seed, broken for a while, healed, and judged."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import structlog

from tests.simulation.bucket_truth import check_bucket
from tests.simulation.consumers import GroupMember, PartitionReader, SimConsumer, fetch_offset
from tests.simulation.database import Database, DatabaseWeather
from tests.simulation.kafka import TOPIC, Cluster, milliseconds, schema
from tests.simulation.loop import SimClock, SimLoop, SimProcess, Stuck
from tests.simulation.machine import DELETION_GRACE_MS, Machine, build_agent, build_metadata, simulated
from tests.simulation.nemesis import Nemesis
from tests.simulation.network import Network, NetworkWeather
from tests.simulation.object_store import Bucket, BucketWeather
from tests.simulation.producers import SimProducer
from tests.simulation.referee import Referee
from tests.simulation.sockets import Disconnected
from tests.simulation.trace import Trace
from tests.support.history import Violation

PARTITIONS = 2
GROUP = "readers"
START_SECONDS_MAX = 60.0
HEAL_SECONDS_MAX = 90.0
"""After the heal everybody must have got somewhere within this."""
BROKEN_SECONDS_MAX = 10.0
"""The same when something was wrong before: more of it is not worth the time."""


@dataclass(slots=True)
class Outcome:
    """One seed's result."""

    seed: int
    violations: list[Violation]
    virtual_seconds: float
    steps: int
    acknowledged: int
    reads: int
    commits: int
    faults: int
    digest: str
    trace: Trace


class World:
    """One seed's cluster. :meth:`run` is its whole life."""

    def __init__(self, seed: int, echo: bool = False) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.loop = SimLoop()
        self.trace = Trace(echo)
        self.trace.loop = self.loop
        self.network = Network(self.loop, random.Random(self.rng.getrandbits(64)), self.trace)
        clock = SimClock(self.loop, None)
        self.bucket = Bucket(self.loop, random.Random(self.rng.getrandbits(64)), clock, self.trace)
        self.database = Database(self.loop, random.Random(self.rng.getrandbits(64)), self.trace)
        self.referee = Referee(self.database, self.bucket, self.trace, DELETION_GRACE_MS / 1000)
        self.metadata: list[Machine] = []
        self.agents: list[Machine] = []
        self.clients: list[SimProcess] = []
        self.producers: list[SimProducer] = []
        self.consumers: list[SimConsumer] = []
        self.members: list[GroupMember] = []
        self.nemesis = Nemesis(self, random.Random(self.rng.getrandbits(64)))
        self._zones = ["a", "b", "c"][: self.rng.choice((1, 2, 3, 3))]
        self._tasks: list[asyncio.Task[Any]] = []

    # --- building -----------------------------------------------------------------------------------------

    def _build(self) -> None:
        rng = self.rng
        names = [f"m{number}" for number in range(2)]
        for number, name in enumerate(names):
            zone = self._zones[number % len(self._zones)]
            self.metadata.append(Machine(self, name, zone, build_metadata))
        for number in range(rng.choice((2, 3, 3))):
            zone = self._zones[number % len(self._zones)]
            self.agents.append(Machine(self, f"agent{number}", zone, build_agent(names)))
        for machine in (*self.metadata, *self.agents):
            machine.start()

    def _client(self, name: str) -> tuple[SimProcess, Cluster, random.Random]:
        process = SimProcess(name, name, self.rng.choice(self._zones))
        self.network.processes[name] = process
        self.clients.append(process)
        hosts = [machine.host for machine in self.agents]
        self.rng.shuffle(hosts)
        return process, Cluster(self.network, process, hosts), random.Random(self.rng.getrandbits(64))

    def _start_clients(self) -> None:
        for name, idempotent in (("idempotent", True), ("plain", False)):
            process, cluster, rng = self._client(name)
            producer = SimProducer(name, cluster, rng, self.referee, PARTITIONS, idempotent)
            self.producers.append(producer)
            self._run_client(process, producer.run())
        process, cluster, rng = self._client("tail")
        consumer = SimConsumer("tail", cluster, rng, self.referee, PARTITIONS)
        self.consumers.append(consumer)
        self._run_client(process, consumer.run())
        for number in range(2):
            process, cluster, rng = self._client(f"member{number}")
            member = GroupMember(f"member{number}", GROUP, cluster, rng, self.referee, PARTITIONS)
            self.members.append(member)
            self._run_client(process, member.run())

    def _run_client(self, process: SimProcess, work: Any) -> None:
        self._tasks.append(self.loop.start_in(process, f"client {process}", work))

    # --- living -------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """The whole life of this world."""
        asyncio._set_running_loop(None)
        with simulated(self):
            try:
                self.loop.run_until_complete(self._live())
            except Stuck as error:
                self.referee.violation("stuck", str(error))
            except Exception as error:
                self.referee.violation("client failed", repr(error))
        for unexpected in self.loop.unexpected:
            self.referee.violation("failed inside", unexpected)
        outcome = Outcome(
            self.seed,
            list(self.referee.violations),
            self.loop.time(),
            self.loop.steps,
            self.referee.acknowledged_batches,
            self.referee.reads,
            sum(member.commits for member in self.members),
            self.nemesis.done,
            self.trace.digest(),
            self.trace,
        )
        self.trace.loop = None
        self._forget()
        return outcome

    async def _live(self) -> None:
        self._build()
        await self._as_client("admin", self._create_topic())
        self._start_clients()
        await self.nemesis.run()
        self.trace.note("world", "heals")
        self.heal()
        await self._progress()
        for producer in self.producers:
            producer.stopping = True
        await self._wait("producers finish", lambda: all(task.done() for task in self._tasks[: len(self.producers)]))
        await self._as_client("judge", self._read_everything())
        for client in (*self.consumers, *self.members):
            client.stopping = True
        await self._wait("consumers finish", lambda: all(task.done() for task in self._tasks))
        for task in self._tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                self.referee.violation("client failed", repr(task.exception()))
        await self._wait("memory is given back", lambda: not self.held_memory(), self.held_memory)
        check_bucket(self)
        self.referee.judge()

    def heal(self) -> None:
        """No more faults; everything that died is started again. What is frozen thaws by itself."""
        self.network.weather = NetworkWeather()
        self.bucket.weather = BucketWeather()
        self.database.weather = DatabaseWeather()
        self.network.mend()
        for machine in (*self.metadata, *self.agents):
            machine.start()

    async def _progress(self) -> None:
        """Everybody gets somewhere, or the referee hears of it."""
        acknowledged = {producer.name: self._acknowledged_by(producer.name) for producer in self.producers}
        commits = sum(member.commits for member in self.members)

        def missing() -> list[str]:
            stuck = [name for name, count in acknowledged.items() if self._acknowledged_by(name) <= count]
            if sum(member.commits for member in self.members) <= commits:
                stuck.append(GROUP)
            return stuck

        await self._wait("progress", lambda: not missing(), missing)

    def _acknowledged_by(self, name: str) -> int:
        return sum(record.producer == name for _, _, record in self.referee.history._acknowledged)

    def _patience_seconds(self) -> float:
        return BROKEN_SECONDS_MAX if self.referee.violations else HEAL_SECONDS_MAX

    async def _wait(self, what: str, done: Callable[[], bool], who: Callable[[], Any] = lambda: "") -> None:
        patience = self._patience_seconds()
        deadline = self.loop.time() + patience
        while not done():
            if self.loop.time() > deadline:
                self.referee.violation("no progress", f"{what}: {who()} for {patience:g} s after the heal")
                return
            await asyncio.sleep(0.25)

    # --- what the world itself asks -----------------------------------------------------------------------

    async def _as_client(self, name: str, work: Any) -> None:
        process = SimProcess(name, name, self._zones[0])
        self.network.processes[name] = process
        task = self.loop.start_in(process, name, work)
        await asyncio.wait([task])
        task.result()

    async def _create_topic(self) -> None:
        module = schema("create_topics", 5)
        cluster = self._own_cluster()
        request = module.CreateTopicsRequest(
            topics=(
                module.CreatableTopic(
                    name=TOPIC, num_partitions=PARTITIONS, replication_factor=-1, assignments=(), configs=()
                ),
            ),
            timeout=milliseconds(10_000),
        )
        while self.loop.time() < START_SECONDS_MAX:
            with contextlib.suppress(Disconnected):
                answer = await cluster.ask(await cluster.any_host(), request, 10.0)
                if int(answer.topics[0].error_code) in (0, 36):
                    cluster.close()
                    return
            await asyncio.sleep(0.2)
        raise Stuck("the cluster does not even start")

    async def _read_everything(self) -> None:
        """One read of all partitions from the first offset to the durable end, and of the group's offsets."""
        cluster = self._own_cluster()
        for partition in range(PARTITIONS):
            reader = PartitionReader("judge", cluster, self.referee, partition, 0)
            reader.final = True
            deadline = self.loop.time() + self._patience_seconds()
            while reader.offset < self.referee.durable_high_watermark(partition):
                await reader.step(self.rng, 100)
                if self.loop.time() > deadline:
                    self.referee.violation("no progress", f"reading partition {partition} ends at {reader.offset}")
                    break
        await self._read_group(cluster)
        cluster.close()

    async def _read_group(self, cluster: Cluster) -> None:
        for partition in range(PARTITIONS):
            for _ in range(50):
                floor = self.referee.history.committed_floor(GROUP, partition)
                try:
                    host = await cluster.any_host()
                    offset = await fetch_offset(lambda request: cluster.ask(host, request, 5.0), GROUP, partition)  # noqa: B023
                except Disconnected:
                    await asyncio.sleep(0.2)
                    continue
                self.referee.committed_answer(GROUP, partition, floor, offset)
                break

    def _own_cluster(self) -> Cluster:
        from tests.simulation.loop import PROCESS

        process = PROCESS.get()
        assert process is not None
        return Cluster(self.network, process, [machine.host for machine in self.agents])

    def held_memory(self) -> list[str]:
        """Invariant 8: what agents still hold for clients that have their answers, or hold over the budget."""
        found = []
        for machine in self.agents:
            process = machine.server
            if process is None or process._agent is None:
                continue
            budget = process._agent.budget
            held = {name: budget.by_purpose[name] for name in ("segment", "response") if budget.by_purpose[name]}
            if held or budget.held_bytes > budget.limit_bytes:
                found.append(f"{machine.host} holds {held}, {budget.held_bytes} bytes in all")
        return found

    def _forget(self) -> None:
        """Let go of everything."""
        loop = self.loop
        with silence(loop):
            self._tasks.clear()
            loop.graveyard.clear()
            loop._timers.clear()
            loop._ready.clear()  # type: ignore[attr-defined]
            self.__dict__.clear()


@contextlib.contextmanager
def silence(loop: SimLoop) -> Iterator[None]:
    """Nobody hears of what ends half-way: it still has its ``finally`` blocks, and they find ``loop``."""
    hook, config = sys.unraisablehook, structlog.get_config()
    sys.unraisablehook = lambda _: None
    structlog.configure(processors=[_drop], cache_logger_on_first_use=False)
    asyncio._set_running_loop(loop)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        asyncio._set_running_loop(None)
        structlog.configure(**config)
        sys.unraisablehook = hook


def collect_quietly() -> None:
    """Collect what is left of worlds that have ended."""
    loop = SimLoop()
    with silence(loop):
        gc.collect()
        if loop._ready or loop._timers:  # type: ignore[attr-defined]
            loop._ready.clear()  # type: ignore[attr-defined]
            loop._timers.clear()
            gc.collect()


def _drop(*_: Any) -> Any:
    raise structlog.DropEvent


def run_seed(seed: int, echo: bool = False) -> Outcome:
    """Build the world of ``seed``, live it, judge it."""
    was_enabled = gc.isenabled()
    gc.disable()  # when something is collected is no part of the seed
    try:
        return World(seed, echo).run()
    finally:
        collect_quietly()
        if was_enabled:
            gc.enable()
