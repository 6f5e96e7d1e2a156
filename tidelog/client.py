"""What the commands that talk to a cluster share: options, connection, errors, and tables or JSON.

They go through confluent-kafka, as any other client would.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from rich.console import Console
from rich.table import Table

from runtime.clock import Clock
from tidelog.connecting import CONNECT_SECONDS, Cluster, CommandFailed, unreachable

T = TypeVar("T")

REQUEST_SECONDS = 15.0
OUTAGE_SECONDS = 3.0

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]

NO_SUCH_TOPIC = "there is no such topic (UNKNOWN_TOPIC_OR_PART)"


@contextmanager
def failures_reported() -> Iterator[None]:
    """Turn a failure inside into one message on standard error and exit code 1."""
    try:
        yield
    except CommandFailed as failure:
        fail(str(failure))
    except KafkaException as failure:
        fail(describe_error(failure.args[0]))
    except ValueError as failure:  # confluent-kafka's own checks of arguments
        fail(str(failure))


def fail(message: str) -> NoReturn:
    """Say why on standard error and exit with 1."""
    print(f"tidelog: {message}", file=sys.stderr)
    raise typer.Exit(1)


def describe_error(error: KafkaError | str) -> str:
    """Kafka's name of the error, with the broker's own words where there are any."""
    if isinstance(error, KafkaError):
        if error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
            return NO_SUCH_TOPIC
        return f"{error.name().lstrip('_')}: {error.str()}"
    return str(error)


def client_config(cluster: Cluster, **more: Any) -> dict[str, Any]:
    """librdkafka's configuration for one short-lived client, silent but for what we report ourselves.

    :raises CommandFailed: no Kafka answers at any of the addresses, or a file for TLS is wrong.
    """
    problem = unreachable(cluster)
    if problem is not None:
        raise CommandFailed(problem)
    silent = logging.getLogger("tidelog.librdkafka")
    silent.disabled = True
    return {
        **cluster.librdkafka_config(),
        "client.id": "tidelog-cli",
        "logger": silent,
        "socket.connection.setup.timeout.ms": int(CONNECT_SECONDS * 1000),
        **more,
    }


def admin_client(cluster: Cluster) -> AdminClient:
    """:raises CommandFailed: as :func:`client_config`."""
    return AdminClient(client_config(cluster))


class OutageNotice:
    """One line on standard error for each outage that lasts: librdkafka tries again without a word.

    Not thread-safe: ``on_error`` is for librdkafka's ``error_cb``, which it calls from within poll and flush.
    """

    def __init__(self, cluster: Cluster, clock: Clock) -> None:
        self._cluster = cluster
        self._clock = clock
        self._look_at: float | None = None
        self._said = False

    def on_error(self, error: KafkaError) -> None:
        """An error that librdkafka goes on after."""
        if self._look_at is None and error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT):
            self._look_at = self._clock.monotonic() + OUTAGE_SECONDS

    def look(self) -> None:
        """Say so when the cluster was lost some seconds ago and still cannot be reached. Call it again and again."""
        if self._look_at is None or self._clock.monotonic() < self._look_at:
            return
        problem = unreachable(self._cluster)
        if problem is None:
            self._look_at, self._said = None, False
            return
        self._look_at = self._clock.monotonic() + OUTAGE_SECONDS
        if not self._said:
            self._said = True
            print(f"tidelog: {problem}; trying again until it answers", file=sys.stderr)


def results(futures: Mapping[Any, Future[T]]) -> dict[str, T]:
    """Wait for one admin call's futures.

    :raises CommandFailed: any of them failed; the message names each with its error.
    """
    found: dict[str, T] = {}
    problems = []
    for key, future in futures.items():
        name = getattr(key, "name", key)
        try:
            found[str(name)] = future.result(REQUEST_SECONDS)
        except KafkaException as failure:
            problems.append(f"{name}: {describe_error(failure.args[0])}")
    if problems:
        raise CommandFailed("\n".join(problems))
    return found


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """A table on standard output; numbers to the right, nothing cut off."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    shown = [[_text(cell) for cell in row] for row in rows]
    for index, column in enumerate(columns):
        numeric = bool(shown) and all(row[index].lstrip("-").isdigit() or row[index] == "-" for row in shown)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in shown:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 240
    Console(width=width, highlight=False, soft_wrap=False, markup=False).print(table)


def counted(count: int, noun: str) -> str:
    """``1 record``, ``2 records``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def show_json(value: object) -> None:
    """Indented JSON on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def key_values(option: str, pairs: Iterable[str]) -> dict[str, str]:
    """``k=v`` options as a dict. :raises typer.BadParameter: one is not of this form."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE", param_hint=option)
        found[name.strip()] = value
    return found


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    return cell.decode(errors="replace") if isinstance(cell, bytes) else str(cell)
