"""A child process with its output in a file, which ends when its parent does, however that ends."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LOG_LINES_SHOWN = 15
_TAIL_BYTES = 64 * 1024

_LAUNCH = f"""\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, {int(signal.SIGKILL)}, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""Asks Linux to kill this process with its parent (PR_SET_PDEATHSIG, kept over exec), then becomes the command. A few
milliseconds; Popen's own hook between fork and exec is not safe in a parent with threads."""


class Child:
    """One process in a session of its own, so that Ctrl-C reaches only the parent, which ends it in order.

    On Linux it is killed when the thread that started it ends: start it from one that lives as long as it should.
    """

    def __init__(
        self, name: str, command: Sequence[str], log_path: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """``environment`` is all of it; None: this process's, without Tidelog's settings."""
        self.name = name
        self.log_path = log_path
        self._command = list(command)
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or again after it ended. Its output is added to the file.

        :raises OSError: it cannot be run.
        """
        assert self._process is None or self._process.poll() is not None, f"{self.name} is still running"
        if shutil.which(self._command[0]) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._command[0])
        environment = self._environment
        if environment is None:
            environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDELOG_")}
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*_launcher(), *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int | None:
        """None before it was started and after it ended."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Negative: the signal that ended it. None while it runs."""
        return None if self._process is None else self._process.poll()

    def problem(self) -> str | None:
        """What is wrong when it has ended by itself."""
        return None if self.exit_code is None else f"{self.name} {self.ending()}:\n{self.log_tail()}"

    def ending(self) -> str:
        """How it ended, in words."""
        code = self.exit_code
        if code is not None and code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def terminate(self) -> None:
        """SIGTERM, and SIGCONT in case it is frozen. Nothing happens when it has ended."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.send_signal(signal.SIGCONT)

    def stop(self, within_seconds: float) -> str | None:
        """SIGTERM; None when it ended with 0 in time, else what went wrong (it is killed then)."""
        if self._process is None:
            return None
        self.terminate()
        try:
            code = self._process.wait(within_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"{self.name} did not stop within {within_seconds:g} s of SIGTERM:\n{self.log_tail()}"
        return None if code == 0 else self.problem()

    def kill(self) -> None:
        """End it at once, whatever it does. Idempotent."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def log_tail(self, lines_max: int = LOG_LINES_SHOWN) -> str:
        """The last lines it wrote."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
                lines = log.read().decode(errors="replace").splitlines()[-lines_max:]
        except FileNotFoundError:
            lines = []
        return "\n".join(f"  {line}" for line in lines) or "  (it wrote nothing)"


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody has now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _launcher() -> list[str]:
    if sys.platform != "linux":
        return []
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid())]
