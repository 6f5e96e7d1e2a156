"""Whether an agent should take itself out of the answers, and when it may come back. Pure.

Being taken out moves clients, so it takes a symptom that lasts, and coming back takes longer than falling ill: an
agent that is ill every few seconds stays out.

===============================  ==============================================================================
symptom                          makes it SICK
===============================  ==============================================================================
the event loop comes late        :data:`STALLS_MAX` times by :data:`STALL_SECONDS` within :data:`STALL_WINDOW_SECONDS`
uploads fail, all of them        for :data:`UPLOADS_FAIL_SECONDS`
the metadata service is away     for :data:`METADATA_AWAY_SECONDS`, for commits or for heartbeats
===============================  ==============================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

STALL_SECONDS: Final = 0.5
"""So late is felt by every client of the agent: twice a usual acknowledgement. Collecting garbage takes a tenth."""
STALLS_MAX: Final = 3
"""One or two come with a large answer or a busy host; three in a row are a pattern."""
STALL_WINDOW_SECONDS: Final = 15.0
UPLOADS_FAIL_SECONDS: Final = 5.0
"""A PUT is hedged after 0.12 s and tried again after 0.1 to 5 s: when nothing has worked for so long, producers have
been waiting for ten times what they are used to, and another agent may have a way to the store."""
METADATA_AWAY_SECONDS: Final = 15.0
"""Longer than any failover (10 s): while nobody has a metadata service, moving clients about helps nobody."""
RECOVERY_SECONDS: Final = 10.0
"""Without any symptom before it is READY again."""


@dataclass(frozen=True, slots=True)
class Symptoms:
    """What an agent sees of itself at one moment."""

    stalls: int = 0
    """Within :data:`STALL_WINDOW_SECONDS`, each of :data:`STALL_SECONDS` or more."""
    stall_seconds_max: float = 0.0
    uploads_fail_seconds: float = 0.0
    """Since when no upload has worked, though some were tried; 0: they work, or nothing is to upload."""
    uploads_problem: str = ""
    metadata_away_seconds: float = 0.0
    """Since when neither a commit that was due nor a heartbeat was answered; 0: the latest was."""
    metadata_problem: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """``reason`` is one sentence while SICK, else empty. ``well_since`` is for :func:`diagnose` alone."""

    reason: str = ""
    well_since: float | None = None


HEALTHY: Final = Diagnosis()


def complaint(symptoms: Symptoms) -> str:
    """What is wrong enough to be SICK for, in one sentence; empty when nothing is."""
    if symptoms.uploads_fail_seconds >= UPLOADS_FAIL_SECONDS:
        return f"uploads have been failing for {symptoms.uploads_fail_seconds:.0f} s: {symptoms.uploads_problem}"
    if symptoms.metadata_away_seconds >= METADATA_AWAY_SECONDS:
        return (
            f"the metadata service has not answered for {symptoms.metadata_away_seconds:.0f} s: "
            f"{symptoms.metadata_problem}"
        )
    if symptoms.stalls >= STALLS_MAX:
        return (
            f"the event loop stood still {symptoms.stalls} times within {STALL_WINDOW_SECONDS:.0f} s, "
            f"up to {symptoms.stall_seconds_max:.1f} s"
        )
    return ""


def has_symptom(symptoms: Symptoms) -> bool:
    """Anything at all that speaks against being well."""
    return symptoms.stalls > 0 or symptoms.uploads_fail_seconds > 0 or symptoms.metadata_away_seconds > 0


def diagnose(symptoms: Symptoms, before: Diagnosis, now: float) -> Diagnosis:
    """The diagnosis at ``now`` (monotonic seconds), given the one ``before``."""
    reason = complaint(symptoms)
    if reason:
        return Diagnosis(reason)
    if not before.reason:
        return HEALTHY
    if has_symptom(symptoms):
        return Diagnosis(before.reason)
    well_since = now if before.well_since is None else before.well_since
    if now - well_since >= RECOVERY_SECONDS:
        return HEALTHY
    return Diagnosis(before.reason, well_since)
