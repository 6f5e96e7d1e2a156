"""The board of jobs: each transition of the table in :mod:`metadata.jobs`."""

from __future__ import annotations

from metadata.jobs import JOBS_PER_KIND_MAX, PAUSE_MS, Job, JobBoard

LEASE_MS = 1_000
A, B = Job("tidy", "a", b"1"), Job("tidy", "b", b"2")
OTHER = Job("other", "a", b"3")


def board(*jobs: Job) -> JobBoard:
    made = JobBoard(LEASE_MS)
    made.offer(jobs)
    return made


def targets(board: JobBoard, epoch: int, now: int, *, kinds: tuple[str, ...] = ("tidy",), count: int = 9) -> list[str]:
    return [lease.target for lease in board.lease(epoch, kinds, count, now)]


def test_jobs_are_leased_once_oldest_first_and_only_those_of_the_kinds_asked_for() -> None:
    made = board(A, OTHER, B)
    (lease,) = made.lease(1, ["tidy"], 1, 0)
    assert (lease.kind, lease.target, lease.payload, lease.lease_ms) == ("tidy", "a", b"1", LEASE_MS)
    assert targets(made, 2, 0) == ["b"]
    assert targets(made, 2, 0) == []
    assert made.counts("tidy") == (0, 2)
    assert targets(made, 2, 0, kinds=("tidy", "other")) == ["a"]


def test_a_job_that_is_here_is_not_offered_again_in_whatever_state_it_is() -> None:
    made = board(A, A)
    made.offer([A])
    (lease,) = made.lease(1, ["tidy"], 9, 0)
    made.offer([A])
    assert made.finish(1, lease.lease_id, 1) == A
    made.offer([A])
    assert targets(made, 1, 1) == []
    made.settle(A, succeeded=True, now=1)
    assert made.jobs("tidy") == []
    made.offer([A])
    assert targets(made, 1, 2) == ["a"]


def test_a_lease_that_is_not_renewed_ends_and_the_late_agent_is_refused() -> None:
    made = board(A)
    (first,) = made.lease(1, ["tidy"], 9, 0)
    assert targets(made, 2, LEASE_MS - 1) == []
    (second,) = made.lease(2, ["tidy"], 9, LEASE_MS)
    assert made.renew(1, [first.lease_id], LEASE_MS) == []
    assert made.finish(1, first.lease_id, LEASE_MS) is None
    assert made.finish(1, second.lease_id, LEASE_MS) is None, "it is another agent's"
    assert made.finish(2, second.lease_id, LEASE_MS) == A


def test_a_lease_that_is_renewed_goes_on() -> None:
    made = board(A)
    (lease,) = made.lease(1, ["tidy"], 9, 0)
    assert made.renew(1, [lease.lease_id, 99], LEASE_MS - 1) == [lease.lease_id]
    assert made.renew(2, [lease.lease_id], LEASE_MS - 1) == []
    assert targets(made, 2, 2 * LEASE_MS - 2) == []
    assert targets(made, 2, 2 * LEASE_MS - 1) == ["a"]


def test_an_agent_that_is_gone_loses_its_leases_at_once() -> None:
    made = board(A, B)
    (first, second) = made.lease(1, ["tidy"], 1, 0) + made.lease(2, ["tidy"], 1, 0)
    made.keep({2, 3})
    assert made.finish(1, first.lease_id, 1) is None
    assert targets(made, 3, 1) == ["a"]
    assert made.finish(2, second.lease_id, 1) == B


def test_what_fails_comes_up_again_after_a_growing_pause() -> None:
    made = board(A)
    now, pauses = 0, []
    for _ in range(8):
        (lease,) = made.lease(1, ["tidy"], 9, now)
        assert made.give_back(1, lease.lease_id, now) == A
        failed = now
        while not made.lease(9, ["tidy"], 9, now):
            now += 500
        made.keep({1})
        pauses.append(now - failed)
    assert pauses[:3] == [PAUSE_MS[0], 2 * PAUSE_MS[0], 4 * PAUSE_MS[0]]
    assert pauses[-1] == PAUSE_MS[1]


def test_a_result_that_could_not_be_kept_makes_the_job_open_again() -> None:
    made = board(A)
    (lease,) = made.lease(1, ["tidy"], 9, 0)
    made.finish(1, lease.lease_id, 0)
    made.settle(A, succeeded=False, now=0)
    assert targets(made, 2, PAUSE_MS[0] - 1) == []
    assert targets(made, 2, PAUSE_MS[0]) == ["a"]


def test_the_board_is_bounded() -> None:
    made = board(*[Job("tidy", str(number), b"") for number in range(JOBS_PER_KIND_MAX + 10)], OTHER)
    assert len(made.jobs("tidy")) == JOBS_PER_KIND_MAX
    assert made.jobs("other") == [OTHER]
