"""Where the records asked for are, and whether there are any: from what this agent heard, else from the service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.fetch.answer import PartitionFetch, PartitionFetched
from agent.fetch.extents import ExtentIndex
from agent.fetch.follow import Follower
from agent.fetch.metrics import FetchMetrics
from agent.fetch.patch import Run
from agent.fetch.pool import Entry
from metadata.client import MetadataClient
from metadata.model import Extent, ExtentsFound, ExtentsQuery, MetadataUnavailable, Refusal

ENOUGH = 2**62
"""Available bytes of an answer that must not wait: it carries a problem, or more than was looked at."""
WINDOW_BYTES = 16 * 1024 * 1024
"""Extents asked for ahead of a catching-up reader, so that most of its fetches ask nothing."""
QUERY_BYTES_MIN = 64 * 1024


class PartitionRead:
    """A partition that has records for this answer, on its way through loading and slicing."""

    __slots__ = ("answer", "extents", "fetch", "hot", "next_offset", "problem", "runs")

    def __init__(self, fetch: PartitionFetch, answer: PartitionFetched, extents: list[Extent], hot: int) -> None:
        self.fetch = fetch
        self.answer = answer
        self.extents = extents
        self.hot = hot
        self.runs: list[Entry[Run]] = []
        self.problem: Exception | Refusal | None = None
        self.next_offset = fetch.fetch_offset

    def is_hot(self, index: int) -> bool:
        """Whether the ``index``-th extent lies in the tail."""
        return index >= len(self.extents) - self.hot

    def first_extent_bytes(self) -> int:
        """What is left of the first extent from the offset on: estimated, as if its records were equally large."""
        first = self.extents[0]
        records = first.last_offset - first.base_offset + 1
        return -(-first.byte_length * (first.last_offset + 1 - self.fetch.fetch_offset) // records)

    def byte_length(self) -> int:
        """Bytes there are from the offset on, as far as extents were looked at."""
        return sum(extent.byte_length for extent in self.extents[1:]) + self.first_extent_bytes()


@dataclass(slots=True)
class Located:
    """``answers`` has one entry per fetch; ``reads`` are those that have records, ``available`` bytes of them."""

    answers: list[PartitionFetched]
    reads: list[PartitionRead]
    available: int = 0


class Locator:
    """Finds extents for whole requests, with at most one metadata call."""

    def __init__(self, metadata: MetadataClient, index: ExtentIndex, follower: Follower, metrics: FetchMetrics) -> None:
        self._metadata = metadata
        self._index = index
        self._follower = follower
        self._metrics = metrics

    async def locate(self, fetches: Sequence[PartitionFetch], byte_max: int) -> Located:
        """Nothing was awaited after the last look: who starts to wait on the result at once misses no commit."""
        found: dict[int, ExtentsFound | MetadataUnavailable] = {}
        missing = self._follower.missing([(fetch.topic_id, fetch.partition) for fetch in fetches])
        if missing:
            try:
                await self._follower.follow(missing)
            except MetadataUnavailable as error:
                unheard = set(missing)
                found = {
                    position: error
                    for position, fetch in enumerate(fetches)
                    if (fetch.topic_id, fetch.partition) in unheard
                }
        located, unknown = self._look(fetches, found, byte_max)
        if not unknown:
            return located
        answers = await self.ask([fetches[position] for position in unknown], byte_max)
        found.update(zip(unknown, answers, strict=True))
        return self._look(fetches, found, byte_max)[0]

    async def ask(
        self, fetches: Sequence[PartitionFetch], byte_max: int
    ) -> Sequence[ExtentsFound | MetadataUnavailable]:
        """Ask the service, and learn what it says."""
        share = max(2 * byte_max // len(fetches), QUERY_BYTES_MIN)
        queries = [
            ExtentsQuery(
                fetch.topic_id,
                fetch.partition,
                fetch.fetch_offset,
                max(1, min(max(fetch.byte_max, WINDOW_BYTES), share)),
            )
            for fetch in fetches
        ]
        self._metrics.metadata_queries += len(queries)
        generation = self._index.generation
        try:
            answers = await self._metadata.find_extents(queries)
        except MetadataUnavailable as error:
            return [error] * len(queries)
        for fetch, found in zip(fetches, answers, strict=True):
            if found.refusal is None:
                self._index.learn(fetch.topic_id, fetch.partition, found, generation)
        return answers

    async def again(self, fetch: PartitionFetch) -> ExtentsFound | MetadataUnavailable:
        """What we knew of the partition's extents led to an object that is gone."""
        self._index.forget_extents(fetch.topic_id, fetch.partition)
        return (await self.ask([fetch], fetch.byte_max))[0]

    def after(self, read: PartitionRead) -> Sequence[Extent]:
        """Old extents behind those a sequential catch-up read was just answered from, as far as known."""
        fetch = read.fetch
        state = self._index.get(fetch.topic_id, fetch.partition)
        if state is None or not read.runs or read.is_hot(0):
            return ()
        sequential = state.next_offset == fetch.fetch_offset
        state.next_offset = read.next_offset
        if not sequential:
            return ()
        offset = read.runs[-1].value.last_offset + 1
        found = self._index.locate(state, offset, fetch.byte_max) if offset < state.high_watermark else None
        return found.extents[: len(found.extents) - found.hot] if found is not None else ()

    def _look(
        self,
        fetches: Sequence[PartitionFetch],
        found: Mapping[int, ExtentsFound | MetadataUnavailable],
        byte_max: int,
    ) -> tuple[Located, list[int]]:
        """What is known now, and the positions that must be asked about (none of those in ``found``)."""
        located = Located([], [])
        unknown: list[int] = []
        index = self._index
        for position, fetch in enumerate(fetches):
            state = index.get(fetch.topic_id, fetch.partition)
            offset = fetch.fetch_offset
            if state is None or not 0 <= state.log_start_offset <= offset <= state.high_watermark:
                located.answers.append(PartitionFetched())
                if position in found:
                    self._take(located, fetch, found[position])
                else:
                    unknown.append(position)
                continue
            answer = PartitionFetched(state.high_watermark, state.log_start_offset)
            located.answers.append(answer)
            if offset == state.high_watermark:
                continue
            known = index.locate(state, offset, min(fetch.byte_max, byte_max))
            if known is not None:
                read = PartitionRead(fetch, answer, known.extents, known.hot)
                located.reads.append(read)
                located.available += ENOUGH if known.more else min(fetch.byte_max, read.byte_length())
            elif position in found:
                self._take(located, fetch, found[position])
            else:
                unknown.append(position)
        return located, unknown

    def _take(self, located: Located, fetch: PartitionFetch, found: ExtentsFound | MetadataUnavailable) -> None:
        """Answer the last partition from what the service said, because it could not be learned."""
        answer = located.answers[-1]
        if isinstance(found, MetadataUnavailable):
            answer.problem = found
        elif found.refusal is not None:
            answer.problem = found.refusal
        else:
            answer.high_watermark, answer.log_start_offset = found.high_watermark, found.log_start_offset
            if found.extents:
                located.reads.append(PartitionRead(fetch, answer, list(found.extents), 0))
            elif fetch.fetch_offset == found.high_watermark:
                return
        if answer.problem is not None:
            answer.high_watermark = answer.log_start_offset = -1
        located.available += ENOUGH
