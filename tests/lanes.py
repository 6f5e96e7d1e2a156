"""Every test, in two lanes at the same time: ``python -m tests.lanes``, what ``make test`` does.

The tests of whole clusters wait most of the time (for sessions to expire, leases, reconnects), so everything else runs
beside them, one step down in priority: what measures how long a client had to pause keeps the machine to itself. The
lanes share nothing but the checkout; each takes ports nobody listens on and folders of its own.
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

NICE = 10
LANES: dict[str, tuple[list[str], int]] = {
    "whole processes": (["tests/e2e"], 0),
    "everything else": (["tests", "--ignore", "tests/e2e"], NICE),
}
"""What pytest is given, and how far it steps back."""
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
