"""A process that commits to a metadata store until it is killed, saying what was acknowledged.

Each line of its output is one acknowledged segment, as JSON: its sequence, its agent epoch, and for each batch
[partition, producer id, base sequence, record count, base offset].
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from itertools import count

from metadata.store.factory import open_metadata_store
from tests.support.metadata import batch, registration, running_service, segment

PARTITIONS = 3


async def write(url: str, seed: int) -> None:
    generator = random.Random(seed)
    async with running_service(open_metadata_store(url), entropy_seed=seed) as service:
        epoch = (await service.register_agent(registration())).agent_epoch
        listener_topics = list(service._visible.topics.values())
        topic = listener_topics[0] if listener_topics else await service.create_topic("logs", PARTITIONS, {})
        producer = (await service.grant_producer_id(-1, -1)).producer_id
        sequences = [0] * PARTITIONS
        numbers = count(1)

        async def committer() -> None:
            while True:
                sent, drafts = [], []
                number = next(numbers)
                for partition in range(PARTITIONS):
                    batches = []
                    # Four commits in flight, so at most four newer batches hide an acknowledged one: Kafka keeps five.
                    idempotent_one = generator.randrange(4)
                    for index in range(generator.randrange(1, 4)):
                        records = generator.randrange(1, 10)
                        idempotent = index == idempotent_one
                        first = sequences[partition] if idempotent else -1
                        batches.append(batch(records, producer=producer if idempotent else -1, epoch=0, sequence=first))
                        if idempotent:
                            sequences[partition] += records
                        sent.append([partition, producer if idempotent else -1, first, records])
                    drafts.append((topic.topic_id, partition, batches))
                key = f"segments/{epoch}/{number}"
                (answer,) = await service.commit_segments(epoch, number - 9, [segment(number, *drafts, key=key)])
                assert all(each.refusal is None for row in answer.extents for each in row), answer
                offsets = [each.base_offset for row in answer.extents for each in row]
                acknowledged = [[*one, offset] for one, offset in zip(sent, offsets, strict=True)]
                print(json.dumps({"sequence": number, "epoch": epoch, "batches": acknowledged}), flush=True)

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(committer())


if __name__ == "__main__":
    asyncio.run(write(sys.argv[1], int(sys.argv[2])))
