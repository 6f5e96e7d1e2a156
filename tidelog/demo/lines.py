"""Real log lines of this machine, and their replay into a file that a shipper follows."""

from __future__ import annotations

import shutil
import subprocess
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import BinaryIO

from runtime.clock import Clock

FOLDER = Path("/var/log")
FILES_FIRST = ("syslog", "messages", "auth.log", "kern.log", "daemon.log", "dpkg.log")
LINES_MAX = 20_000
LINES_MIN = 200
FILE_BYTES_MAX = 4 * 1024 * 1024
LINE_CHARACTERS_MAX = 2_000
TICK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class LogLines:
    """What is replayed. ``source`` says where it is from."""

    source: str
    lines: Sequence[str]


def find_lines(folder: Path = FOLDER) -> LogLines:
    """Lines of the log files in ``folder`` that may be read, else of the journal, else made-up ones."""
    lines, files = _from_files(folder)
    if len(lines) >= LINES_MIN:
        return LogLines(f"{', '.join(files)} ({len(lines):,} lines)", lines)
    lines = _from_journal()
    if len(lines) >= LINES_MIN:
        return LogLines(f"journalctl ({len(lines):,} lines)", lines)
    lines = _made_up()
    return LogLines(f"made up, because no log file here may be read ({len(lines):,} lines)", lines)


def _from_files(folder: Path) -> tuple[list[str], list[str]]:
    candidates = [folder / name for name in FILES_FIRST]
    candidates += [path for pattern in ("*.log", "*/*.log") for path in sorted(folder.glob(pattern))]
    lines: list[str] = []
    files: list[str] = []
    for path in dict.fromkeys(candidates):
        try:
            with path.open("rb") as file:
                found = _cleaned(file.read(FILE_BYTES_MAX).decode(errors="replace").splitlines())
        except OSError:
            continue
        if found and len(lines) < LINES_MAX:
            lines += found[: LINES_MAX - len(lines)]
            files.append(str(path))
    return lines, files


def _from_journal() -> list[str]:
    if shutil.which("journalctl") is None:
        return []
    command = ["journalctl", "--no-pager", "--quiet", "--output=short-iso", f"--lines={LINES_MAX}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)
    return _cleaned(done.stdout.decode(errors="replace").splitlines())


def _made_up() -> list[str]:
    paths = ("/", "/login", "/api/orders", "/api/quotes?symbol=ACME", "/static/app.js", "/health")
    agents = ("curl/8.5.0", "Mozilla/5.0 (X11; Linux x86_64)", "okhttp/4.12", "python-requests/2.32")
    return [
        f"web-{index % 7} nginx: 10.{index % 200}.{index % 17}.{index % 251} "
        f'"GET {paths[index % len(paths)]} HTTP/1.1" {(200, 200, 200, 304, 404, 500)[index * 7 % 6]} '
        f'{index * 7919 % 40_000} "{agents[index % len(agents)]}" rt=0.{index * 104_729 % 1000:03d}'
        for index in range(5_000)
    ]


def _cleaned(lines: Iterable[str]) -> list[str]:
    """One printable line each: shippers escape or drop control characters, and the checksums must match."""
    kept = ("".join(c if c.isprintable() else " " for c in line[:LINE_CHARACTERS_MAX]).strip() for line in lines)
    return [line for line in kept if line]


class Tally:
    """Counts distinct lines and adds up their CRC32, in any order. Not thread-safe by itself."""

    def __init__(self) -> None:
        self.count = 0
        self.byte_count = 0
        self.checksum = 0

    def add(self, line: bytes) -> None:
        self.count += 1
        self.byte_count += len(line)
        self.checksum = (self.checksum + zlib.crc32(line)) & 0xFFFF_FFFF_FFFF_FFFF


class Replay:
    """A thread that appends lines to ``path``: one at once, and from :meth:`go` on ``rate`` a second, round and round.

    The first line shows when the whole way works. Each line is
    ``<milliseconds since 1970> <number> <the original line>``; of ``replays`` replays that run at the same time,
    number ``index`` (from 0) writes every number that leaves ``index`` when divided by them, without gaps.
    """

    def __init__(
        self, path: Path, lines: Sequence[str], rate: int, clock: Clock, index: int = 0, replays: int = 1
    ) -> None:
        self.written = Tally()
        self.problem: str | None = None
        self._path = path
        self._lines = [line.encode() for line in lines]
        self._rate = rate
        self._clock = clock
        self._index = index
        self._replays = replays
        self._going = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="replay", daemon=True)

    def start(self) -> None:
        self._path.touch()
        self._thread.start()

    def go(self) -> None:
        """From the first line to the full rate."""
        self._going.set()

    def stop(self) -> None:
        """Every line counted in ``written`` is in the file when this returns."""
        self._stopping.set()
        self._going.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._write_lines()
        except OSError as error:
            self.problem = f"cannot write {self._path}: {error.strerror}"

    def _write_lines(self) -> None:
        lines = cycle(self._lines)
        with self._path.open("ab") as file:
            self._append(file, lines, 1)
            self._going.wait()
            began = self._clock.monotonic()
            while not self._stopping.wait(TICK_SECONDS):
                due = 1 + int((self._clock.monotonic() - began) * self._rate)
                self._append(file, lines, due - self.written.count)

    def _append(self, file: BinaryIO, lines: Iterator[bytes], count: int) -> None:
        stamp = b"%d" % self._clock.now_ms()
        first = self.written.count
        numbers = (self._index + (first + more) * self._replays for more in range(count))
        batch = [b"%s %d %s" % (stamp, number, next(lines)) for number in numbers]
        file.write(b"".join(line + b"\n" for line in batch))
        file.flush()
        for line in batch:
            self.written.add(line)
