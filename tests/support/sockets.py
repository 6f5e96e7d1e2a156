"""The kernel's own view of TCP connections between processes of this machine, from ``ss``."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tests.tools.require import require

_PID = re.compile(r"pid=(\d+)")
_MAPPED = re.compile(r"\[::ffff:([\d.]+)\]")
"""How Java's sockets show an IPv4 address."""
_SENT = re.compile(r"\bbytes_sent:(\d+)")


@dataclass(frozen=True, slots=True)
class Ends:
    """One connection: its two ends' addresses, in ascending order."""

    low: str
    high: str


@dataclass(frozen=True, slots=True)
class Carried:
    """Who holds the two ends (process ids), and all bytes that either has sent to the other so far."""

    low_pid: int
    high_pid: int
    byte_count: int


def require_ss() -> None:
    """Skip (or fail) the calling test without ``ss``."""
    require(shutil.which("ss") is not None, "ss (socket statistics)", "apt-get install iproute2")


def connections() -> dict[Ends, Carried]:
    """Every established connection of which both ends are held by processes of this machine that we may look at."""
    done = subprocess.run(["ss", "-tinpHO", "state", "established"], capture_output=True, text=True, check=True)
    held: dict[tuple[str, str], tuple[int, int]] = {}
    for line in done.stdout.splitlines():
        _, _, local, peer, *_ = _MAPPED.sub(r"\1", line).split()
        pid, sent = _PID.search(line), _SENT.search(line)
        if pid is not None:
            held[local, peer] = int(pid[1]), 0 if sent is None else int(sent[1])
    found = {}
    for (local, peer), (pid_, sent_) in held.items():
        other = held.get((peer, local))
        if other is not None and local < peer:
            found[Ends(local, peer)] = Carried(pid_, other[0], sent_ + other[1])
    return found


def between(clients: Collection[int], servers: Collection[int]) -> dict[int, Counter[int]]:
    """How many connections each of the processes ``clients`` has to which of ``servers``."""
    found: dict[int, Counter[int]] = {pid: Counter() for pid in clients}
    for carried in connections().values():
        for client, server in ((carried.low_pid, carried.high_pid), (carried.high_pid, carried.low_pid)):
            if client in found and server in servers:
                found[client][server] += 1
    return found


class ZoneSockets:
    """Adds up what connections between processes carried, by the zones these live in. Look again and again: of a
    connection that comes and goes between two looks nothing is known."""

    def __init__(self, zones: Mapping[int, str]) -> None:
        """``zones``: process ids to zones; others are in none, and are not counted."""
        self._zones = dict(zones)
        self._seen = connections()
        self.within: dict[tuple[int, int], int] = {}
        """Bytes by (pid, pid), the smaller first, of the same zone."""
        self.across: dict[tuple[int, int], int] = {}
        """The same, of different zones: also 0, for a new connection on which nothing was sent."""

    def look(self) -> None:
        """Add what was carried since the last look."""
        now = connections()
        for ends, carried in now.items():
            pair = min(carried.low_pid, carried.high_pid), max(carried.low_pid, carried.high_pid)
            if not all(pid in self._zones for pid in pair):
                continue
            before = self._seen.get(ends)
            if before is None or before.byte_count > carried.byte_count:
                before = Carried(*pair, 0)
            grown = carried.byte_count - before.byte_count
            if self._zones[pair[0]] == self._zones[pair[1]]:
                self.within[pair] = self.within.get(pair, 0) + grown
            elif grown or ends not in self._seen:
                self.across[pair] = self.across.get(pair, 0) + grown
        self._seen = now
