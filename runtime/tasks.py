"""Named background tasks with one owner.

Every long-running task of a process is started through a :class:`Supervisor`. A task that
ends with an exception is logged once and reported through ``on_failure``; the process then
shuts down in order instead of limping on without, say, its committer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

_log = structlog.get_logger("tidelog.tasks")


class Supervisor:
    """Owns tasks by name; not thread-safe, one event loop.

    ``on_failure(name, error)`` is called once per task that ends with an exception other than
    cancellation.
    """

    def __init__(self, on_failure: Callable[[str, BaseException], None] | None = None) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._on_failure = on_failure

    def start(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run ``work`` as the task ``name`` until it ends or :meth:`stop` cancels it."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def __len__(self) -> int:
        return len(self._tasks)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            return
        _log.error("task_failed", task=task.get_name(), error=repr(error), exc_info=error)
        if self._on_failure is not None:
            self._on_failure(task.get_name(), error)

    async def stop(self) -> None:
        """Cancel every task and wait until each one has ended. Idempotent."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
