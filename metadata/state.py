"""The decisions of the metadata service on topics, commits, agents and producer ids. Pure: no I/O, no clock.

A command reads and changes the :class:`State` in memory and appends the :class:`~metadata.store.port.Change`s that
make the same step durable. Between the two the state is *ahead of what is durable*: readers never look here but at
:mod:`metadata.visible`, and when a write fails a new State is built from the store. A command raises only before
it has changed anything.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from metadata.agent_model import AgentRegistration
from metadata.model import (
    Fenced,
    ProducerIdGranted,
    Refusal,
    Refused,
    SegmentCommit,
    SegmentCommitted,
    Topic,
    TopicId,
)
from metadata.partitions import CommitOutcome, TopicState, commit_extent
from metadata.producers import ProducerState
from metadata.store.port import (
    AgentDropped,
    AgentSaved,
    AnswersSettled,
    Change,
    CounterSaved,
    ExtentsAdded,
    ProducerSaved,
    ProducersExpired,
    SegmentAdded,
    StoreSnapshot,
    TopicDropped,
    TopicSaved,
)

PRODUCER_EXPIRY_MS = 24 * 3_600_000
"""Kafka's producer.id.expiration.ms."""
PRODUCERS_MAX = 1_000_000
"""Producer states held; beyond it the least recently used expire early (their producers may begin anywhere again)."""
PRODUCER_ID_BLOCK = 1_000
"""Producer ids are reserved in the store by the block, so that handing one out is rarely a write."""
DELETED_NAMES_MAX = 10_000
"""Names of deleted topics remembered one by one; from then on a deletion of another counts for every name."""
_DELETED = "deleted_topic/"
_DELETED_TOPICS = "deleted_topics"
"""Counters: producer ids granted when the topic of a name, or any topic, was deleted last."""
PARTITIONS_PER_TOPIC_MAX = 10_000
FENCED_EPOCH = -1
"""In the place of the epoch of an agent that has none."""
_PRODUCER_EPOCH_MAX = 32_767 - 1
"""The highest epoch Kafka hands out is one below the largest 16-bit integer."""
_SEQUENCE_ANY = 2**63 - 1
_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")

_encode = msgspec.msgpack.Encoder().encode
_decode_answer = msgspec.msgpack.Decoder(SegmentCommitted).decode


class AgentState:
    """An agent's current epoch and the answers it may still ask for again, by sequence."""

    __slots__ = ("answers", "last_sequence", "saved")

    def __init__(self, saved: AgentSaved) -> None:
        self.saved = saved
        self.answers: dict[int, bytes] = {}
        self.last_sequence = -1


class State:
    """Everything the commands decide on, built from what is durable."""

    def __init__(self, snapshot: StoreSnapshot) -> None:
        self.cluster_id = snapshot.cluster_id
        self.topics: dict[TopicId, TopicState] = {}
        self.partition_count = 0
        self._by_name: dict[str, Topic] = {}
        self._by_metric_name: dict[str, str] = {}
        for topic in snapshot.topics:
            self._index(TopicState(topic))
        for row in snapshot.partitions:
            partition = self.topics[row.topic_id].partitions[row.partition]
            partition.log_start_offset = row.log_start_offset
            partition.high_watermark = row.high_watermark
            partition.producer_id_floor = row.producer_id_floor
        self._producers: OrderedDict[ProducerState, None] = OrderedDict()
        for saved in sorted(snapshot.producers, key=lambda producer: producer.updated_ms):
            partition = self.topics[saved.topic_id].partitions[saved.partition]
            producer = ProducerState.decode(partition, saved.producer_id, saved.state, saved.updated_ms)
            partition.producers[saved.producer_id] = producer
            self._producers[producer] = None
        self._agents: dict[str, AgentState] = {agent.agent_uid: AgentState(agent) for agent in snapshot.agents}
        self._epochs: dict[int, AgentState] = {
            agent.saved.agent_epoch: agent for agent in self._agents.values() if agent.saved.agent_epoch != FENCED_EPOCH
        }
        for answer in sorted(snapshot.answers, key=lambda answer: answer.sequence):
            owner = self._epochs.get(answer.agent_epoch)
            if owner is not None:
                owner.answers[answer.sequence] = answer.answer
                owner.last_sequence = answer.sequence
        self._counters = dict(snapshot.counters)
        self._deleted_names = sum(name.startswith(_DELETED) for name in self._counters)
        self._producer_id_next = self._producer_ids_reserved = self._counters.get("producer_id", 0)

    @property
    def producer_count(self) -> int:
        """Producer states held, one for each producer and partition."""
        return len(self._producers)

    # --- topics -----------------------------------------------------------------------------------------

    def create_topic(
        self,
        name: str,
        partition_count: int,
        configs: dict[str, str],
        topic_id: TopicId,
        now_ms: int,
        partitions_max: int,
        changes: list[Change] | None,
    ) -> Topic:
        """The new topic; with ``changes`` None it is only checked (validate_only) and nothing is kept.

        ``configs`` are valid already. :raises Refused: TOPIC_ALREADY_EXISTS, INVALID_TOPIC, INVALID_PARTITIONS.
        """
        if name in self._by_name:
            raise Refused(Refusal.TOPIC_ALREADY_EXISTS, f"Topic '{name}' already exists.")
        check_topic_name(name)
        # Kafka's metrics write '.' as '_', so it refuses names that differ in nothing else.
        other = self._by_metric_name.get(name.replace(".", "_"))
        if other is not None:
            raise Refused(Refusal.INVALID_TOPIC, f"Topic '{name}' collides with existing topic '{other}'.")
        if not 1 <= partition_count <= PARTITIONS_PER_TOPIC_MAX:
            raise Refused(
                Refusal.INVALID_PARTITIONS,
                f"Number of partitions must be between 1 and {PARTITIONS_PER_TOPIC_MAX}, got {partition_count}.",
            )
        if self.partition_count + partition_count > partitions_max:
            raise Refused(
                Refusal.INVALID_PARTITIONS,
                f"The cluster would have {self.partition_count + partition_count} partitions; the limit is"
                f" {partitions_max}.",
            )
        topic = Topic(topic_id, name, partition_count, dict(configs), now_ms)
        if changes is not None:
            floor = max(self._counters.get(_DELETED + name, 0), self._counters.get(_DELETED_TOPICS, 0))
            self._index(TopicState(topic, floor))
            changes.append(TopicSaved(topic, floor))
        return topic

    def delete_topic(self, topic_id: TopicId, changes: list[Change]) -> None:
        """:raises Refused: UNKNOWN_TOPIC_ID."""
        self._topic(topic_id)
        state = self.topics.pop(topic_id)
        del self._by_name[state.topic.name]
        del self._by_metric_name[state.topic.name.replace(".", "_")]
        self.partition_count -= len(state.partitions)
        for partition in state.partitions:
            partition.dropped = True
        changes.append(TopicDropped(topic_id))
        counter = _DELETED + state.topic.name
        if counter not in self._counters:
            if self._deleted_names == DELETED_NAMES_MAX:
                counter = _DELETED_TOPICS
            else:
                self._deleted_names += 1
        if self._counters.get(counter, 0) < self._producer_id_next:
            self._set_counter(counter, self._producer_id_next, changes)

    def alter_topic_configs(self, topic_id: TopicId, configs: dict[str, str], changes: list[Change]) -> Topic:
        """Replace the configs of a topic by ``configs``, valid already. :raises Refused: UNKNOWN_TOPIC_ID."""
        state = self._topic(topic_id)
        if state.topic.configs == configs:
            return state.topic
        state.topic = msgspec.structs.replace(state.topic, configs=configs)
        self._by_name[state.topic.name] = state.topic
        changes.append(TopicSaved(state.topic))
        return state.topic

    def topic_configs(self, topic_id: TopicId) -> dict[str, str]:
        """A copy of the configs set on a topic. :raises Refused: UNKNOWN_TOPIC_ID."""
        return dict(self._topic(topic_id).topic.configs)

    def _topic(self, topic_id: TopicId) -> TopicState:
        state = self.topics.get(topic_id)
        if state is None:
            raise Refused(Refusal.UNKNOWN_TOPIC_ID, "This server does not host this topic ID.")
        return state

    def _index(self, state: TopicState) -> None:
        topic = state.topic
        self.topics[topic.topic_id] = state
        self._by_name[topic.name] = topic
        self._by_metric_name[topic.name.replace(".", "_")] = topic.name
        self.partition_count += len(state.partitions)

    # --- agents and producer ids ------------------------------------------------------------------------

    def register_agent(self, registration: AgentRegistration, now_ms: int, changes: list[Change]) -> AgentSaved:
        """A new epoch; the node id stays the one this ``agent_uid`` got first. Answers of its old epoch are dropped."""
        known = self._agents.get(registration.agent_uid)
        agent_epoch = self._count("agent_epoch", changes)
        if known is None:
            node_id = self._count("node_id", changes)
        else:
            node_id = known.saved.node_id
            self._drop_epoch(known.saved.agent_epoch, changes)
        saved = AgentSaved(
            registration.agent_uid,
            node_id,
            agent_epoch,
            registration.zone,
            registration.group,
            registration.host,
            registration.port,
            registration.http_address,
            registration.version,
            registration.roles,
            now_ms,
        )
        self._agents[registration.agent_uid] = self._epochs[agent_epoch] = AgentState(saved)
        changes.append(saved)
        return saved

    def fence_agent(self, agent_epoch: int, now_ms: int, changes: list[Change]) -> AgentSaved | None:
        """The epoch can never commit again, its agent keeps its node id. None: it could not before either."""
        agent = self._epochs.get(agent_epoch)
        if agent is None:
            return None
        self._drop_epoch(agent_epoch, changes)
        saved = msgspec.structs.replace(agent.saved, agent_epoch=FENCED_EPOCH, fenced_ms=now_ms)
        self._agents[saved.agent_uid] = AgentState(saved)
        changes.append(saved)
        return saved

    def forget_agents(self, before_ms: int, limit: int, changes: list[Change]) -> None:
        """Forget up to ``limit`` agents that were fenced before ``before_ms`` and did not return."""
        for saved in [agent.saved for agent in self._agents.values()]:
            if limit and saved.agent_epoch == FENCED_EPOCH and saved.fenced_ms < before_ms:
                limit -= 1
                del self._agents[saved.agent_uid]
                changes.append(AgentDropped(saved.agent_uid))

    def _drop_epoch(self, agent_epoch: int, changes: list[Change]) -> None:
        if self._epochs.pop(agent_epoch, None) is not None:
            changes.append(AnswersSettled(agent_epoch, _SEQUENCE_ANY))

    def grant_producer_id(self, producer_id: int, producer_epoch: int, changes: list[Change]) -> ProducerIdGranted:
        """With (-1, -1) a new id at epoch 0; with an id handed out before, its next epoch.

        The same question gets the same next epoch, so a retry is safe; whoever asked with a stale epoch is refused
        by the partitions that have seen a newer one. An id that was never handed out here, or whose epochs are used
        up, is answered with a new id, as Kafka answers every producer without a transactional id.
        """
        if 0 <= producer_id < self._producer_id_next and 0 <= producer_epoch < _PRODUCER_EPOCH_MAX:
            return ProducerIdGranted(producer_id, producer_epoch + 1)
        if self._producer_id_next == self._producer_ids_reserved:
            self._producer_ids_reserved += PRODUCER_ID_BLOCK
            changes.append(CounterSaved("producer_id", self._producer_ids_reserved))
        granted = self._producer_id_next
        self._producer_id_next += 1
        return ProducerIdGranted(granted, 0)

    def expire_producers(self, now_ms: int, limit: int, changes: list[Change]) -> int:
        """Forget up to ``limit`` producer states idle for 24 hours; returns how many. Cost follows the result."""
        expired: list[tuple[TopicId, int, int]] = []
        examined = 0
        while self._producers and examined < limit:
            producer = next(iter(self._producers))
            idle = producer.updated_ms + PRODUCER_EXPIRY_MS <= now_ms
            if not (idle or producer.partition.dropped or len(self._producers) > PRODUCERS_MAX):
                break
            examined += 1
            del self._producers[producer]
            partition = producer.partition
            if not partition.dropped:
                del partition.producers[producer.producer_id]
                partition.producer_id_floor = max(partition.producer_id_floor, producer.producer_id + 1)
                expired.append((partition.topic_id, partition.partition, producer.producer_id))
        if expired:
            changes.append(ProducersExpired(tuple(expired)))
        return examined

    def _count(self, name: str, changes: list[Change]) -> int:
        value = self._counters.get(name, 0) + 1
        self._set_counter(name, value, changes)
        return value

    def _set_counter(self, name: str, value: int, changes: list[Change]) -> None:
        self._counters[name] = value
        changes.append(CounterSaved(name, value))

    # --- commits ----------------------------------------------------------------------------------------

    def commit_segments(
        self,
        agent_epoch: int,
        settled_sequence: int,
        commits: Sequence[SegmentCommit],
        now_ms: int,
        changes: list[Change],
    ) -> CommitOutcome:
        """Assign offsets to the batches of ``commits``, in order; a repeated (epoch, sequence) gets its first answer.

        :raises Fenced: the epoch is not the current one of any agent.
        :raises Refused: INVALID_REQUEST: a sequence that is not newer than the epoch's last one and whose answer was
            settled (a copy of a call that arrived too late), or a batch without records.
        """
        agent = self._epochs.get(agent_epoch)
        if agent is None:
            raise Fenced(f"agent epoch {agent_epoch} was replaced or never existed")
        self._check(agent, commits)
        outcome = CommitOutcome()
        touched: dict[ProducerState, None] = {}
        for commit in commits:
            known = agent.answers.get(commit.sequence)
            if known is not None:
                outcome.answers.append(_decode_answer(known))
                continue
            extents_before = len(outcome.extents)
            rows = tuple(
                [
                    commit_extent(
                        self.topics.get(draft.topic_id),
                        commit,
                        draft,
                        now_ms,
                        self._producer_id_next,
                        outcome,
                        touched,
                    )
                    for draft in commit.extents
                ]
            )
            answer = SegmentCommitted(commit.sequence, rows)
            encoded = _encode(answer)
            agent.answers[commit.sequence] = encoded
            agent.last_sequence = commit.sequence
            outcome.answers.append(answer)
            changes.append(
                SegmentAdded(agent_epoch, commit.sequence, commit.segment_key, commit.byte_length, now_ms, encoded)
            )
            if len(outcome.extents) > extents_before:
                changes.append(ExtentsAdded(tuple(outcome.extents[extents_before:])))
        for producer in touched:
            producer.updated_ms = now_ms
            self._producers[producer] = None
            self._producers.move_to_end(producer)
            partition = producer.partition
            changes.append(
                ProducerSaved(partition.topic_id, partition.partition, producer.producer_id, producer.encode(), now_ms)
            )
        self._settle(agent, settled_sequence, changes)
        return outcome

    def _check(self, agent: AgentState, commits: Sequence[SegmentCommit]) -> None:
        """Refuse what must not be committed, before anything was changed."""
        last = agent.last_sequence
        for commit in commits:
            if commit.sequence in agent.answers:
                continue
            if commit.sequence <= last:
                raise Refused(
                    Refusal.INVALID_REQUEST,
                    f"segment sequence {commit.sequence} of agent epoch {agent.saved.agent_epoch} is not newer than"
                    f" {last} and its answer was settled",
                )
            last = commit.sequence
            for draft in commit.extents:
                for batch in draft.batches:
                    if batch.record_count < 1 or batch.byte_length < 1:
                        raise Refused(Refusal.INVALID_REQUEST, f"segment {commit.segment_key} has an empty batch")

    def _settle(self, agent: AgentState, settled_sequence: int, changes: list[Change]) -> None:
        """Forget answers the agent has seen. The newest one stays: it tells which sequences are old."""
        until = min(settled_sequence, agent.last_sequence - 1)
        settled = []
        for sequence in agent.answers:  # ascending: sequences are committed in order
            if sequence > until:
                break
            settled.append(sequence)
        if settled:
            for sequence in settled:
                del agent.answers[sequence]
            changes.append(AnswersSettled(agent.saved.agent_epoch, until))


def check_topic_name(name: str) -> None:
    """Kafka's rule for topic names. :raises Refused: INVALID_TOPIC."""
    if name in (".", "..") or _TOPIC_NAME.fullmatch(name) is None:
        raise Refused(
            Refusal.INVALID_TOPIC,
            f"Topic name '{name[:300]}' is illegal: it must be 1 to 249 of the characters a-z, A-Z, 0-9, '.', '_' and"
            " '-', and neither '.' nor '..'.",
        )
