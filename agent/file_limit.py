"""What an agent asks of its process before it listens."""

from __future__ import annotations

import resource
from typing import Final

import structlog

OTHER_FILES: Final = 2_048
"""File descriptors kept for everything that is not a Kafka connection: half of them for the HTTP side."""

_log = structlog.get_logger("tidelog.kafka")


def raise_file_limit(connections_max: int, hint: str = "raise ulimit -n, or lower connection.connections_max") -> None:
    """Let this process have a file descriptor per connection, or say that it cannot."""
    wanted = connections_max + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        _log.warning(
            "few_file_descriptors",
            allowed=allowed,
            wanted=wanted,
            hint=hint,
        )
