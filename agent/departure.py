"""One connection while its agent sends clients elsewhere: what the client has been told, and what it still asks for."""

from __future__ import annotations

from typing import Final

from agent.handlers.moved import TELLS, WHERE_TO
from agent.wire.apis import API_VERSIONS

QUIET_SECONDS: Final = 0.5
"""A client that was told where to go has gone when it asks for nothing here for so long: several times what clients
wait before they try again. One that has not will find out, and be told again."""
UNTOLD_SECONDS: Final = 1.0
"""One that asks for nothing at all is closed after this: losing the connection makes it look where to go."""
_ON_THE_WAY: Final = WHERE_TO | {API_VERSIONS}
"""What a client asks on its way to another agent."""


class Departure:
    """Of one connection, from when the agent begins to send clients away. Times are monotonic seconds."""

    __slots__ = ("_asked_at", "told", "unanswered")

    def __init__(self, now: float) -> None:
        self._asked_at = now
        self.told = False
        """Where to go instead."""
        self.unanswered = False
        """It produces without wanting answers, so it can only be told by closing."""

    def asked(self, api_key: int, now: float) -> None:
        """A request came in."""
        if api_key not in _ON_THE_WAY:
            self._asked_at = now

    def answered(self, api_key: int) -> None:
        """A request was answered."""
        if api_key in TELLS:
            self.told = True

    def is_quiet(self, now: float) -> bool:
        """It has asked for nothing but where to go for long enough."""
        return now - self._asked_at >= (QUIET_SECONDS if self.told else UNTOLD_SECONDS)
