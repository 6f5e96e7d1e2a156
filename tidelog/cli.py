"""The ``tidelog`` command. Its options are stable; what each command does is in the file named after it."""

from __future__ import annotations

import enum
import sys
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from runtime.clock import SystemClock
from runtime.configuration import load_settings
from runtime.settings import Settings, SettingsError
from storage.urls import parse_storage_url
from tidelog import group, records, segment, topic
from tidelog.client import key_values
from tidelog.cluster import command as cluster
from tidelog.fsck.command import fsck
from tidelog.restore.command import restore

WRONG_SETTING = 2
COMMANDS = (
    "up",
    "agent",
    "metadata",
    "cluster",
    "demo",
    "topic",
    "produce",
    "consume",
    "group",
    "segment",
    "fsck",
    "restore",
)


class Shipper(enum.StrEnum):
    RSYSLOG = "rsyslog"
    BUNDLED = "bundled"


class _InOrder(TyperGroup):
    """Lists the commands as a newcomer needs them; click would put the groups of commands first."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=COMMANDS.index)


app = typer.Typer(
    cls=_InOrder,
    name="tidelog",
    help="An elastic, diskless log pipeline that speaks the Kafka protocol.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cluster.app, name="cluster", short_help="Start a whole cluster here; show what a cluster does.")
app.add_typer(topic.app, name="topic", short_help="Create, list, describe, configure, grow and delete topics.")
app.add_typer(group.app, name="group", short_help="List, describe, reset and delete consumer groups.")
app.add_typer(segment.app, name="segment", short_help="Explain an object of the bucket, or print its records.")
app.command("fsck", short_help="Check every object and every extent.")(fsck)
app.command("restore", short_help="Build the metadata anew from the bucket.")(restore)
app.command("produce", short_help="Send lines of standard input as records.")(records.produce)
app.command("consume", short_help="Print records as they come.")(records.consume)


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


Kafka = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Kafka listener. [default: 127.0.0.1:9092]")]
Http = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Health and metrics. [default: 127.0.0.1:8080]")]
Storage = Annotated[
    str | None, typer.Option(metavar="URL", help="file:///dir, memory:// or s3://bucket/prefix?endpoint=...&region=...")
]
Config = Annotated[Path | None, typer.Option(metavar="FILE", help="TOML file with settings (docs/configuration.md).")]
More = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any setting, such as ingest.linger_ms=100. Repeatable."),
]


@app.command(short_help="Run everything in one process.")
def up(
    kafka: Kafka = None,
    http: Http = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for everything kept here. [default: tidelog-data]")
    ] = None,
    storage: Storage = None,
    metadata: Annotated[str | None, typer.Option(metavar="URL", help="sqlite:///file or postgresql://...")] = None,
    config: Config = None,
    more: More = None,
) -> None:
    """Run everything in one process: agent, metadata, HTTP. SIGTERM and Ctrl-C drain and stop it."""
    clock = SystemClock()
    started = clock.monotonic()
    settings = _settings(
        config,
        more,
        {"listen.kafka": kafka, "listen.http": http, "data": data, "storage": storage, "metadata": metadata},
    )
    from tidelog.up import run  # the whole server: no other command should wait for its import

    raise typer.Exit(run(settings, clock, started))


@app.command(short_help="Run one agent of a cluster.")
def agent(
    metadata: Annotated[
        str | None,
        typer.Option(metavar="URL,...", help="http://host:port of the metadata processes, separated by commas."),
    ] = None,
    storage: Storage = None,
    zone: Annotated[str | None, typer.Option(help="Availability zone. [default: local]")] = None,
    group: Annotated[str | None, typer.Option(help="Agent group, a class of clients. [default: default]")] = None,
    kafka: Kafka = None,
    advertise: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where clients reach it. [default: the Kafka listener]")
    ] = None,
    http: Http = None,
    roles: Annotated[str | None, typer.Option(help="proxy, jobs or both. [default: proxy,jobs]")] = None,
    config: Config = None,
    more: More = None,
) -> None:
    """Run one agent of a cluster. SIGTERM and Ctrl-C move its clients to other agents, flush, and stop it."""
    clock = SystemClock()
    started = clock.monotonic()
    settings = _settings(
        config,
        more,
        {
            "metadata": metadata,
            "storage": storage,
            "zone": zone,
            "group": group,
            "listen.kafka": kafka,
            "listen.advertise": advertise,
            "listen.http": http,
            "roles": roles,
        },
    )
    from tidelog.agent import run

    raise typer.Exit(run(settings, clock, started))


@app.command(short_help="Run a metadata process of a cluster.")
def metadata(
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Calls, watches, health and metrics. [default: 127.0.0.1:8090]"),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="sqlite:///file, postgresql://user@host/database or memory://, the same for all."
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="The agents' storage: the metadata's journal goes there. [default: no journal]"
        ),
    ] = None,
    config: Config = None,
    more: More = None,
) -> None:
    """Run a metadata process. Of all on one store, one is active, and the others stand by to take over."""
    clock = SystemClock()
    started = clock.monotonic()
    settings = _settings(
        config,
        more,
        {"listen.metadata": listen, "metadata": store, "storage": storage},
        {"listen.metadata": "--listen", "metadata": "--store"},
    )
    from tidelog.metadata_process import run

    raise typer.Exit(run(settings, clock, started))


def _settings(
    config: Path | None,
    more: list[str] | None,
    flags: dict[str, Any],
    flag_names: dict[str, str] | None = None,
) -> Settings:
    """What a server command runs with; a wrong setting ends the command."""
    try:
        return load_settings(flags, config, key_values("--set", more or []), {"storage": parse_storage_url}, flag_names)
    except SettingsError as error:
        print(_prefixed(str(error)), file=sys.stderr)
        raise typer.Exit(WRONG_SETTING) from None


@app.command(short_help="Ship a real log through Tidelog and watch it come out.")
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


def _prefixed(message: str) -> str:
    return "\n".join(f"tidelog: {line}" for line in message.splitlines())


def main() -> None:
    """Entry point of the ``tidelog`` script."""
    # kio imports hypothesis wherever it finds it, for strategies nobody here uses: a third of the start-up time.
    sys.modules.setdefault("hypothesis", None)  # type: ignore[arg-type]
    app()
