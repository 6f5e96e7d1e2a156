"""``tidelog group``: list, describe (members, offsets, lag), reset offsets, and delete."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from tidelog.client import (
    NO_SUCH_TOPIC,
    REQUEST_SECONDS,
    AsJson,
    admin_client,
    counted,
    describe_error,
    failures_reported,
    results,
    show_json,
    show_table,
)
from tidelog.connecting import Cluster, CommandFailed, connects
from tidelog.topic import partition_offsets

app = typer.Typer(help="List, describe, reset and delete consumer groups.", no_args_is_help=True)

_HAS_MEMBERS = (KafkaError.UNKNOWN_MEMBER_ID, KafkaError.REBALANCE_IN_PROGRESS, KafkaError.NON_EMPTY_GROUP)

Name = Annotated[str, typer.Argument(metavar="GROUP")]


@app.command("list")
@connects
def list_(as_json: AsJson = False, *, cluster: Cluster) -> None:
    """List all consumer groups with their state."""
    with failures_reported():
        admin = admin_client(cluster)
        found = results({"groups": admin.list_consumer_groups(request_timeout=REQUEST_SECONDS)})["groups"]
        if found.errors:
            raise CommandFailed("; ".join(describe_error(error.args[0]) for error in found.errors))
    rows = sorted((listing.group_id, listing.state.name.title().replace("_", "")) for listing in found.valid)
    if as_json:
        show_json([{"group": group, "state": state} for group, state in rows])
    else:
        show_table(("group", "state"), rows)


@app.command()
@connects
def describe(name: Name, as_json: AsJson = False, *, cluster: Cluster) -> None:
    """Show a group's members, and its offsets with the lag of every partition."""
    with failures_reported():
        admin = admin_client(cluster)
        group = results(admin.describe_consumer_groups([name], request_timeout=REQUEST_SECONDS))[name]
        committed = _committed(admin, name)
        state = group.state.name.title().replace("_", "")
        if state == "Dead" and not committed:
            raise CommandFailed(f"{name}: there is no such consumer group")
        rows = _lags(admin, committed)
    members = [
        {
            "member": member.member_id,
            "instance": member.group_instance_id,
            "client": member.client_id,
            "host": member.host,
            "partitions": [f"{row.topic}[{row.partition}]" for row in member.assignment.topic_partitions],
        }
        for member in group.members
    ]
    if as_json:
        show_json(
            {
                "group": name,
                "state": state,
                "assignor": group.partition_assignor,
                "members": members,
                "offsets": rows,
            }
        )
        return
    print(f"{name}  {state}  {counted(len(members), 'member')}  lag {sum(row['lag'] or 0 for row in rows)}")
    if members:
        show_table(list(members[0]), [[*list(row.values())[:-1], " ".join(row["partitions"])] for row in members])
    if rows:
        show_table(list(rows[0]), [list(row.values()) for row in rows])


@app.command()
@connects
def reset(
    name: Name,
    topic: Annotated[str, typer.Option(help="The topic whose offsets are set.")],
    partition: Annotated[list[int] | None, typer.Option(help="Only this partition. Repeatable.")] = None,
    to_earliest: Annotated[bool, typer.Option("--to-earliest", help="To the first record there is.")] = False,
    to_latest: Annotated[bool, typer.Option("--to-latest", help="To the end.")] = False,
    to_offset: Annotated[int | None, typer.Option(min=0, help="To this offset.")] = None,
    to_time: Annotated[
        str | None, typer.Option(metavar="TIME", help="To the first record at or after 2026-01-31T09:00:00Z.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be set.")] = False,
    as_json: AsJson = False,
    *,
    cluster: Cluster,
) -> None:
    """Set a group's committed offsets. The group must have no members."""
    chosen = [to_earliest, to_latest, to_offset is not None, to_time is not None]
    if sum(chosen) != 1:
        raise typer.BadParameter("give exactly one of --to-earliest, --to-latest, --to-offset and --to-time")
    spec = OffsetSpec.earliest() if to_earliest else OffsetSpec.latest()
    if to_time is not None:
        spec = OffsetSpec.for_timestamp(_milliseconds(to_time))
    with failures_reported():
        admin = admin_client(cluster)
        partitions = _partitions(admin, topic, partition)
        first = partition_offsets(admin, topic, partitions, OffsetSpec.earliest())
        last = partition_offsets(admin, topic, partitions, OffsetSpec.latest())
        if to_offset is not None:
            targets = {index: min(max(to_offset, first[index]), last[index]) for index in partitions}
        else:
            targets = partition_offsets(admin, topic, partitions, spec)
            targets = {index: last[index] if offset < 0 else offset for index, offset in targets.items()}
        moved = {} if to_offset is None else {index: at for index, at in targets.items() if at != to_offset}
        before = {(row.topic, row.partition): row.offset for row in _committed(admin, name)}
        if not dry_run:
            _commit(admin, name, topic, targets)
    rows = [
        {"topic": topic, "partition": index, "before": before.get((topic, index)), "after": offset}
        for index, offset in sorted(targets.items())
    ]
    for index, at in sorted(moved.items()):
        has = f"{topic}[{index}] has offsets {first[index]} to {last[index]}"
        print(f"tidelog: {has}: {at} instead of {to_offset}", file=sys.stderr)
    if as_json:
        out_of_range = [
            {"partition": index, "requested": to_offset, "first": first[index], "last": last[index], "after": at}
            for index, at in sorted(moved.items())
        ]
        show_json({"group": name, "dry_run": dry_run, "offsets": rows, "out_of_range": out_of_range})
    else:
        show_table(list(rows[0]), [list(row.values()) for row in rows])


@app.command()
@connects
def delete(
    names: Annotated[list[str], typer.Argument(metavar="GROUP...")],
    as_json: AsJson = False,
    *,
    cluster: Cluster,
) -> None:
    """Delete groups with their offsets. They must have no members."""
    wanted = list(dict.fromkeys(names))
    with failures_reported():
        admin = admin_client(cluster)
        problems: dict[str, str] = {}
        for name, future in admin.delete_consumer_groups(wanted, request_timeout=REQUEST_SECONDS).items():
            try:
                future.result(REQUEST_SECONDS)
            except KafkaException as failure:
                problems[name] = _why_kept(failure.args[0])
        if as_json:
            show_json([{"group": name, "deleted": name not in problems} for name in wanted])
        else:
            for name in wanted:
                if name not in problems:
                    print(f"{name} deleted")
        if problems:
            raise CommandFailed("\n".join(f"{name}: {problem}" for name, problem in problems.items()))


def _why_kept(error: KafkaError) -> str:
    if error.code() == KafkaError.NON_EMPTY_GROUP:
        return "it still has members: stop them first (NON_EMPTY_GROUP)"
    if error.code() == KafkaError.GROUP_ID_NOT_FOUND:
        return "there is no such consumer group (GROUP_ID_NOT_FOUND)"
    return describe_error(error)


def lag_records(admin: AdminClient, group: str) -> int:
    """How many records the group's committed offsets are behind, all partitions together."""
    return sum(row["lag"] for row in _lags(admin, _committed(admin, group)))


def _committed(admin: AdminClient, group: str) -> list[TopicPartition]:
    """All committed offsets of the group, sorted."""
    request = ConsumerGroupTopicPartitions(group)
    found = results(admin.list_consumer_group_offsets([request], request_timeout=REQUEST_SECONDS))[group]
    for row in found.topic_partitions:
        if row.error is not None:
            raise CommandFailed(f"{row.topic}[{row.partition}]: {describe_error(row.error)}")
    return sorted(
        (row for row in found.topic_partitions if row.offset >= 0), key=lambda row: (row.topic, row.partition)
    )


def _lags(admin: AdminClient, committed: list[TopicPartition]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for topic in dict.fromkeys(row.topic for row in committed):
        mine = [row for row in committed if row.topic == topic]
        latest = partition_offsets(admin, topic, [row.partition for row in mine], OffsetSpec.latest())
        rows += [
            {
                "topic": topic,
                "partition": row.partition,
                "offset": row.offset,
                "high_watermark": latest[row.partition],
                "lag": max(0, latest[row.partition] - row.offset),
            }
            for row in mine
        ]
    return rows


def _partitions(admin: AdminClient, topic: str, wanted: list[int] | None) -> list[int]:
    found = admin.list_topics(timeout=REQUEST_SECONDS).topics.get(topic)
    if found is None:
        raise CommandFailed(f"{topic}: {NO_SUCH_TOPIC}")
    absent = sorted(set(wanted or ()) - set(found.partitions))
    if absent:
        raise CommandFailed(f"{topic}: there is no partition {', '.join(map(str, absent))}")
    return sorted(set(wanted) if wanted else found.partitions)


def _commit(admin: AdminClient, group: str, topic: str, targets: dict[int, int]) -> None:
    rows = [TopicPartition(topic, partition, offset) for partition, offset in targets.items()]
    request = ConsumerGroupTopicPartitions(group, rows)
    try:
        future = admin.alter_consumer_group_offsets([request], request_timeout=REQUEST_SECONDS)[group]
        errors = [row.error for row in future.result(REQUEST_SECONDS).topic_partitions if row.error]
    except KafkaException as failure:
        errors = [failure.args[0]]
    if any(error.code() in _HAS_MEMBERS for error in errors):
        raise CommandFailed(f"{group} still has members: stop them first")
    if errors:
        raise CommandFailed(f"{group}: {'; '.join(dict.fromkeys(map(describe_error, errors)))}")


def _milliseconds(text: str) -> int:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not like 2026-01-31T09:00:00Z", param_hint="--to-time") from None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return int(when.timestamp() * 1000)
