"""The checker of crash histories must see each kind of violation: one that never fails checks nothing."""

from __future__ import annotations

import pytest

from tests.support.history import History, Record


def _true_history() -> History:
    """Two producers, two partitions, ten records each, all acknowledged and read, some twice."""
    history = History()
    history.idempotent("once")
    history.ordered("plain")
    for partition in (0, 1):
        for offset in range(20):
            record = Record("once" if offset % 2 else "plain", partition * 100 + offset // 2)
            history.sent(record, partition)
            history.acknowledged(record, partition, offset)
            history.read(partition, offset, record.encode())
            history.read_finally(partition, offset, record.encode())
    for offset in (0, 5, 5, 20):
        history.committed("group", 0, offset)
        floor = history.committed_floor("group", 0)
        history.committed_answer("group", 0, floor, offset)
    return history


def _kinds(history: History) -> set[str]:
    return {violation.kind for violation in history.violations()}


def test_a_true_history_has_no_violations() -> None:
    assert _true_history().violations() == []


def test_what_was_sent_but_not_acknowledged_may_be_missing_or_there() -> None:
    history = _true_history()
    history.sent(Record("plain", 900), 0)
    history.sent(Record("plain", 901), 0)
    history.read_finally(0, 20, Record("plain", 901).encode())
    assert history.violations() == []


def test_a_plain_producers_retry_may_be_there_twice() -> None:
    history = _true_history()
    history.read_finally(0, 20, Record("plain", 9).encode())
    assert history.violations() == []


def test_an_acknowledged_record_that_is_gone_is_lost() -> None:
    history = _true_history()
    history.sent(Record("plain", 950), 0)
    history.acknowledged(Record("plain", 950), 0, 20)
    assert _kinds(history) == {"lost"}


def test_an_acknowledged_record_at_another_offset_is_lost() -> None:
    history = _true_history()
    history.sent(Record("plain", 950), 0)
    history.acknowledged(Record("plain", 950), 0, 21)
    history.read_finally(0, 20, Record("plain", 950).encode())
    assert "lost" in _kinds(history)


def test_two_acknowledgements_of_one_offset() -> None:
    history = _true_history()
    history.sent(Record("plain", 950), 0)
    history.acknowledged(Record("plain", 950), 0, 19)
    assert "offset reused" in _kinds(history)


def test_what_was_read_at_an_offset_changes() -> None:
    history = _true_history()
    history.sent(Record("plain", 950), 0)
    history.read(0, 3, Record("plain", 950).encode())
    assert _kinds(history) == {"offset reused"}


def test_a_hole() -> None:
    history = _true_history()
    history.sent(Record("plain", 950), 0)
    history.read_finally(0, 25, Record("plain", 950).encode())
    assert _kinds(history) == {"hole"}


def test_an_idempotent_record_that_is_there_twice() -> None:
    history = _true_history()
    history.read_finally(0, 20, Record("once", 9).encode())
    assert _kinds(history) == {"duplicated"}


@pytest.mark.parametrize("producer", ["once", "plain"])
def test_a_producers_records_out_of_order(producer: str) -> None:
    history = _true_history()
    for sequence, offset in ((901, 20), (900, 21)):
        history.sent(Record(producer, sequence), 0)
        history.read_finally(0, offset, Record(producer, sequence).encode())
    assert "reordered" in _kinds(history)


def test_a_producer_that_promises_no_order_may_have_none() -> None:
    history = _true_history()
    for sequence, offset in ((901, 20), (900, 21)):
        history.sent(Record("loose", sequence), 0)
        history.read_finally(0, offset, Record("loose", sequence).encode())
    assert history.violations() == []


def test_an_idempotent_producer_that_skipped_a_record() -> None:
    history = _true_history()
    history.sent(Record("once", 900), 0)
    history.sent(Record("once", 901), 0)
    history.read_finally(0, 20, Record("once", 901).encode())
    assert _kinds(history) == {"unread"}


def test_a_record_nobody_sent() -> None:
    history = _true_history()
    history.read_finally(0, 20, Record("plain", 999).encode())
    assert _kinds(history) == {"invented"}


def test_a_record_in_a_partition_it_was_not_sent_to() -> None:
    history = _true_history()
    history.read_finally(0, 20, Record("plain", 105).encode())
    assert "invented" in _kinds(history)


def test_a_committed_offset_that_went_back() -> None:
    history = _true_history()
    history.committed_answer("group", 0, history.committed_floor("group", 0), 19)
    assert _kinds(history) == {"went back"}


def test_an_answer_that_was_given_and_then_taken_back() -> None:
    history = _true_history()
    history.committed_answer("group", 0, history.committed_floor("group", 0), 30)
    assert history.violations() == []
    history.committed_answer("group", 0, history.committed_floor("group", 0), 20)
    assert _kinds(history) == {"went back"}


def test_an_answer_may_be_older_than_a_commit_that_ran_beside_the_question() -> None:
    history = _true_history()
    floor = history.committed_floor("group", 0)
    history.committed("group", 0, 40)
    history.committed_answer("group", 0, floor, 20)
    assert history.violations() == []
