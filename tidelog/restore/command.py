"""``tidelog restore``: the metadata of a cluster built anew from its bucket, in an empty database."""

from __future__ import annotations

from typing import Annotated

import typer

from tidelog.client import AsJson


def restore(
    source: Annotated[str, typer.Option("--from", metavar="URL", help="The agents' storage, file:///dir or s3://...")],
    metadata: Annotated[
        str, typer.Option(metavar="URL", help="An empty store: sqlite:///file or postgresql://user@host/database.")
    ],
    without_tail: Annotated[
        bool, typer.Option("--without-tail", help="Leave out segments that are newer than the journal.")
    ] = False,
    as_json_: AsJson = False,
) -> None:
    """Build the metadata anew from the bucket, when its database is lost. Stop all metadata processes first."""
    from tidelog.restore.driver import run_restore  # stores and buckets: no other command should wait for their import

    run_restore(source, metadata, not without_tail, as_json_)
