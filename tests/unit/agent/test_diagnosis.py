"""When an agent is sick, and when it is well again."""

import pytest

from agent.diagnosis import (
    HEALTHY,
    METADATA_AWAY_SECONDS,
    RECOVERY_SECONDS,
    STALLS_MAX,
    UPLOADS_FAIL_SECONDS,
    Diagnosis,
    Symptoms,
    diagnose,
)

FAILING = Symptoms(uploads_fail_seconds=UPLOADS_FAIL_SECONDS, uploads_problem="503 SlowDown")


@pytest.mark.parametrize(
    ("symptoms", "words"),
    [
        (FAILING, "uploads have been failing for 5 s: 503 SlowDown"),
        (
            Symptoms(metadata_away_seconds=METADATA_AWAY_SECONDS, metadata_problem="connection refused"),
            "the metadata service has not answered for 15 s: connection refused",
        ),
        (Symptoms(stalls=STALLS_MAX, stall_seconds_max=1.2), "stood still 3 times within 15 s, up to 1.2 s"),
    ],
)
def test_a_symptom_that_lasts_makes_sick_and_says_why(symptoms: Symptoms, words: str) -> None:
    assert words in diagnose(symptoms, HEALTHY, 100.0).reason


@pytest.mark.parametrize(
    "symptoms",
    [
        Symptoms(),
        Symptoms(uploads_fail_seconds=UPLOADS_FAIL_SECONDS - 0.1),
        Symptoms(metadata_away_seconds=METADATA_AWAY_SECONDS - 0.1),
        Symptoms(stalls=STALLS_MAX - 1, stall_seconds_max=9.0),
    ],
)
def test_less_than_that_does_not(symptoms: Symptoms) -> None:
    assert diagnose(symptoms, HEALTHY, 100.0) == HEALTHY


def test_well_again_only_after_a_while_without_any_symptom() -> None:
    sick = diagnose(FAILING, HEALTHY, 0.0)
    better = diagnose(Symptoms(), sick, 1.0)
    assert better.reason == sick.reason, "not yet"
    again = diagnose(Symptoms(uploads_fail_seconds=0.5), better, 5.0)
    assert again == Diagnosis(sick.reason), "one symptom, however small, starts the wait over"
    better = diagnose(Symptoms(), again, 6.0)
    assert diagnose(Symptoms(), better, 6.0 + RECOVERY_SECONDS - 0.1).reason == sick.reason
    assert diagnose(Symptoms(), better, 6.0 + RECOVERY_SECONDS) == HEALTHY


def test_one_illness_may_follow_another() -> None:
    sick = diagnose(FAILING, HEALTHY, 0.0)
    other = diagnose(Symptoms(stalls=STALLS_MAX, stall_seconds_max=1.0), sick, 1.0)
    assert "stood still" in other.reason
