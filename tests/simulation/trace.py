"""What happened in a simulated world, line by line, in order: equal worlds write equal traces, byte for byte."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.loop import SimLoop


class Trace:
    """Lines with their virtual time. ``echo`` prints them as they come."""

    def __init__(self, echo: bool = False) -> None:
        self.lines: list[str] = []
        self.loop: SimLoop | None = None
        self._echo = echo

    def note(self, who: object, what: str, *details: Any) -> None:
        """One line: when, who, what."""
        now = 0.0 if self.loop is None else self.loop.time()
        line = f"{now:10.6f} {who!s:<12} {what} {' '.join(map(str, details))}"
        self.lines.append(line)
        if self._echo:
            print(line)

    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()
