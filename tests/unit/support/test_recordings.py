"""The judge of recorded clients must see each kind of violation: one that never fails judges nothing."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.support.recordings import Recording, Recordings, percentile


class Story:
    """Two producers and a group of two over two partitions; each test changes one thing in it."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.log: dict[tuple[int, int], bytes] = {}
        self.clients = {name: Recording(name) for name in ("p1", "p2")}
        self.clients |= {name: Recording(name, "search") for name in ("c0", "c1")}

    def tell(self, client: str, event: str, *details: object) -> None:
        """One line of the client's recording, a moment after the one before."""
        self.clock += 0.001
        self.clients[client].take(json.dumps((event, self.clock, *details)))

    def produced(self, producer: str, sequence: int, partition: int, offset: int) -> None:
        self.tell(producer, "sent", sequence, partition)
        self.tell(producer, "acknowledged", sequence, partition, offset)
        self.log[partition, offset] = f"{producer}:{sequence}".encode()

    def polled(self, consumer: str, partition: int, *offsets: int) -> None:
        self.tell(consumer, "polled", partition, [(one, self.log[partition, one].decode()) for one in offsets])

    def kinds(self) -> set[str]:
        return {violation.kind for violation in Recordings(self.clients.values()).violations(self.log)}


@pytest.fixture
def story() -> Story:
    """A true one: 20 records in each partition, a rebalance in the middle, and some records read twice."""
    told = Story()
    for partition in (0, 1):
        for offset in range(20):
            told.produced("p1" if offset % 2 else "p2", partition * 100 + offset, partition, offset)
    told.tell("c0", "assigned", [0, 1])
    told.polled("c0", 0, *range(12))
    told.polled("c0", 1, *range(5))
    told.tell("c0", "committed", {"0": 10, "1": 5})
    told.tell("c0", "revoked", [0, 1])
    told.tell("c0", "assigned", [0])
    told.tell("c1", "assigned", [1])
    told.polled("c0", 0, *range(10, 20))
    told.polled("c1", 1, *range(5, 20))
    for client in told.clients:
        told.tell(client, "finished", 0)
    return told


def test_a_true_story_has_no_violations(story: Story) -> None:
    assert story.kinds() == set()
    assert Recordings(story.clients.values()).counts() == "40 sent, 40 acknowledged, 0 failed, 42 polled"


def _lost(story: Story) -> None:
    del story.log[0, 19]


def _lost_in_the_middle(story: Story) -> None:
    del story.log[0, 7]


def _at_another_offset(story: Story) -> None:
    story.log[1, 3], story.log[1, 4] = story.log[1, 4], story.log[1, 3]


def _duplicated(story: Story) -> None:
    story.log[1, 20] = story.log[1, 18]
    story.polled("c1", 1, 20)


def _acknowledged_twice_at_different_offsets(story: Story) -> None:
    story.tell("p1", "acknowledged", 1, 0, 20)
    story.log[0, 20] = b"p1:1"
    story.polled("c0", 0, 20)


def _offset_given_to_two_producers(story: Story) -> None:
    story.tell("p1", "sent", 900, 0)
    story.tell("p1", "acknowledged", 900, 0, 4)


def _what_was_read_changes(story: Story) -> None:
    story.tell("c1", "assigned", [1])
    story.tell("c1", "polled", 1, [(offset, "p1:101") for offset in range(5, 6)])


def _reordered(story: Story) -> None:
    for sequence, offset in ((301, 20), (300, 21)):
        story.produced("p1", sequence, 0, offset)
    story.polled("c0", 0, 20, 21)


def _invented(story: Story) -> None:
    story.log[0, 20] = b"p2:7777"
    story.polled("c0", 0, 20)


def _in_another_partition(story: Story) -> None:
    story.tell("p2", "sent", 400, 0)
    story.log[1, 20] = b"p2:400"
    story.polled("c1", 1, 20)


def _a_gap_of_an_idempotent_producer(story: Story) -> None:
    story.tell("p1", "sent", 301, 0)
    story.produced("p1", 303, 0, 20)
    story.polled("c0", 0, 20)


def _polled_again(story: Story) -> None:
    story.polled("c0", 0, 19)


def _polled_backwards(story: Story) -> None:
    story.polled("c1", 1, 3)


def _skipped(story: Story) -> None:
    story.produced("p1", 301, 0, 20)
    story.produced("p1", 303, 0, 21)
    story.polled("c0", 0, 21)
    story.tell("c1", "assigned", [0])
    story.polled("c1", 0, 20)


def _never_read(story: Story) -> None:
    story.produced("p1", 301, 0, 20)


def _went_back(story: Story) -> None:
    story.tell("c1", "committed", {"1": 20})
    story.tell("c0", "assigned", [1])
    story.polled("c0", 1, 19)


def _client_error(story: Story) -> None:
    story.tell("p1", "error", "fatal: OUT_OF_ORDER_SEQUENCE_NUMBER")


@pytest.mark.parametrize(
    ("plant", "kinds"),
    [
        (_lost, {"lost"}),
        (_lost_in_the_middle, {"lost", "hole", "unread"}),
        (_at_another_offset, {"lost", "offset reused"}),
        (_duplicated, {"duplicated"}),
        (_acknowledged_twice_at_different_offsets, {"duplicated"}),
        (_offset_given_to_two_producers, {"lost", "offset reused"}),
        (_what_was_read_changes, {"offset reused"}),
        (_reordered, {"reordered"}),
        (_invented, {"invented"}),
        (_in_another_partition, {"invented"}),
        (_a_gap_of_an_idempotent_producer, {"unread"}),
        (_polled_again, {"non-monotonic poll"}),
        (_polled_backwards, {"non-monotonic poll"}),
        (_skipped, {"skipped"}),
        (_never_read, {"never read"}),
        (_went_back, {"went back"}),
        (_client_error, {"client error"}),
    ],
)
def test_a_planted_violation_is_found(story: Story, plant: Callable[[Story], None], kinds: set[str]) -> None:
    plant(story)
    assert kinds <= story.kinds()


def test_a_record_without_an_answer_may_be_there_or_not(story: Story) -> None:
    story.tell("p1", "sent", 901, 0)
    assert story.kinds() == set()
    story.log[0, 20] = b"p1:901"
    story.polled("c0", 0, 20)
    assert story.kinds() == set()


def test_a_commit_that_was_not_acknowledged_before_the_assignment_binds_nobody(story: Story) -> None:
    story.tell("c0", "assigned", [1])
    story.tell("c1", "committed", {"1": 20})
    story.polled("c0", 1, 5)
    assert story.kinds() == set()


def test_progress_counts_only_what_was_sent_since_and_reached_every_partition(story: Story) -> None:
    recordings = Recordings(story.clients.values())
    since = story.clock
    assert recordings.resumed(since) == {"p1": None, "p2": None, "search": None}
    story.tell("p1", "sent", 301, 0)
    story.tell("p2", "sent", 302, 0)
    story.tell("p1", "sent", 303, 1)
    story.clock = since + 2
    story.tell("p1", "acknowledged", 301, 0, 20)
    assert recordings.resumed(since)["p1"] is None, "partition 1 has not moved"
    story.clock = since + 3
    story.tell("p1", "acknowledged", 303, 1, 20)
    story.log |= {(0, 20): b"p1:301", (1, 20): b"p1:303"}
    story.clock = since + 4
    story.polled("c0", 0, 20)
    story.polled("c1", 1, 20)
    resumed = recordings.resumed(since)
    assert resumed["p1"] == pytest.approx(3, abs=0.1)
    assert resumed["p2"] is None
    assert resumed["search"] == pytest.approx(4, abs=0.1)


def test_what_a_group_has_not_read_is_counted(story: Story) -> None:
    recordings = Recordings(story.clients.values())
    assert recordings.unread("search", {0: 20, 1: 20}) == 0
    assert recordings.unread("search", {0: 25, 1: 21}) == 6


def test_latencies_and_percentiles(story: Story) -> None:
    found = Recordings(story.clients.values()).latencies_ms()
    assert len(found) == 40
    assert percentile(found, 0.5) == pytest.approx(1.0)
    assert percentile([1.0, 2.0, 3.0], 1.0) == 3.0
    assert percentile([], 0.5) != percentile([], 0.5)
