"""The decisions of the metadata service on commits, agents and producer ids; topics beside it. Pure: no I/O, no clock.

A command reads and changes the :class:`State` in memory and appends the :class:`~metadata.store.port.Change`s that
make the same step durable. Between the two the state is *ahead of what is durable*: readers never look here but at
:mod:`metadata.visible`, and when a write fails a new State is built from the store. A command raises only before it
has changed anything.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice

import msgspec

from metadata.agent_model import AgentRegistration
from metadata.calls import AnsweredCalls
from metadata.compaction import ExtentSwap, initial_level
from metadata.counters import Counters
from metadata.job_model import SweptObject
from metadata.model import (
    PRODUCERS_DESCRIBED_MAX,
    Fenced,
    ProducerDescription,
    ProducerIdGranted,
    Refusal,
    Refused,
    SegmentCommit,
    SegmentCommitted,
    TopicId,
)
from metadata.partitions import CommitOutcome, commit_extent
from metadata.producers import ProducerState
from metadata.store.port import (
    AgentDropped,
    AgentSaved,
    AnswersSettled,
    Change,
    CompactedSegment,
    ExtentsAdded,
    ExtentsSwapped,
    ProducerSaved,
    ProducersExpired,
    SegmentAdded,
    StoreSnapshot,
)
from metadata.swaps import RangeSwap
from metadata.topics import Topics

PRODUCER_EXPIRY_MS = 24 * 3_600_000
"""Kafka's producer.id.expiration.ms."""
PRODUCERS_MAX = 1_000_000
"""Producer states held; beyond it the least recently used expire early (their producers may begin anywhere again)."""
PRODUCER_ID_BLOCK = 1_000
"""Producer ids are reserved in the store by the block, so that handing one out is rarely a write."""
FENCED_EPOCH = -1
"""In the place of the epoch of an agent that has none."""
SWEEP_FROM = "sweep_from_ms"
"""Counter: what was in the bucket before then is not this metadata's business, and never swept."""
_PRODUCER_EPOCH_MAX = 32_767 - 1
"""The highest epoch Kafka hands out is one below the largest 16-bit integer."""
_SEQUENCE_ANY = 2**63 - 1

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
        self.counters = Counters(snapshot.counters)
        self.topics = Topics(snapshot.topics, snapshot.deleted_topics, snapshot.partitions, self.counters)
        self.calls = AnsweredCalls(snapshot.calls)
        self._producers: OrderedDict[ProducerState, None] = OrderedDict()
        for saved in sorted(snapshot.producers, key=lambda producer: producer.updated_ms):
            partition = self.topics.partition(saved.topic_id, saved.partition)
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
        self._producer_id_next = self._producer_ids_reserved = self.counters.get("producer_id")

    @property
    def producer_count(self) -> int:
        """Producer states held, one for each producer and partition."""
        return len(self._producers)

    # --- agents and producer ids ------------------------------------------------------------------------

    def register_agent(self, registration: AgentRegistration, now_ms: int, changes: list[Change]) -> AgentSaved:
        """A new epoch; the node id stays the one this ``agent_uid`` got first. Answers of its old epoch are dropped."""
        self._begin_sweeping(now_ms, changes)
        known = self._agents.get(registration.agent_uid)
        agent_epoch = self.counters.next("agent_epoch", changes)
        if known is None:
            node_id = self.counters.next("node_id", changes)
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
            self.counters.raise_to("producer_id", self._producer_ids_reserved, changes)
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

    def _begin_sweeping(self, now_ms: int, changes: list[Change]) -> None:
        """Once in the life of a cluster: what is in the bucket from before its first agent is left alone."""
        if SWEEP_FROM not in self.counters:
            oldest_ms = min((topic.topic.created_ms for topic in self.topics.by_id.values()), default=now_ms)
            self.counters.raise_to(SWEEP_FROM, min(oldest_ms, now_ms), changes)

    def is_uncommittable(self, found: SweptObject) -> bool:
        """Whether no commit can name this object any more, from now on for ever.

        An epoch that is fenced commits nothing. One that is not commits only sequences above its last one; a commit of
        an earlier one is refused, or answered with what was committed under it, which has a row.
        """
        if found.modified_ms < self.counters.get(SWEEP_FROM) or SWEEP_FROM not in self.counters:
            return False
        if not 0 <= found.agent_epoch <= self.counters.get("agent_epoch"):
            return False  # of another life of the cluster
        agent = self._epochs.get(found.agent_epoch)
        return agent is None or found.sequence <= agent.last_sequence

    def describe_producers(self, topic_id: TopicId, partition: int) -> list[ProducerDescription] | None:
        """Those that the partition met last, in that order; None: there is no such partition."""
        topic = self.topics.by_id.get(topic_id)
        if topic is None or not 0 <= partition < len(topic.partitions):
            return None
        met = reversed(topic.partitions[partition].producers.values())
        described = [producer.describe() for producer in islice(met, PRODUCERS_DESCRIBED_MAX)]
        described.reverse()
        return described

    @property
    def producer_ids_granted(self) -> int:
        """The next producer id to be granted: no higher one was."""
        return self._producer_id_next

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
        topic_of = self.topics.by_id.get
        for commit in commits:
            known = agent.answers.get(commit.sequence)
            if known is not None:
                outcome.answers.append(_decode_answer(known))
                continue
            extents_before = len(outcome.extents)
            rows = tuple(
                [
                    commit_extent(
                        topic_of(draft.topic_id),
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
            extents = outcome.extents[extents_before:]
            level = initial_level(sum([extent.byte_length for extent in extents]), len(extents))
            changes.append(
                SegmentAdded(
                    agent_epoch, commit.sequence, commit.segment_key, commit.byte_length, now_ms, encoded, level
                )
            )
            if extents:
                changes.append(ExtentsAdded(tuple(extents)))
        producers = self._producers
        for producer in touched:
            producer.updated_ms = now_ms
            producers[producer] = None
            producers.move_to_end(producer)
            partition = producer.partition
            changes.append(
                ProducerSaved(partition.topic_id, partition.partition, producer.producer_id, producer.encode(), now_ms)
            )
        self._settle(agent, settled_sequence, changes)
        return outcome

    def swap_extents(
        self, agent_epoch: int, swap: ExtentSwap, ranges: Sequence[RangeSwap], now_ms: int, changes: list[Change]
    ) -> None:
        """Let compacted extents take the place of others, which were just found in the store.

        Only what may have happened since is checked: other swaps take their turns, so that is little.

        :raises Fenced: the epoch is not the current one of any agent.
        :raises Refused: UNKNOWN_TOPIC_ID, OFFSET_OUT_OF_RANGE: extents are gone or going.
        """
        if agent_epoch not in self._epochs:
            raise Fenced(f"agent epoch {agent_epoch} was replaced or never existed")
        for each in ranges:
            topic = self.topics.even_hidden(each.extent.topic_id)
            if topic is None:
                raise Refused(Refusal.UNKNOWN_TOPIC_ID, f"topic {each.extent.topic_id.hex()} was deleted")
            if each.first_last_offset < topic.partitions[each.extent.partition].log_start_offset:
                raise Refused(Refusal.OFFSET_OUT_OF_RANGE, "the log start has moved above an extent")
        if ranges:
            segment = CompactedSegment(
                agent_epoch, swap.sequence, swap.segment_key, swap.byte_length, swap.level, swap.commit_ms
            )
            extents = tuple([each.extent for each in ranges])
            changes.append(ExtentsSwapped(segment, extents, sum(each.count for each in ranges), now_ms))

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
