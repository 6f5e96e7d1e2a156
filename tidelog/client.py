"""What the commands that talk to a cluster share: options, connection, errors, and tables or JSON.

They go through confluent-kafka, as any other client would.
"""

from __future__ import annotations

import json
import logging
import socket
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

from runtime.settings import SettingsError, parse_address

T = TypeVar("T")

CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 15.0

Bootstrap = Annotated[
    str,
    typer.Option(envvar="TIDELOG_BOOTSTRAP", metavar="HOST:PORT", help="Any agent of the cluster."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]

BOOTSTRAP_DEFAULT = "127.0.0.1:9092"


class CommandFailed(Exception):
    """The command could not do what it was asked; the message is for the user."""


@contextmanager
def failures_reported() -> Iterator[None]:
    """Turn a failure inside into one message on standard error and exit code 1."""
    try:
        yield
    except CommandFailed as failure:
        fail(str(failure))
    except KafkaException as failure:
        fail(describe_error(failure.args[0]))


def fail(message: str) -> NoReturn:
    """Say why on standard error and exit with 1."""
    print(f"tidelog: {message}", file=sys.stderr)
    raise typer.Exit(1)


def describe_error(error: KafkaError | str) -> str:
    """Kafka's name of the error, with the broker's own words where there are any."""
    if isinstance(error, KafkaError):
        return f"{error.name().lstrip('_')}: {error.str()}"
    return str(error)


def client_config(bootstrap: str, **more: Any) -> dict[str, Any]:
    """librdkafka's configuration for one short-lived client, silent but for what we report ourselves.

    :raises CommandFailed: nothing listens at any of the addresses.
    """
    _check_reachable(bootstrap)
    silent = logging.getLogger("tidelog.librdkafka")
    silent.disabled = True
    return {
        "bootstrap.servers": bootstrap,
        "client.id": "tidelog-cli",
        "logger": silent,
        "socket.connection.setup.timeout.ms": int(CONNECT_SECONDS * 1000),
        **more,
    }


def admin_client(bootstrap: str) -> AdminClient:
    """:raises CommandFailed: nothing listens at any of the addresses."""
    return AdminClient(client_config(bootstrap))


def _check_reachable(bootstrap: str) -> None:
    """librdkafka would try again until a timeout and then say only that it timed out."""
    problems = []
    for address in bootstrap.split(","):
        try:
            host, port = parse_address("--bootstrap", address.strip())
        except SettingsError as error:
            raise CommandFailed(str(error)) from None
        try:
            socket.create_connection((host, port), CONNECT_SECONDS).close()
        except OSError as error:
            problems.append(f"{address}: {error.strerror or error}")
        else:
            return
    raise CommandFailed(f"cannot reach the cluster (--bootstrap): {'; '.join(problems)}")


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
