"""A Kafka client's connections and its idea of the cluster, over the simulated network."""

from __future__ import annotations

import asyncio
import datetime
import functools
import importlib
import io
from collections import deque
from collections.abc import Sequence
from typing import Any

from kio.serial import entity_reader, entity_writer

from tests.simulation.loop import SimProcess
from tests.simulation.network import Network
from tests.simulation.sockets import Disconnected, Link

KAFKA_PORT = 9092
TOPIC = "log"


@functools.cache
def _codec(request_class: type[Any]) -> tuple[Any, Any, Any, Any]:
    """Writers of the header and the request; readers of the answer's header and the answer."""
    module = request_class.__module__.removesuffix(".request") + ".response"
    answer_class = getattr(importlib.import_module(module), request_class.__name__.removesuffix("Request") + "Response")
    return (
        entity_writer(request_class.__header_schema__),
        entity_writer(request_class),
        entity_reader(answer_class.__header_schema__),
        entity_reader(answer_class),
    )


@functools.cache
def schema(api: str, version: int) -> Any:
    """kio's requests of one API and version."""
    return importlib.import_module(f"kio.schema.{api}.v{version}.request")


def milliseconds(value: int) -> datetime.timedelta:
    return datetime.timedelta(milliseconds=value)


class Connection:
    """Requests answered in order on one link."""

    def __init__(self, link: Link, client_id: str) -> None:
        self._link = link
        self._client_id = client_id
        self._sent = 0
        self._waiting: deque[tuple[int, Any, asyncio.Future[Any]]] = deque()
        self._reader = asyncio.get_running_loop().create_task(self._read(), name="client-reader")
        self.broken: str | None = None

    def send(self, request: Any) -> asyncio.Future[Any]:
        """The answer; fails with Disconnected."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.broken is not None:
            answer.set_exception(Disconnected(self.broken))
            return answer
        write_header, write_request, _, _ = _codec(type(request))
        self._sent += 1
        buffer = io.BytesIO()
        write_header(
            buffer,
            request.__header_schema__(
                request_api_key=request.__api_key__,
                request_api_version=request.__version__,
                correlation_id=self._sent,
                client_id=self._client_id,
            ),
        )
        write_request(buffer, request)
        self._waiting.append((self._sent, type(request), answer))
        try:
            self._link.send(buffer.getvalue())
        except Disconnected as error:
            self._fail(str(error))
        return answer

    async def _read(self) -> None:
        try:
            while True:
                payload = await self._link.receive()
                correlation_id, request_class, answer = self._waiting.popleft()
                _, _, read_header, read_answer = _codec(request_class)
                header, position = read_header(payload, 0)
                assert header.correlation_id == correlation_id, "answers out of order"
                value, _ = read_answer(payload, position)
                if not answer.done():
                    answer.set_result(value)
        except Disconnected as error:
            self._fail(str(error))

    def _fail(self, why: str) -> None:
        self.broken = self.broken or why
        while self._waiting:
            answer = self._waiting.popleft()[2]
            if not answer.done():
                answer.set_exception(Disconnected(why))
                answer.exception()

    def close(self) -> None:
        self._link.close()
        self._fail("closed by the client")


class Cluster:
    """What one client knows of the cluster: brokers, leaders, and its connections to them."""

    def __init__(self, network: Network, process: SimProcess, bootstrap: Sequence[str]) -> None:
        self.network = network
        self.client_id = f"zone={process.zone},name={process.name}"
        self._bootstrap = list(bootstrap)
        self._next = 0
        self._connections: dict[str, Connection] = {}
        self._brokers: dict[int, str] = {}
        self._leaders: dict[int, int] = {}

    async def ask(self, host: str, request: Any, seconds: float) -> Any:
        """:raises Disconnected: also when there is no answer in time."""
        connection = await self.connection(host)
        return await self.answer(host, connection.send(request), seconds)

    async def answer(self, host: str, answer: asyncio.Future[Any], seconds: float) -> Any:
        """Wait for it; a connection without an answer in time is closed, as librdkafka does.

        :raises Disconnected:
        """
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            self.drop(host)
            raise Disconnected(f"{host} did not answer for {seconds:g} s") from None

    async def connection(self, host: str) -> Connection:
        """:raises Disconnected:"""
        known = self._connections.get(host)
        if known is not None and known.broken is None:
            return known
        made = Connection(await Link.connect(self.network, host, KAFKA_PORT), self.client_id)
        self._connections[host] = made
        return made

    def drop(self, host: str) -> None:
        connection = self._connections.pop(host, None)
        if connection is not None:
            connection.close()

    def close(self) -> None:
        for host in list(self._connections):
            self.drop(host)

    async def refresh(self) -> None:
        """Learn the leaders from the next broker that answers. :raises Disconnected: this one did not."""
        hosts = list(dict.fromkeys([*self._brokers.values(), *self._bootstrap]))
        host = hosts[self._next % len(hosts)]
        self._next += 1
        module = schema("metadata", 9)
        answer = await self.ask(
            host,
            module.MetadataRequest(
                topics=(module.MetadataRequestTopic(name=TOPIC),),
                allow_auto_topic_creation=False,
                include_cluster_authorized_operations=False,
                include_topic_authorized_operations=False,
            ),
            5.0,
        )
        self._next -= 1
        self._brokers = {int(broker.node_id): str(broker.host) for broker in answer.brokers}
        for topic in answer.topics:
            if topic.error_code == 0:
                self._leaders = {
                    int(partition.partition_index): int(partition.leader_id) for partition in topic.partitions
                }

    async def any_host(self) -> str:
        """Some broker that answered. :raises Disconnected:"""
        await self.refresh()
        return next(iter(self._brokers.values()))

    async def leader(self, partition: int) -> str:
        """The host to ask for a partition. :raises Disconnected:"""
        if partition not in self._leaders or self._leaders[partition] not in self._brokers:
            await self.refresh()
        host = self._brokers.get(self._leaders.get(partition, -1))
        if host is None:
            raise Disconnected(f"partition {partition} has no leader yet")
        return host

    def doubt(self, partition: int) -> None:
        """Ask anew who leads it."""
        self._leaders.pop(partition, None)
