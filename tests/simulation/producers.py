"""Producers that retry as librdkafka does: idempotent ones with up to five batches under way, plain ones with one."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass

from tests.simulation.kafka import TOPIC, Cluster, milliseconds, schema
from tests.simulation.referee import Referee
from tests.simulation.sockets import Disconnected
from tests.support.batches import build_batch
from tests.support.history import Record

REQUEST_SECONDS = 6.0
IN_FLIGHT = 4
RETRIABLE = frozenset({-1, 3, 5, 6, 7, 9, 13, 14, 15, 16, 19, 20, 41, 56, 73, 74})
OUT_OF_ORDER = 45


@dataclass(slots=True)
class _Batch:
    records: list[Record]
    base_sequence: int
    data: bytes = b""


class SimProducer:
    """One producer of every partition. Records are numbered through; each partition's are sent in order."""

    def __init__(
        self, name: str, cluster: Cluster, rng: random.Random, referee: Referee, partitions: int, idempotent: bool
    ) -> None:
        self.name = name
        self._cluster = cluster
        self._rng = rng
        self._referee = referee
        self._partitions = partitions
        self._idempotent = idempotent
        self._producer_id = -1
        self._producer_epoch = -1
        self._next_number = 0
        self.stopping = False
        self.pause_seconds = 0.4
        """Between two rounds, on average."""
        self.failures: Counter[str] = Counter()

    async def run(self) -> None:
        """Until :attr:`stopping`, and everything sent was acknowledged."""
        if self._idempotent:
            self._referee.history.idempotent(self.name)
            await self._get_id()
        await asyncio.gather(*(self._produce(partition) for partition in range(self._partitions)))

    async def _get_id(self) -> None:
        module = schema("init_producer_id", 4)
        request = module.InitProducerIdRequest(transactional_id=None, transaction_timeout=milliseconds(60_000))
        while True:
            try:
                answer = await self._cluster.ask(await self._cluster.any_host(), request, REQUEST_SECONDS)
                if answer.error_code == 0:
                    self._producer_id, self._producer_epoch = int(answer.producer_id), int(answer.producer_epoch)
                    self._referee.producer_id_granted(self.name, self._producer_id)
                    return
            except Disconnected:
                pass
            await asyncio.sleep(self._rng.uniform(0.1, 0.3))

    async def _produce(self, partition: int) -> None:
        window: list[_Batch] = []
        sequence = 0
        while window or not self.stopping:
            if not self.stopping:
                for _ in range(self._rng.randint(1, IN_FLIGHT if self._idempotent else 1)):
                    if len(window) < (IN_FLIGHT if self._idempotent else 1):
                        batch = self._batch(partition, sequence)
                        sequence += len(batch.records)
                        window.append(batch)
            try:
                unsettled = await self._round(partition, window)
            except Disconnected as error:
                self.failures[str(error)] += 1
                unsettled = window
            if unsettled is None:
                return  # the referee has been told
            if unsettled:
                self._cluster.doubt(partition)
                await asyncio.sleep(self._rng.uniform(0.05, 0.3))
            window = unsettled
            await asyncio.sleep(self._rng.expovariate(1 / self.pause_seconds))

    def _batch(self, partition: int, sequence: int) -> _Batch:
        records = []
        for _ in range(self._rng.randint(1, 4)):
            records.append(Record(self.name, self._next_number))
            self._next_number += 1
        for record in records:
            self._referee.history.sent(record, partition)
        batch = _Batch(records, sequence)
        batch.data = build_batch(
            [record.encode() for record in records],
            producer_id=self._producer_id,
            producer_epoch=self._producer_epoch,
            base_sequence=sequence if self._idempotent else -1,
        )
        return batch

    async def _round(self, partition: int, window: list[_Batch]) -> list[_Batch] | None:
        """Send the window in order, and wait for all answers; what has to be sent again. None: it must not go on.

        :raises Disconnected: none of it was answered for certain.
        """
        host = await self._cluster.leader(partition)
        connection = await self._cluster.connection(host)
        module = schema("produce", 8)
        answers = []
        for batch in window:
            for record in batch.records:
                self._referee.sends[record] += 1
            answers.append(
                connection.send(
                    module.ProduceRequest(
                        acks=-1,
                        timeout=milliseconds(30_000),
                        topic_data=(
                            module.TopicProduceData(
                                name=TOPIC,
                                partition_data=(module.PartitionProduceData(index=partition, records=batch.data),),
                            ),
                        ),
                    )
                )
            )
        unsettled: list[_Batch] = []
        for batch, pending in zip(list(window), answers, strict=True):
            try:
                answer = await self._cluster.answer(host, pending, REQUEST_SECONDS)
            except Disconnected:
                unsettled.append(batch)
                continue
            row = answer.responses[0].partition_responses[0]
            code = int(row.error_code)
            if code == 0:
                self._acknowledged(partition, batch, int(row.base_offset))
            elif code in RETRIABLE or (code == OUT_OF_ORDER and unsettled):
                self.failures[f"error {code}"] += 1
                unsettled.append(batch)
            else:
                self._referee.violation(
                    "refused for good",
                    f"{self.name} in partition {partition}: error {code} for sequence {batch.base_sequence}",
                )
                return None
        return unsettled

    def _acknowledged(self, partition: int, batch: _Batch, base_offset: int) -> None:
        self._referee.acknowledged(self.name, partition, base_offset, batch.records)
