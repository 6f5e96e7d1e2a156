"""First answers to rare mutating calls, for retries that come after a failover. Pure.

Only calls that changed something are remembered: their answers are saved in the same write as the change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from metadata.store.port import CallAnswered, CallsForgotten, Change

CALLS_MAX = 10_000
"""Answers remembered; beyond it the oldest go early."""
CALLS_KEPT_MS = 600_000
"""Longer than any client goes on trying."""


class AnsweredCalls:
    """By call id, oldest first."""

    def __init__(self, saved: Iterable[CallAnswered]) -> None:
        self._calls = OrderedDict((call.call_id, call) for call in sorted(saved, key=lambda call: call.answered_ms))

    def __len__(self) -> int:
        return len(self._calls)

    def answer(self, call_id: str) -> bytes | None:
        """The first answer as it was encoded, None when the call is new (or forgotten)."""
        known = self._calls.get(call_id)
        return None if known is None else known.answer

    def remember(self, call_id: str, answer: bytes, now_ms: int, changes: list[Change]) -> None:
        """The call was answered for the first time, in the write that ``changes`` go into."""
        if self._calls:
            now_ms = max(now_ms, next(reversed(self._calls.values())).answered_ms)  # a clock that was set back
        self._calls[call_id] = call = CallAnswered(call_id, answer, now_ms)
        changes.append(call)
        if len(self._calls) > CALLS_MAX:
            self._calls.popitem(last=False)
            changes.append(CallsForgotten(next(iter(self._calls.values())).answered_ms))

    def forget(self, now_ms: int, changes: list[Change]) -> None:
        """Let go of what is old. Cost follows the result."""
        before_ms = now_ms - CALLS_KEPT_MS
        forgotten = False
        while self._calls and next(iter(self._calls.values())).answered_ms < before_ms:
            self._calls.popitem(last=False)
            forgotten = True
        if forgotten:
            changes.append(CallsForgotten(before_ms))
