"""Bugs that exist only here: each replaces one piece of the product. A simulation that misses one is worth nothing.

:data:`BUGS` names them; ``python -m tests.simulation --bug NAME`` soaks the product with one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import msgspec

import agent.jobs.deletion
import metadata.service
from ingest.uploader import Uploader
from metadata.compaction import ExtentSwap
from metadata.garbage import DeadSegments
from metadata.groups import Group
from metadata.job_model import COMPACTED_SEQUENCE_MIN
from metadata.model import BatchCommitted, Extent, SegmentCommitted
from metadata.pipeline import CommandPipeline, Transaction
from metadata.producers import ProducerState
from metadata.rpc.answers import AnswerMemory
from metadata.rpc.methods import COMMIT_SEGMENTS, Method
from metadata.service import MetadataService
from metadata.state import AgentState, State
from metadata.store.port import AgentSaved, StoreSnapshot
from metadata.swaps import RangeSwap

ATTEMPTS_MAX = 1_000

Plant = Callable[[contextlib.ExitStack], None]


def _replace(stack: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    stack.enter_context(mock.patch.object(owner, name, value))


def acknowledge_before_commit(stack: contextlib.ExitStack) -> None:
    """A command is answered when it is decided, not when its write is durable."""
    run = CommandPipeline.run

    async def hasty(self: CommandPipeline, decide: Callable[[Transaction], Any]) -> Any:
        decided: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def tell(transaction: Transaction) -> Any:
            result = decide(transaction)
            if not decided.done():
                decided.set_result(result)
            return result

        durable = asyncio.get_running_loop().create_task(run(self, tell), name="hasty")
        await asyncio.wait((decided, durable), return_when=asyncio.FIRST_COMPLETED)
        if decided.done():
            durable.add_done_callback(lambda task: task.cancelled() or task.exception())
            return decided.result()
        return durable.result()

    _replace(stack, CommandPipeline, "run", hasty)


def advance_sequence_before_data(stack: contextlib.ExitStack) -> None:
    """After a failed write the producers' sequences stay where the lost data had moved them."""
    load = MetadataService._load

    def forgetful(self: MetadataService, snapshot: StoreSnapshot) -> None:
        before = self._state
        load(self, snapshot)
        for topic_id, topic in self._state.topics.by_id.items():
            known = before.topics.by_id.get(topic_id)
            if known is not None:
                for partition, old in zip(topic.partitions, known.partitions, strict=True):
                    partition.producers = old.producers

    _replace(stack, MetadataService, "_load", forgetful)


def move_high_watermark_early(stack: contextlib.ExitStack) -> None:
    """What a command decided is shown to readers before it is durable."""
    _replace(stack, Transaction, "after_durable", lambda self, callback: callback())


def retry_without_id(stack: contextlib.ExitStack) -> None:
    """Each repetition of a commit is a new call about a new segment: sequence 7 becomes 7000, 7001, ..."""
    encode, decode, swept_object = Method.encode_request, Method.decode_answer, agent.jobs.deletion._swept_object
    attempts: Counter[tuple[bytes, int, int]] = Counter()

    def encode_anew(self: Method[Any], head: Any, arguments: tuple[Any, ...]) -> bytes:
        if self is COMMIT_SEGMENTS:
            epoch, settled, commits = arguments
            renamed = []
            for commit in commits:
                key = (head.client, epoch, commit.sequence)
                number = commit.sequence * ATTEMPTS_MAX + min(attempts[key], ATTEMPTS_MAX - 1)
                attempts[key] += 1
                renamed.append(msgspec.structs.replace(commit, sequence=number))
            lane = 1_000_000 + attempts.total()
            head = msgspec.structs.replace(head, lane=lane, number=0, settled_below=0)
            arguments = (epoch, settled * ATTEMPTS_MAX + ATTEMPTS_MAX - 1, renamed)
        return encode(self, head, arguments)

    def decode_anew(self: Method[Any], value: msgspec.Raw) -> Any:
        answer = decode(self, value)
        if self is COMMIT_SEGMENTS:
            answer = [msgspec.structs.replace(each, sequence=each.sequence // ATTEMPTS_MAX) for each in answer]
        return answer

    def swept_anew(info: Any) -> Any:
        found = swept_object(info)
        if found is not None and found.sequence < COMPACTED_SEQUENCE_MIN:
            found = msgspec.structs.replace(found, sequence=found.sequence * ATTEMPTS_MAX)
        return found

    _replace(stack, Method, "encode_request", encode_anew)
    _replace(stack, Method, "decode_answer", decode_anew)
    _replace(stack, agent.jobs.deletion, "_swept_object", swept_anew)


def ignore_fence(stack: contextlib.ExitStack) -> None:
    """An epoch that was fenced commits on."""
    commit_segments = State.commit_segments

    def lenient(self: State, agent_epoch: int, *arguments: Any) -> Any:
        if agent_epoch not in self._epochs:
            self._epochs[agent_epoch] = AgentState(AgentSaved(f"ghost {agent_epoch}", 0, agent_epoch, "", ""))
        return commit_segments(self, agent_epoch, *arguments)

    _replace(stack, State, "commit_segments", lenient)


def answer_with_first_offset(stack: contextlib.ExitStack) -> None:
    """Every batch of a run is acknowledged with the offset of the first."""
    commit_segments = State.commit_segments

    def first(outcomes: tuple[BatchCommitted, ...]) -> tuple[BatchCommitted, ...]:
        return tuple(
            msgspec.structs.replace(outcome, base_offset=outcomes[0].base_offset)
            if outcome.refusal is None
            else outcome
            for outcome in outcomes
        )

    def lazy(self: State, *arguments: Any) -> Any:
        outcome = commit_segments(self, *arguments)
        outcome.answers[:] = [
            SegmentCommitted(answer.sequence, tuple(map(first, answer.extents))) for answer in outcome.answers
        ]
        return outcome

    _replace(stack, State, "commit_segments", lazy)


def forget_sequences(stack: contextlib.ExitStack) -> None:
    """A retried batch is not recognized as one."""

    def gullible(self: ProducerState, epoch: int, first: int, record_count: int, base_offset: int) -> None:
        self.epoch = epoch

    _replace(stack, ProducerState, "offer", gullible)


def execute_late_copies(stack: contextlib.ExitStack) -> None:
    """A copy of a call that arrives after the call was settled is executed again."""
    ask = AnswerMemory.ask

    def oblivious(self: AnswerMemory, name: str, head: Any, *arguments: Any) -> Any:
        head = msgspec.structs.replace(head, settled_below=0)
        lane = self._lanes.get((head.client, head.lane))
        call = None if lane is None else lane.calls.get(head.number)
        if lane is not None and call is not None and call.task is None:
            self._drop(lane.calls.pop(head.number))
        return ask(self, name, head, *arguments)

    _replace(stack, AnswerMemory, "ask", oblivious)


def believe_old_generations(stack: contextlib.ExitStack) -> None:
    """A group's coordinator takes commits of members that the group has long replaced."""
    _replace(stack, Group, "check_commit", lambda *_: None)


def delete_the_winner(stack: contextlib.ExitStack) -> None:
    """Of a hedged upload, the object that is committed is deleted with the loser."""
    discard = Uploader.discard
    upload = Uploader.upload

    async def upload_and_note(self: Uploader, *arguments: Any) -> str:
        key = await upload(self, *arguments)
        self.__dict__.setdefault("won", []).append(key)
        return key

    def discard_all(self: Uploader, keys: Sequence[str]) -> None:
        discard(self, [*keys, *self.__dict__.get("won", ())[-1:]])

    _replace(stack, Uploader, "upload", upload_and_note)
    _replace(stack, Uploader, "discard", discard_all)


def delete_before_the_grace(stack: contextlib.ExitStack) -> None:
    """An object goes as soon as nothing references it any more."""
    init = DeadSegments.__init__

    def hurried(self: DeadSegments, *arguments: Any) -> None:
        init(self, *arguments)
        self._grace_ms = 0

    _replace(stack, DeadSegments, "__init__", hurried)


def sweep_a_live_epoch(stack: contextlib.ExitStack) -> None:
    """Any object that is old and has no row is an orphan, whoever may still commit it."""
    _replace(stack, State, "is_uncommittable", lambda *_: True)


def swap_without_compare(stack: contextlib.ExitStack) -> None:
    """Compacted extents take the place of whatever is there by now."""

    def trusting(swap: ExtentSwap, found: Sequence[Sequence[Extent]]) -> list[RangeSwap]:
        return [
            RangeSwap(extent, len(there), there[0].last_offset)
            for extent, there in zip(swap.extents, found, strict=True)
            if there and there[0] != extent
        ]

    _replace(stack, metadata.service, "match_swap", trusting)


BUGS: dict[str, Plant] = {
    plant.__name__: plant
    for plant in (
        acknowledge_before_commit,
        advance_sequence_before_data,
        move_high_watermark_early,
        retry_without_id,
        ignore_fence,
        answer_with_first_offset,
        forget_sequences,
        execute_late_copies,
        believe_old_generations,
        delete_the_winner,
        delete_before_the_grace,
        sweep_a_live_epoch,
        swap_without_compare,
    )
}


@contextlib.contextmanager
def planted(name: str | None) -> Iterator[None]:
    """The product with the bug ``name``, or as it is."""
    with contextlib.ExitStack() as stack:
        if name is not None:
            BUGS[name](stack)
        yield
