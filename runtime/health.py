"""What ``/healthz`` and ``/readyz`` answer."""

from __future__ import annotations

from collections.abc import Callable


class Health:
    """Liveness and readiness of one process.

    *Healthy* means the process can make progress (a restart would not help). *Ready* means clients
    should be sent here. Each check is a named callable that returns ``None`` when all is well, or one
    sentence that says what is wrong.
    """

    def __init__(self) -> None:
        self._live: dict[str, Callable[[], str | None]] = {}
        self._ready: dict[str, Callable[[], str | None]] = {}
        self._facts: dict[str, Callable[[], str]] = {}
        self._draining: str | None = "starting"

    def add_liveness(self, name: str, check: Callable[[], str | None]) -> None:
        self._live[name] = check

    def add_readiness(self, name: str, check: Callable[[], str | None]) -> None:
        self._ready[name] = check

    def add_fact(self, name: str, fact: Callable[[], str]) -> None:
        """Shown by ``/readyz``, whatever it says about readiness."""
        self._facts[name] = fact

    def facts(self) -> dict[str, str]:
        return {name: fact() for name, fact in self._facts.items()}

    def started(self) -> None:
        """The process serves clients from now on."""
        self._draining = None

    def draining(self, why: str) -> None:
        """The process no longer wants new clients."""
        self._draining = why

    def live_problems(self) -> dict[str, str]:
        return {name: problem for name, check in self._live.items() if (problem := check())}

    def ready_problems(self) -> dict[str, str]:
        problems = {name: problem for name, check in self._ready.items() if (problem := check())}
        if self._draining is not None:
            problems["lifecycle"] = self._draining
        return problems
