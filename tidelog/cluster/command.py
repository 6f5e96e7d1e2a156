"""``tidelog cluster``: a whole cluster on this machine, and what any cluster is doing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from runtime.clock import SystemClock
from tidelog.client import AsJson, failures_reported, key_values
from tidelog.cluster.plan import ClusterSpec
from tidelog.cluster.state_file import read_state
from tidelog.connecting import CommandFailed

app = typer.Typer(help="Start a whole cluster on this machine; show what a cluster does.", no_args_is_help=True)

DATA = Path("tidelog-cluster")


@app.command(short_help="Start a whole cluster on this machine.")
def up(
    zones: Annotated[str, typer.Option(metavar="A,B,...", help="Availability zones.")] = "a,b,c",
    groups: Annotated[
        str, typer.Option(metavar="G,H,...", help="Agent groups; `tls` gets a certificate made for it.")
    ] = "plaintext",
    agents_per_zone: Annotated[int, typer.Option(min=1, help="Agents of each group in each zone.")] = 1,
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder for data, logs and cluster.json.")] = DATA,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="file:///dir or s3://bucket/prefix?endpoint=...&region=... [default: in DIR]"),
    ] = None,
    metadata_store: Annotated[
        str | None, typer.Option(metavar="URL", help="postgresql://user@host/database [default: SQLite in DIR]")
    ] = None,
    kafka_port: Annotated[
        int, typer.Option(metavar="BASE", min=0, help="First Kafka port, others follow; 0 for any free ones.")
    ] = 9092,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of every process. Repeatable."),
    ] = None,
) -> None:
    """Start metadata processes (one leads, one stands by) and agents for each zone and group, with a log file for
    each, and watch them: one that dies is started again. SIGTERM and Ctrl-C drain and stop everything."""
    spec = ClusterSpec(
        _names(zones),
        _names(groups),
        data,
        agents_per_zone,
        storage,
        metadata_store,
        kafka_port,
        key_values("--set", more or []),
    )
    from tidelog.cluster.up import run  # the event loop and HTTP: no other command should wait for their import

    raise typer.Exit(run(spec, SystemClock()))


@app.command(short_help="Show agents, metadata processes, and what crossed zones.")
def status(
    metadata: Annotated[
        str | None,
        typer.Option(
            metavar="URL,...",
            help="http://host:port of the metadata processes, separated by commas. [default: from --data]",
        ),
    ] = None,
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder of a `tidelog cluster up`.")] = DATA,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until Ctrl-C.")] = False,
) -> None:
    """Show agents by zone and group with their condition, load and epoch, who leads, and what crossed zones."""
    from tidelog.cluster.status import show

    with failures_reported():
        show(_urls(metadata, data), os.environ.get("TIDELOG_SECRET"), as_json=as_json, watch=watch)


@app.command(short_help="Watch a cluster serve, lose two processes, and lose no line.")
def demo(
    seconds: Annotated[float, typer.Option(min=15, help="How long to ship.")] = 60.0,
    rate: Annotated[int, typer.Option(min=1, max=20_000, help="Log lines a second to ship in each zone.")] = 500,
    shipper: Annotated[
        str | None, typer.Option(help="rsyslog or bundled. [default: rsyslog when it is installed]")
    ] = None,
) -> None:
    """Three zones and two groups under real shippers: a leader and an agent are killed, and every line is counted."""
    from tidelog.cluster.demo import run

    raise typer.Exit(run(seconds, rate, shipper))


def _urls(metadata: str | None, data: Path) -> list[str]:
    """:raises CommandFailed: none are known."""
    if metadata is not None:
        return [url if "://" in url else f"http://{url}" for url in (part.rstrip("/") for part in _names(metadata))]
    state = read_state(data)
    if state is None:
        raise CommandFailed(
            f"no cluster runs with --data {data} (it has no cluster.json); "
            f"give --metadata URL,URL, or the --data of a running `tidelog cluster up`"
        )
    return [f"http://{process.http}" for process in state.metadata]


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
