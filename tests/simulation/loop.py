"""One event loop for a whole simulated cluster: virtual time, a fixed order, and processes that can freeze and die.

Nothing waits: when nothing is ready, time jumps to the next timer. What is ready runs first-in first-out and timers of
one moment in the order they were set, as in production; interleavings come from the latencies that the world draws.

Every handle carries a context, and the context says whose it is (:data:`PROCESS`). A frozen process's handles wait
until it thaws; a dead one's are dropped, so that not one line of it runs after its death, ``finally`` included.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from asyncio import events
from collections.abc import Callable, Coroutine
from typing import Any

PROCESS: contextvars.ContextVar[SimProcess | None] = contextvars.ContextVar("PROCESS", default=None)
"""Whose code is running; None for the world itself (the network, the stores, the referee)."""

STEPS_WITHOUT_TIME_MAX = 500_000
"""More callbacks in one moment than that are a loop that never waits."""


class Stuck(Exception):
    """Nothing can ever run again, or something runs for ever without waiting."""


class SimProcess:
    """One life of one process: where it is, whether it runs, and how wrong its wall clock is."""

    def __init__(self, name: str, host: str, zone: str) -> None:
        self.name = name
        self.host = host
        self.zone = zone
        self.dead = False
        self.frozen = False
        self.clock_skew_ms = 0
        self.backlog: list[asyncio.Handle] = []
        """What became ready while it was frozen."""
        self.context = contextvars.copy_context()
        self.context.run(PROCESS.set, self)

    def __repr__(self) -> str:
        return self.name


class SimFuture(asyncio.Future[Any]):
    """Hashes by ordinal, not by address: asyncio keeps futures and tasks in sets, and walks them."""

    def __init__(self, *, loop: SimLoop) -> None:
        super().__init__(loop=loop)
        self._ordinal = loop.next_ordinal()

    def __hash__(self) -> int:
        return self._ordinal


class SimTask(asyncio.Task[Any]):
    """See :class:`SimFuture`. ``process`` is whose task it is."""

    def __init__(self, work: Coroutine[Any, Any, Any], *, loop: SimLoop, name: str | None = None) -> None:
        # The base class puts itself into a set, so the hash comes first.
        self._ordinal = loop.next_ordinal()
        self.process = PROCESS.get()
        super().__init__(work, loop=loop, name=name or f"task-{self._ordinal}")
        self._log_destroy_pending = False

    def __hash__(self) -> int:
        return self._ordinal


class SimLoop(asyncio.BaseEventLoop):
    """See the module's text. Threads, sockets and signals do not exist here."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_set = 0
        self._ordinals = 0
        self._steps_now = 0
        self.steps = 0
        """Callbacks that ran."""
        self.graveyard: list[Any] = []
        """Tasks of dead processes: dropped, their ``finally`` blocks would run."""
        self.unexpected: list[str] = []
        """What reached the loop's exception handler."""
        self.set_exception_handler(self._note_unexpected)
        self.world_context = contextvars.copy_context()
        self.world_context.run(PROCESS.set, None)

    def next_ordinal(self) -> int:
        self._ordinals += 1
        return self._ordinals

    # --- asyncio's side -----------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def create_future(self) -> asyncio.Future[Any]:
        return SimFuture(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: contextvars.Context | None = None
    ) -> asyncio.Task[Any]:
        if context is not None:
            return context.run(SimTask, coro, loop=self, name=name)
        return SimTask(coro, loop=self, name=name)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        timer = events.TimerHandle(when, callback, args, self, context)
        self._timers_set += 1
        heapq.heappush(self._timers, (when, self._timers_set, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is skipped when its time comes."""

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """At once, on this thread: what a thread would do takes no virtual time."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def __del__(self) -> None:
        """Not closed: the ``finally`` blocks of what never ended may still come by."""

    def _run_once(self) -> None:
        ready = self._ready  # type: ignore[attr-defined]
        if not ready:
            self._jump()
            return
        handle = ready.popleft()
        if handle._cancelled:
            return
        process = handle._context.get(PROCESS)
        if process is not None:
            if process.dead:
                return
            if process.frozen:
                process.backlog.append(handle)
                return
        self.steps += 1
        self._steps_now += 1
        if self._steps_now > STEPS_WITHOUT_TIME_MAX:
            raise Stuck(f"{handle} runs again and again without waiting")
        handle._run()

    def _jump(self) -> None:
        """On to the next timer that still counts."""
        timers = self._timers
        while timers:
            when, _, timer = heapq.heappop(timers)
            if timer._cancelled:
                continue
            if when > self._now:
                self._now = when
                self._steps_now = 0
            self._ready.append(timer)  # type: ignore[attr-defined]
            return
        raise Stuck("nothing can ever run again: every task waits for something that no timer brings")

    def _note_unexpected(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if "never retrieved" in context["message"]:
            return  # said when something is collected, which is no fixed moment
        self.unexpected.append(f"{context['message']}: {error!r}")

    # --- the world's side ---------------------------------------------------------------------------------

    def start_in(self, process: SimProcess, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run ``work`` as a task of ``process``."""
        return process.context.copy().run(self.create_task, work, name=name)

    def kill(self, process: SimProcess) -> None:
        """Nothing of it runs from now on."""
        process.dead = True
        self.graveyard += [task for task in asyncio.all_tasks(self) if getattr(task, "process", None) is process]
        self.graveyard += process.backlog
        process.backlog = []

    def freeze(self, process: SimProcess) -> None:
        """As SIGSTOP: time goes on without it."""
        process.frozen = True

    def thaw(self, process: SimProcess) -> None:
        process.frozen = False
        backlog, process.backlog = process.backlog, []
        self._ready.extend(backlog)  # type: ignore[attr-defined]


class SimClock:
    """A process's clocks: the monotonic one is the loop's, the wall clock is off by the process's skew."""

    def __init__(self, loop: SimLoop, process: SimProcess | None) -> None:
        self._loop = loop
        self._process = process

    def now_ms(self) -> int:
        skew_ms = 0 if self._process is None else self._process.clock_skew_ms
        return 1_700_000_000_000 + int(self._loop.time() * 1000) + skew_ms

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
