"""From changes to statements for PostgreSQL: all rows that a usual write adds go in one (``postgres_bulk``).

Only what is rare (topics, agents, deletions) makes a write take several statements between BEGIN and COMMIT.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from metadata.model import Topic, TopicId
from metadata.store.port import (
    AgentDropped,
    AgentSaved,
    AnswersSettled,
    CallAnswered,
    CallsForgotten,
    Change,
    CounterSaved,
    ExtentsAdded,
    ExtentsSwapped,
    GroupDropped,
    GroupSaved,
    LogStartMoved,
    OffsetsDropped,
    OffsetsSaved,
    ProducerSaved,
    ProducersExpired,
    SegmentAdded,
    SegmentsDropped,
    StoreUnavailable,
    TopicDropped,
    TopicHidden,
    TopicRestored,
    TopicSaved,
)
from metadata.store.postgres_bulk import BULK, COPY_EXTENTS, LEADS, Bulk, SegmentRow, copy_extents
from metadata.store.postgres_compaction import swap_statements
from metadata.store.postgres_connections import Connection
from metadata.store.postgres_leadership import deposed

_encode = msgspec.msgpack.Encoder().encode

Statement = tuple[str, tuple[object, ...]]


class _Partition:
    """What every insert needs to know of a partition, so that it need not ask."""

    __slots__ = ("high_watermark", "key", "max_timestamp_ms")

    def __init__(self, key: int, high_watermark: int, max_timestamp_ms: int) -> None:
        self.key = key
        self.high_watermark = high_watermark
        self.max_timestamp_ms = max_timestamp_ms


_NO_PARTITIONS: dict[int, _Partition] = {}


class PostgresWriter:
    """Knows what is durable, as far as writes need it. After a failed write a new one is made from the store.

    ``partitions``: (topic id, partition, key, high watermark, largest timestamp) of each.
    """

    def __init__(
        self, generation: int, partitions: Iterable[tuple[TopicId, int, int, int, int]], segment_id_max: int
    ) -> None:
        self._generation = generation
        self._topics: dict[TopicId, dict[int, _Partition]] = {}
        for topic_id, partition, *known in partitions:
            self._topics.setdefault(topic_id, {})[partition] = _Partition(*known)
        self._segment_id = segment_id_max
        self._segments: dict[str, SegmentRow] = {}
        self._bulk = Bulk()
        self._statements: list[Statement] = []
        self._keys: Iterator[int] = iter(())

    async def write(self, connection: Connection, changes: Sequence[Change]) -> None:
        """Apply ``changes`` in order in one transaction.

        After an error of the driver a transaction may be open. After any error this writer is to be replaced.

        :raises Deposed: nothing was written.
        :raises ValueError: nothing was written; the changes contradict what is stored.
        """
        new_partitions = self._count_new_partitions(changes)
        if new_partitions:
            keys = await connection.fetch(
                "SELECT nextval('partition_keys') FROM generate_series(1, $1::bigint)", new_partitions
            )
            self._keys = iter([key for (key,) in keys])
        statements = self._compile(changes)
        if len(statements) == 1 and statements[0][0] is BULK:
            if not await connection.fetchval(BULK, *statements[0][1]):
                raise deposed(self._generation)
        elif statements:
            await begin(connection, self._generation)
            for statement, arguments in statements:
                if statement is COPY_EXTENTS:
                    (rows,) = arguments
                    assert isinstance(rows, bytes)
                    await copy_extents(connection, rows)
                else:
                    await connection.execute(statement, *arguments)
            await commit(connection)

    def _count_new_partitions(self, changes: Sequence[Change]) -> int:
        """At most so many keys will be needed."""
        dropped = {change.topic_id for change in changes if isinstance(change, TopicDropped)}
        count = 0
        for change in changes:
            if isinstance(change, TopicSaved):
                known = () if change.topic.topic_id in dropped else self._topics.get(change.topic.topic_id, ())
                count += max(change.topic.partition_count - len(known), 0)
        return count

    def _compile(self, changes: Sequence[Change]) -> list[Statement]:
        """In order: what is rare, and before anything that removes rows, and last, what was collected for the bulk."""
        self._statements = []
        for change in changes:
            match change:
                case SegmentAdded():
                    self._add_segment(change)
                case ExtentsAdded():
                    self._add_extents(change)
                case ProducerSaved():
                    key = self._partition(change.topic_id, change.partition).key
                    row = (key, change.producer_id, change.state, change.updated_ms)
                    self._bulk.producers[key, change.producer_id] = row
                case ExtentsSwapped():
                    self._flush()  # it replaces rows that may be among those collected
                    self._segment_id += 1
                    self._statements += swap_statements(change, self._partition_key, self._segment_id)
                case AnswersSettled():
                    self._bulk.settle(change.agent_epoch, change.sequence)
                case OffsetsSaved():
                    self._save_offsets(change)
                case GroupSaved(record=record):
                    group_id = record.group_id.encode()
                    self._bulk.groups[group_id] = (group_id, _encode(record))
                case CounterSaved():
                    self._bulk.count_up(change.name, change.value)
                case _:
                    self._compile_rare(change)
        self._flush()
        return self._statements

    def _compile_rare(self, change: Change) -> None:
        match change:
            case TopicSaved():
                self._save_topic(change.topic, change.producer_id_floor)
            case AgentSaved():
                self._add("DELETE FROM agents WHERE agent_uid = $1", change.agent_uid)
                self._add(
                    "INSERT INTO agents VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
                    change.agent_uid,
                    change.node_id,
                    change.agent_epoch,
                    change.zone,
                    change.group,
                    change.host,
                    change.port,
                    change.http_address,
                    change.version,
                    ",".join(change.roles),
                    change.registered_ms,
                    change.fenced_ms,
                )
            case AgentDropped(agent_uid=agent_uid):
                self._add("DELETE FROM agents WHERE agent_uid = $1", agent_uid)
            case CallAnswered():
                self._add(
                    "INSERT INTO calls VALUES ($1, $2, $3) ON CONFLICT (call_id)"
                    " DO UPDATE SET answer = excluded.answer, answered_ms = excluded.answered_ms",
                    change.call_id,
                    change.answer,
                    change.answered_ms,
                )
            case CallsForgotten(before_ms=before_ms):
                self._add("DELETE FROM calls WHERE answered_ms < $1", before_ms)
            case SegmentsDropped(segments=segments):
                self._add(
                    "DELETE FROM segments USING unnest($1::bigint[], $2::bigint[]) AS gone (epoch, number)"
                    " WHERE agent_epoch = gone.epoch AND sequence = gone.number AND dead_ms > 0",
                    [agent_epoch for agent_epoch, _ in segments],
                    [sequence for _, sequence in segments],
                )
            case LogStartMoved():
                self._move_log_start(change)
            case TopicRestored(topic_id=topic_id):
                self._add("UPDATE topics SET deleted_ms = 0 WHERE topic_id = $1", topic_id)
            case TopicHidden() | TopicDropped() | ProducersExpired() | GroupDropped() | OffsetsDropped():
                self._flush()  # these remove rows that may be among those collected
                self._remove(change)

    def _remove(self, change: TopicHidden | TopicDropped | ProducersExpired | GroupDropped | OffsetsDropped) -> None:
        match change:
            case TopicHidden(topic_id=topic_id):
                self._add("UPDATE topics SET deleted_ms = $1 WHERE topic_id = $2", change.deleted_ms, topic_id)
                keys = [partition.key for partition in self._topics.get(topic_id, {}).values()]
                self._add("DELETE FROM group_offsets WHERE partition_key = ANY ($1)", keys)
            case TopicDropped(topic_id=topic_id):
                self._drop_topic(topic_id)
            case ProducersExpired():
                self._expire_producers(change)
            case GroupDropped(group_id=group_id):
                for table in ("consumer_groups", "group_offsets"):
                    self._add(f"DELETE FROM {table} WHERE group_id = $1", group_id.encode())
            case OffsetsDropped(group_id=group_id):
                keys = [found.key for key in change.partitions if (found := self._known(*key)) is not None]
                self._add(
                    "DELETE FROM group_offsets WHERE group_id = $1 AND partition_key = ANY ($2)",
                    group_id.encode(),
                    keys,
                )

    def _add(self, statement: str, *arguments: object) -> None:
        self._statements.append((statement, arguments))

    def _flush(self) -> None:
        """What was collected becomes a statement."""
        extents = self._bulk.take_extents_to_copy()
        if extents is not None:
            self._add(COPY_EXTENTS, extents)
        columns = self._bulk.columns()
        if columns:
            self._add(BULK, self._generation, *columns)
        self._bulk = Bulk()
        self._segments.clear()

    def _known(self, topic_id: TopicId, partition: int) -> _Partition | None:
        return self._topics.get(topic_id, {}).get(partition)

    def _partition(self, topic_id: TopicId, partition: int) -> _Partition:
        kept = self._known(topic_id, partition)
        if kept is None:
            raise ValueError(f"no partition {topic_id.hex()}/{partition}")
        return kept

    def _partition_key(self, topic_id: TopicId, partition: int) -> int:
        return self._partition(topic_id, partition).key

    def _add_segment(self, change: SegmentAdded) -> None:
        self._segment_id += 1
        segment = SegmentRow(self._segment_id, change)
        self._segments[change.segment_key] = segment
        self._bulk.segments.append(segment)
        answers = self._bulk.answers.setdefault(change.agent_epoch, {})
        answers[change.sequence] = (change.agent_epoch, change.sequence, change.answer)

    def _add_extents(self, change: ExtentsAdded) -> None:
        """Checks that offsets stay dense: the last guard before they are durable."""
        topics, segments, add = self._topics, self._segments, self._bulk.extents.append
        for extent in change.extents:
            partition = topics.get(extent.topic_id, _NO_PARTITIONS).get(extent.partition)
            segment = segments.get(extent.segment_key)
            if partition is None or segment is None or extent.base_offset != partition.high_watermark:
                raise ValueError(f"extent does not follow what is stored: {extent}")
            segment.contents.append((partition.key, extent.base_offset))
            segment.live_bytes += extent.byte_length
            partition.high_watermark = extent.last_offset + 1
            timestamp_ms = extent.max_timestamp_ms
            if timestamp_ms > partition.max_timestamp_ms:
                partition.max_timestamp_ms = timestamp_ms
            add(
                (
                    partition.key,
                    extent.base_offset,
                    extent.last_offset,
                    segment.segment_id,
                    extent.byte_position,
                    extent.byte_length,
                    timestamp_ms,
                    partition.max_timestamp_ms,
                    extent.commit_ms,
                )
            )

    def _save_offsets(self, change: OffsetsSaved) -> None:
        group_id = change.group_id.encode()
        for offset in change.offsets:
            partition = self._known(offset.topic_id, offset.partition)
            if partition is not None:
                self._bulk.offsets[group_id, partition.key] = (
                    group_id,
                    partition.key,
                    offset.offset,
                    offset.leader_epoch,
                    offset.metadata.encode(),
                    offset.commit_ms,
                )

    def _save_topic(self, topic: Topic, producer_id_floor: int) -> None:
        self._add(
            "INSERT INTO topics (topic_id, name, partition_count, configs, created_ms) VALUES ($1, $2, $3, $4, $5)"
            " ON CONFLICT (topic_id) DO UPDATE SET name = excluded.name,"
            " partition_count = excluded.partition_count, configs = excluded.configs, created_ms = excluded.created_ms",
            topic.topic_id,
            topic.name,
            topic.partition_count,
            json.dumps(topic.configs),
            topic.created_ms,
        )
        partitions = self._topics.setdefault(topic.topic_id, {})
        new = [partition for partition in range(topic.partition_count) if partition not in partitions]
        for partition in new:
            partitions[partition] = _Partition(next(self._keys), 0, -1)
        self._add(
            "INSERT INTO partitions (partition_key, topic_id, partition, producer_id_floor)"
            " SELECT new.key, $1, new.partition, $2 FROM unnest($3::bigint[], $4::integer[]) AS new (key, partition)",
            topic.topic_id,
            producer_id_floor,
            [partitions[partition].key for partition in new],
            new,
        )

    def _drop_topic(self, topic_id: TopicId) -> None:
        """The topic and its partitions go now, which hides all their rows; :func:`purge` removes those."""
        keys = [partition.key for partition in self._topics.pop(topic_id, {}).values()]
        self._add("INSERT INTO dropped_partitions SELECT unnest($1::bigint[])", keys)
        self._add("DELETE FROM partitions WHERE topic_id = $1", topic_id)
        self._add("DELETE FROM topics WHERE topic_id = $1", topic_id)

    def _move_log_start(self, change: LogStartMoved) -> None:
        partition = self._partition(change.topic_id, change.partition)
        if change.log_start_offset > partition.high_watermark:
            raise ValueError(f"the log start would pass the high watermark {partition.high_watermark}: {change}")
        if change.log_start_offset == partition.high_watermark:
            partition.max_timestamp_ms = -1
        self._add(
            "UPDATE partitions SET log_start_offset = greatest(log_start_offset, $1) WHERE partition_key = $2",
            change.log_start_offset,
            partition.key,
        )
        self._add("INSERT INTO trimmed_partitions VALUES ($1) ON CONFLICT DO NOTHING", partition.key)

    def _expire_producers(self, change: ProducersExpired) -> None:
        expired = [
            (found.key, producer_id)
            for topic_id, partition, producer_id in change.producers
            if (found := self._known(topic_id, partition)) is not None
        ]
        keys, producer_ids = [key for key, _ in expired], [producer_id for _, producer_id in expired]
        self._add(
            "DELETE FROM producers USING unnest($1::bigint[], $2::bigint[]) AS expired (key, id)"
            " WHERE partition_key = expired.key AND producer_id = expired.id",
            keys,
            producer_ids,
        )
        self._add(
            "UPDATE partitions SET producer_id_floor = greatest(producer_id_floor, expired.id + 1) FROM"
            " (SELECT key, max(id) AS id FROM unnest($1::bigint[], $2::bigint[]) AS each (key, id) GROUP BY key)"
            " AS expired WHERE partition_key = expired.key",
            keys,
            producer_ids,
        )


async def begin(connection: Connection, generation: int) -> None:
    """Begin a transaction in which ``generation`` leads until it ends. :raises Deposed: another one leads."""
    leading = await connection.execute(f"BEGIN; {LEADS.format(generation=int(generation))}")
    if leading != "SELECT 1":
        await connection.execute("ROLLBACK")
        raise deposed(generation)


async def commit(connection: Connection) -> None:
    """:raises StoreUnavailable: the transaction had failed, and was rolled back."""
    if await connection.execute("COMMIT") != "COMMIT":
        raise StoreUnavailable("the transaction was rolled back")


_REMOVE_EXTENTS = """
    WITH gone AS MATERIALIZED (
        SELECT gone.* FROM unnest($1::bigint[], $2::bigint[]) AS wanted (key, below) CROSS JOIN LATERAL (
            SELECT ctid AS row, segment_id, byte_length FROM extents
            WHERE partition_key = wanted.key AND base_offset < wanted.below AND last_offset < wanted.below
            ORDER BY base_offset LIMIT $3
        ) AS gone LIMIT $3
    ),
    removed AS (DELETE FROM extents WHERE ctid = ANY (ARRAY(SELECT row FROM gone))),
    released AS (
        UPDATE segments SET
            live_extents = live_extents - went.extents,
            live_bytes = live_bytes - went.bytes,
            dead_ms = CASE WHEN live_extents = went.extents THEN $4::bigint ELSE 0 END
        FROM (SELECT segment_id, count(*) AS extents, sum(byte_length) AS bytes FROM gone GROUP BY segment_id) AS went
        WHERE segments.segment_id = went.segment_id
    )
    SELECT count(*) FROM gone
"""
_EVERY_OFFSET = 2**63 - 1


async def purge(connection: Connection, generation: int, row_max: int, now_ms: int) -> bool:
    """Remove up to ``row_max`` rows of deleted topics and below log starts; True when there may be more.

    :raises Deposed: nothing was removed.
    """
    await begin(connection, generation)
    dropped = [
        key for (key,) in await connection.fetch("SELECT partition_key FROM dropped_partitions LIMIT $1", row_max)
    ]
    trimmed = await connection.fetch(
        "SELECT partition_key, coalesce(log_start_offset, 0) FROM"
        " (SELECT partition_key FROM trimmed_partitions LIMIT $1) AS part LEFT JOIN partitions USING (partition_key)",
        row_max,
    )
    left = row_max
    if dropped or trimmed:
        left -= await connection.fetchval(
            _REMOVE_EXTENTS,
            dropped + [key for key, _ in trimmed],
            [_EVERY_OFFSET] * len(dropped) + [below for _, below in trimmed],
            row_max,
            now_ms,
        )
    for table in ("producers", "group_offsets"):
        if dropped and left > 0:
            removed = await connection.execute(
                f"DELETE FROM {table} WHERE ctid = ANY (ARRAY("
                f"SELECT ctid FROM {table} WHERE partition_key = ANY ($1::bigint[]) LIMIT $2))",
                dropped,
                left,
            )
            left -= int(removed.rpartition(" ")[2])
    if left > 0:  # there was room for more, so these partitions have nothing left that is to go
        for table, keys in (("dropped_partitions", dropped), ("trimmed_partitions", [key for key, _ in trimmed])):
            if keys:
                await connection.execute(f"DELETE FROM {table} WHERE partition_key = ANY ($1::bigint[])", keys)
    await commit(connection)
    return left <= 0 or max(len(dropped), len(trimmed)) == row_max
