"""The ``tidelog`` command. Its options are stable; what each command does is in the file named after it."""

from __future__ import annotations

import enum
import sys
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Annotated, Any

import typer

from runtime.clock import SystemClock
from runtime.configuration import load_settings, setting_names
from runtime.settings import SettingsError
from tidelog import group, records, topic
from tidelog.client import key_values

WRONG_SETTING = 2


class Shipper(enum.StrEnum):
    RSYSLOG = "rsyslog"
    BUNDLED = "bundled"


app = typer.Typer(
    name="tidelog",
    help="An elastic, diskless log pipeline that speaks the Kafka protocol.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(topic.app, name="topic")
app.add_typer(group.app, name="group")
app.command("produce")(records.produce)
app.command("consume")(records.consume)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tidelog {distribution_version('tidelog')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""


@app.command()
def up(
    kafka: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Kafka listener. [default: 127.0.0.1:9092]")
    ] = None,
    http: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Health and metrics. [default: 127.0.0.1:8080]")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for everything kept here. [default: tidelog-data]")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="file:///dir, memory:// or s3://bucket/prefix?endpoint=...&region=..."),
    ] = None,
    metadata: Annotated[str | None, typer.Option(metavar="URL", help="sqlite:///file")] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML file with settings (docs/configuration.md).")
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting, such as ingest.linger_ms=100. Repeatable."),
    ] = None,
) -> None:
    """Run everything in one process: agent, metadata, HTTP. SIGTERM and Ctrl-C drain and stop it."""
    clock = SystemClock()
    started = clock.monotonic()
    flags: dict[str, Any] = {
        "listen.kafka": kafka,
        "listen.http": http,
        "data": data,
        "storage": storage,
        "metadata": metadata,
    }
    try:
        settings = load_settings(flags | _named_settings(more or []), config)
    except SettingsError as error:
        print(_prefixed(str(error)), file=sys.stderr)
        raise typer.Exit(WRONG_SETTING) from None
    from tidelog.up import run  # the whole server: no other command should wait for its import

    raise typer.Exit(run(settings, clock, started))


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(min=5, help="How long to run.")] = 60.0,
    rate: Annotated[int, typer.Option(min=1, max=100_000, help="Log lines a second to ship.")] = 2_000,
    shipper: Annotated[
        Shipper | None, typer.Option(help="Who ships. [default: rsyslog when it is installed, else bundled]")
    ] = None,
) -> None:
    """Ship a real log through Tidelog and watch it come out of a consumer group."""
    from tidelog.demo import run

    raise typer.Exit(run(seconds, rate, shipper))


def _named_settings(pairs: list[str]) -> dict[str, str]:
    known = set(setting_names())
    named = key_values("--set", pairs)
    for name in named:
        if name not in known:
            raise SettingsError(f"{name}: there is no such setting (docs/configuration.md lists them)")
    return named


def _prefixed(message: str) -> str:
    return "\n".join(f"tidelog: {line}" for line in message.splitlines())


def main() -> None:
    """Entry point of the ``tidelog`` script."""
    # kio imports hypothesis wherever it finds it, for strategies nobody here uses: a third of the start-up time.
    sys.modules.setdefault("hypothesis", None)  # type: ignore[arg-type]
    app()
