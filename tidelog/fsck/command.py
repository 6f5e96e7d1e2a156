"""``tidelog fsck``: every object and every extent, checked while the cluster goes on."""

from __future__ import annotations

from typing import Annotated

import typer

from tidelog.client import AsJson


def fsck(
    storage: Annotated[str, typer.Option(metavar="URL", help="The agents' storage, file:///dir or s3://...")],
    metadata: Annotated[
        str, typer.Option(metavar="URL", help="The metadata's database, sqlite:///file or postgresql://user@host/name.")
    ],
    no_data: Annotated[
        bool, typer.Option("--no-data", help="Read footers only: a hundred times cheaper, and blind to rotten bytes.")
    ] = False,
    reads: Annotated[int, typer.Option(min=1, max=64, help="Objects read at the same time.")] = 4,
    in_flight: Annotated[
        int, typer.Option("--in-flight", min=0, metavar="SECONDS", help="Younger unknown objects are no orphans.")
    ] = 600,
    as_json: AsJson = False,
) -> None:
    """Check every object and every extent, beside a running cluster. Exits with 1 when something is wrong."""
    from tidelog.fsck.driver import run_fsck  # stores and buckets: no other command should wait for their import

    raise typer.Exit(run_fsck(storage, metadata, not no_data, reads, in_flight, as_json))
