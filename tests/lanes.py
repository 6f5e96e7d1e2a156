"""Every test, in lanes at the same time: ``python -m tests.lanes``, what ``make test`` does.

The tests of whole processes wait most of the time: for sessions and leases to expire, for clients to reconnect. Those
that measure how long somebody had to wait are marked ``timed`` and have the machine's first call; the others run
beside them, a step or two down in priority. Lanes share nothing but the checkout: each takes ports nobody listens on,
and folders of its own. A test that is in no lane does not exist: each lane takes what the ones before leave.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

LANES: dict[str, tuple[list[str], int]] = {
    "timed": (["tests", "-m", "timed"], 0),
    "whole processes": (["tests/e2e", "-m", "not timed"], 5),
    "everything else": (["tests", "--ignore", "tests/e2e", "-m", "not timed"], 10),
}
"""What pytest is given, and how far it steps back (``nice``)."""
OPTIONS = ["-q", "--durations", "20"]
LOOK_SECONDS = 0.2


class Lane:
    """One pytest. What it writes is kept until it is its turn to be shown."""

    def __init__(self, name: str, arguments: list[str], nice: int) -> None:
        self.name = name
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (the process holds it too)
        command = ["nice", "-n", str(nice), sys.executable, "-m", "pytest", *OPTIONS, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output)

    def show(self) -> int:
        """Copy its output to ours until it ends; its exit code."""
        print(f"=== {self.name}", flush=True)
        shown = 0
        while True:
            ended = self.process.poll() is not None
            size = os.fstat(self._output.fileno()).st_size
            sys.stdout.buffer.write(os.pread(self._output.fileno(), size - shown, shown))
            sys.stdout.flush()
            shown = size
            if ended:
                print(f"=== {self.name}: exit code {self.process.returncode}", flush=True)
                return self.process.returncode
            time.sleep(LOOK_SECONDS)


def main() -> int:
    """Run all lanes; 0 when all passed, else the first failed one's exit code."""
    lanes: list[Lane] = []

    def stop(number: int, _: object) -> None:
        for lane in lanes:
            lane.process.send_signal(signal.SIGINT)  # pytest ends what its fixtures have started

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)  # before there are lanes: a shell's background job would ignore SIGINT
    lanes += [Lane(name, arguments, nice) for name, (arguments, nice) in LANES.items()]
    codes = [lane.show() for lane in lanes]
    return next((code for code in codes if code != 0), 0)


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parents[1])
    sys.exit(main())
