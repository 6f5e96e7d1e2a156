import pytest

from runtime.budget import Budget


def test_bytes_are_accounted_by_purpose() -> None:
    budget = Budget(1_000)
    budget.take("request", 300)
    budget.take("segment", 200)
    budget.give("request", 100)
    assert (budget.held_bytes, budget.by_purpose["request"], budget.by_purpose["segment"]) == (400, 200, 200)
    assert not budget.exhausted


def test_taking_never_fails_but_marks_the_budget_exhausted_until_there_is_real_room() -> None:
    budget = Budget(1_000)
    budget.take("request", 1_500)
    assert budget.exhausted
    budget.give("request", 500)
    assert budget.exhausted, "exactly at the limit"
    budget.give("request", 100)
    assert budget.exhausted, "at 90 % it does not flap back"
    budget.give("request", 1)
    assert not budget.exhausted


def test_those_who_wait_are_woken_once_and_the_forgotten_are_not() -> None:
    budget = Budget(100)
    woken: list[str] = []
    budget.take("request", 100)
    for owner in ("a", "b", "c"):
        budget.when_available(owner, lambda owner=owner: woken.append(owner))  # type: ignore[misc]
    budget.when_available("a", lambda: woken.append("a again"))
    budget.forget("b")
    budget.forget("nobody")
    budget.give("request", 50)
    assert woken == ["a again", "c"]
    budget.take("request", 50)
    budget.give("request", 100)
    assert woken == ["a again", "c"]


def test_one_who_takes_again_while_being_woken_may_wait_again() -> None:
    budget = Budget(100)
    resumed: list[int] = []

    def resume() -> None:
        resumed.append(budget.held_bytes)
        if len(resumed) < 3:
            budget.take("request", 100)
            budget.when_available("me", resume)

    budget.take("request", 100)
    budget.when_available("me", resume)
    for _ in range(3):
        budget.give("request", 100)
    assert resumed == [0, 0, 0]


def test_giving_back_more_than_was_taken_is_a_bug_and_a_limit_must_be_positive() -> None:
    budget = Budget(100)
    budget.take("request", 10)
    with pytest.raises(AssertionError, match="never taken"):
        budget.give("request", 11)
    with pytest.raises(AssertionError, match="never taken"):
        budget.give("segment", 1)
    with pytest.raises(ValueError, match="positive"):
        Budget(0)
