"""``tidelog topic``: create, list, describe, delete, more partitions, and configs."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from confluent_kafka import TopicCollection, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from tidelog.client import (
    REQUEST_SECONDS,
    AsJson,
    admin_client,
    counted,
    failures_reported,
    key_values,
    results,
    show_json,
    show_table,
)
from tidelog.connecting import Cluster, CommandFailed, connects
from tidelog.undelete import HTTP, deleted_topics, undelete_topic

app = typer.Typer(help="Create, list, describe, configure, grow and delete topics.", no_args_is_help=True)

PARTITIONS_MAX = 100_000
REPLICATION_FACTOR_MAX = 10_000
"""Both are librdkafka's own bounds."""

Name = Annotated[str, typer.Argument(metavar="TOPIC")]


@app.command()
@connects
def create(
    name: Name,
    partitions: Annotated[
        int, typer.Option(min=-1, max=PARTITIONS_MAX, help="Partitions; -1 for the cluster's default.")
    ] = -1,
    replication_factor: Annotated[
        int,
        typer.Option(
            min=-1,
            max=REPLICATION_FACTOR_MAX,
            help="Accepted for the sake of scripts; the object store keeps the copies.",
        ),
    ] = -1,
    config: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A topic config. Repeatable.")] = None,
    if_not_exists: Annotated[bool, typer.Option("--if-not-exists", help="Succeed when it exists already.")] = False,
    as_json: AsJson = False,
    *,
    cluster: Cluster,
) -> None:
    """Create a topic."""
    configs = key_values("--config", config or [])
    with failures_reported():
        admin = admin_client(cluster)
        existed = if_not_exists and name in _topics(admin)
        if not existed:
            wanted = NewTopic(name, partitions, replication_factor, config=configs)
            results(admin.create_topics([wanted], request_timeout=REQUEST_SECONDS))
        count = len(_topics(admin)[name].partitions) if name in _topics(admin) else partitions
    if as_json:
        show_json({"topic": name, "partitions": count, "created": not existed})
    else:
        print(f"{name} {'exists already' if existed else 'created'}: {counted(count, 'partition')}")


@app.command("list")
@connects
def list_(as_json: AsJson = False, *, cluster: Cluster) -> None:
    """List all topics."""
    with failures_reported():
        topics = _topics(admin_client(cluster))
    rows = [(name, len(topics[name].partitions)) for name in sorted(topics)]
    if as_json:
        show_json([{"topic": name, "partitions": count} for name, count in rows])
    else:
        show_table(("topic", "partitions"), rows)


@app.command()
@connects
def describe(name: Name, as_json: AsJson = False, *, cluster: Cluster) -> None:
    """Show a topic's partitions with their offsets, and the configs that are set on it."""
    with failures_reported():
        admin = admin_client(cluster)
        found = results(admin.describe_topics(TopicCollection([name]), request_timeout=REQUEST_SECONDS))[name]
        partitions = [partition.id for partition in found.partitions]
        earliest = partition_offsets(admin, name, partitions, OffsetSpec.earliest())
        latest = partition_offsets(admin, name, partitions, OffsetSpec.latest())
        configs = {key: entry.value for key, entry in _configs(admin, name).items() if _is_set(entry)}
    rows = [
        {
            "partition": partition.id,
            "leader": partition.leader.id if partition.leader is not None else None,
            "log_start_offset": earliest[partition.id],
            "high_watermark": latest[partition.id],
            "records": latest[partition.id] - earliest[partition.id],
        }
        for partition in found.partitions
    ]
    if as_json:
        show_json({"topic": name, "topic_id": str(found.topic_id), "configs": configs, "partitions": rows})
        return
    print(f"{name}  id {found.topic_id}  configs {_pairs(configs) or '(all defaults)'}")
    show_table(list(rows[0]), [list(row.values()) for row in rows])


@app.command()
@connects
def partitions(
    name: Name,
    count: Annotated[int, typer.Argument(min=1, max=PARTITIONS_MAX, help="How many the topic shall have.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check that it can be done.")] = False,
    as_json: AsJson = False,
    *,
    cluster: Cluster,
) -> None:
    """Give a topic more partitions. Records with a key may go to another partition from then on."""
    with failures_reported():
        admin = admin_client(cluster)
        before = _topics(admin).get(name)
        wanted = [NewPartitions(name, count)]
        results(
            admin.create_partitions(
                wanted, validate_only=dry_run, operation_timeout=REQUEST_SECONDS, request_timeout=REQUEST_SECONDS
            )
        )
    had = len(before.partitions) if before is not None else None
    if as_json:
        show_json({"topic": name, "before": had, "after": count, "dry_run": dry_run})
    else:
        print(f"{name} {'can have' if dry_run else 'has'} {counted(count, 'partition')}")


@app.command()
@connects
def delete(
    names: Annotated[list[str], typer.Argument(metavar="TOPIC...")],
    as_json: AsJson = False,
    *,
    cluster: Cluster,
) -> None:
    """Delete topics with all their records."""
    with failures_reported():
        admin = admin_client(cluster)
        results(admin.delete_topics(names, operation_timeout=REQUEST_SECONDS, request_timeout=REQUEST_SECONDS))
    if as_json:
        show_json([{"topic": name, "deleted": True} for name in names])
    else:
        for name in names:
            print(f"{name} deleted")


AgentHttp = Annotated[str, typer.Option("--http", metavar="HOST:PORT", help="HTTP address of an agent.")]


@app.command()
def deleted(http: AgentHttp = HTTP, as_json: AsJson = False) -> None:
    """List deleted topics that can be brought back (lifecycle.undelete_ms)."""
    with failures_reported():
        topics = deleted_topics(http)
    if as_json:
        show_json(topics)
    elif topics:
        show_table(list(topics[0]), [list(topic.values()) for topic in topics])


@app.command()
def undelete(
    topic: Annotated[str, typer.Argument(metavar="ID|NAME", help="As `tidelog topic deleted` shows it.")],
    http: AgentHttp = HTTP,
    as_json: AsJson = False,
) -> None:
    """Bring a deleted topic back, with its records and configs; committed group offsets are not."""
    with failures_reported():
        found = undelete_topic(http, topic)
    if as_json:
        show_json(found)
    else:
        print(f"{found['topic']} is back, with {counted(found['partitions'], 'partition')}")


@app.command()
@connects
def config(
    name: Name,
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Repeatable.")] = None,
    unsets: Annotated[
        list[str] | None, typer.Option("--unset", metavar="NAME", help="Back to the default. Repeatable.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="After --set or --unset, show all configs, not only those that are set.")
    ] = False,
    as_json: AsJson = False,
    *,
    cluster: Cluster,
) -> None:
    """Show a topic's configs, after setting or unsetting some."""
    operations = [
        ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
        for key, value in key_values("--set", sets or []).items()
    ]
    operations += [
        ConfigEntry(key, None, incremental_operation=AlterConfigOpType.DELETE) for key in dict.fromkeys(unsets or [])
    ]
    with failures_reported():
        admin = admin_client(cluster)
        if operations:
            resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=operations)
            results(admin.incremental_alter_configs([resource], request_timeout=REQUEST_SECONDS))
        entries = _configs(admin, name)
    rows = [(key, entries[key].value, "set" if _is_set(entries[key]) else "default") for key in sorted(entries)]
    if as_json:
        show_json({key: {"value": value, "source": source} for key, value, source in rows})
        return
    if operations and not everything:
        rows = [row for row in rows if row[2] == "set"]
    if rows:
        show_table(("config", "value", "source"), rows)
    else:
        print(f"{name}: all configs have their defaults")


def partition_offsets(admin: AdminClient, topic: str, partitions: list[int], spec: OffsetSpec) -> dict[int, int]:
    """One offset per partition. :raises CommandFailed: any of them cannot be had."""
    wanted = {TopicPartition(topic, partition): spec for partition in partitions}
    if not wanted:
        return {}
    futures = admin.list_offsets(wanted, request_timeout=REQUEST_SECONDS)
    by_name = {f"{key.topic}[{key.partition}]": future for key, future in futures.items()}
    found = results(by_name)
    return {partition: found[f"{topic}[{partition}]"].offset for partition in partitions}


def _topics(admin: AdminClient) -> dict[str, Any]:
    found: dict[str, Any] = admin.list_topics(timeout=REQUEST_SECONDS).topics
    return found


def _configs(admin: AdminClient, name: str) -> dict[str, Any]:
    resource = ConfigResource(ResourceType.TOPIC, name)
    found = results(admin.describe_configs([resource], request_timeout=REQUEST_SECONDS))
    entries: dict[str, Any] = found[name]
    if not entries:
        raise CommandFailed(f"{name}: the cluster shows no configs")
    return entries


def _is_set(entry: Any) -> bool:
    return bool(entry.source == ConfigSource.DYNAMIC_TOPIC_CONFIG.value)


def _pairs(configs: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(configs.items()))
