"""The consumer group handlers in every version: a request through kio and the codec, the answer back through both."""

import asyncio
import importlib
import io
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import fields
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest
from kio.index import load_request_schema, load_response_schema
from kio.schema.errors import ErrorCode
from kio.serial import entity_reader, entity_writer
from prometheus_client import CollectorRegistry

from agent.context import Agent, AgentIdentity, Call
from agent.handlers import answer_limit
from agent.topics import TopicDirectory
from agent.wire.codec import decode_request, encode_response
from metadata.group_model import JoinGroup
from metadata.metrics import MetadataMetrics
from metadata.model import MetadataUnavailable, Topic, TopicsChanged
from metadata.service import MetadataService
from metadata.store.memory import MemoryMetadataStore
from runtime.clock import SeededEntropy, SystemClock
from runtime.settings import AgentsSettings, GroupSettings, Settings, TopicSettings
from runtime.tasks import Supervisor
from tests.support.agents import lone_roster

NODE = 7
APIS = {
    "find_coordinator": (10, range(0, 6)),
    "join_group": (11, range(0, 10)),
    "sync_group": (14, range(0, 6)),
    "heartbeat": (12, range(0, 5)),
    "leave_group": (13, range(0, 6)),
    "offset_commit": (8, range(2, 10)),
    "offset_fetch": (9, range(1, 10)),
    "describe_groups": (15, range(0, 6)),
    "list_groups": (16, range(0, 6)),
}
ALL_VERSIONS = [(name, version) for name, (_, versions) in APIS.items() for version in versions]
SECONDS = timedelta(seconds=1)


def versions(name: str, start: int = 0) -> list[int]:
    return [version for version in APIS[name][1] if version >= start]


def build(entity: Any, values: dict[str, Any]) -> Any:
    """The kio entity of those of ``values`` that this version has; nested entities as dicts."""
    built = {}
    for field in fields(entity):
        if field.name not in values:
            continue
        value = values[field.name]
        nested = [each for each in (get_args(field.type) or ()) if hasattr(each, "__dataclass_fields__")]
        for each in get_args(field.type) or ():
            nested += [inner for inner in get_args(each) if hasattr(inner, "__dataclass_fields__")]
        if nested and value is not None:
            value = tuple(build(nested[0], each) for each in value)
        built[field.name] = value
    return entity(**built)


class Client:
    """Calls handlers the way a connection does, without the connection."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    async def call(self, api: str, version: int, **values: Any) -> Any:
        key = APIS[api][0]
        request = build(load_request_schema(key, version), values)
        body = io.BytesIO()
        entity_writer(type(request))(body, request)
        decoded = decode_request(key, version, body.getvalue())
        handler = importlib.import_module(f"agent.handlers.{api}")
        call = Call(key, version, 5, "test-client", "/10.1.2.3")
        answer = await handler.handle(call, decoded, self.agent)
        frame = encode_response(key, version, 5, answer)
        schema = load_response_schema(key, version)
        header_bytes = 9 if schema.__flexible__ else 8
        entity, size = entity_reader(schema)(frame, header_bytes)
        assert header_bytes + size == len(frame)
        return entity

    async def join(self, version: int = 9, member_id: str = "", **values: Any) -> Any:
        request = {
            "group_id": "g",
            "session_timeout": 10 * SECONDS,
            "rebalance_timeout": 10 * SECONDS,
            "member_id": member_id,
            "protocol_type": "consumer",
            "protocols": ({"name": "range", "metadata": b"topics"},),
        }
        return await self.call("join_group", version, **{**request, **values})

    async def member(self, version: int = 9, **values: Any) -> Any:
        """Joins as a client does, twice where it must."""
        joined = await self.join(version, **values)
        if joined.error_code is ErrorCode.member_id_required:
            assert version >= 4
            assert joined.generation_id == -1
            joined = await self.join(version, joined.member_id, **values)
        assert joined.error_code is ErrorCode.none
        return joined

    async def sync(self, joined: Any, version: int = 5, **values: Any) -> Any:
        request = {
            "group_id": "g",
            "generation_id": joined.generation_id,
            "member_id": joined.member_id,
            "assignments": ({"member_id": joined.member_id, "assignment": b"mine"},),
        }
        return await self.call("sync_group", version, **{**request, **values})

    async def stable(self, **values: Any) -> Any:
        joined = await self.member(**values)
        assert (await self.sync(joined)).error_code is ErrorCode.none
        return joined

    async def commit(self, version: int = 9, **values: Any) -> Any:
        request = {
            "group_id": "g",
            "generation_id_or_member_epoch": -1,
            "member_id": "",
            "retention_time": timedelta(milliseconds=-1),
            "topics": topics_to_commit(("logs", 0)),
        }
        return await self.call("offset_commit", version, **{**request, **values})


def topics_to_commit(*partitions: tuple[str, int], metadata: str | None = "note") -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "name": topic,
            "partitions": (
                {
                    "partition_index": partition,
                    "committed_offset": 100 + partition,
                    "committed_leader_epoch": 0,
                    "committed_metadata": metadata,
                },
            ),
        }
        for topic, partition in partitions
    )


def commit_codes(answer: Any) -> list[tuple[str, int, ErrorCode]]:
    return [(topic.name, row.partition_index, row.error_code) for topic in answer.topics for row in topic.partitions]


class Away:
    """A metadata service that cannot answer."""

    def __getattr__(self, name: str) -> Any:
        async def unavailable(*_: Any) -> Any:
            raise MetadataUnavailable("planted")

        return unavailable


def an_agent(metadata: Any, directory: TopicDirectory) -> Agent:
    nothing = cast(Any, SimpleNamespace())
    identity = AgentIdentity("cluster", NODE, 1, "agent.example", 9092, "a", "default")
    return Agent(
        settings=Settings(),
        clock=SystemClock(),
        entropy=SeededEntropy(1),
        identity=identity,
        metadata=metadata,
        topics=directory,
        writer=nothing,
        fetcher=nothing,
        budget=nothing,
        metrics=nothing,
        roster=lone_roster(identity),
    )


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    supervisor = Supervisor()
    settings = GroupSettings(initial_rebalance_delay_ms=0)
    metrics = MetadataMetrics(CollectorRegistry())
    service = MetadataService(
        MemoryMetadataStore(),
        SystemClock(),
        SeededEntropy(1),
        supervisor,
        metrics,
        settings,
        TopicSettings(),
        AgentsSettings(),
    )
    await service.start()
    directory = TopicDirectory()
    directory.apply(TopicsChanged(upserted=(await service.create_topic("logs", 4, {}),)))
    yield Client(an_agent(service, directory))
    await service.stop()
    await supervisor.stop()


@pytest.fixture
def away() -> Client:
    directory = TopicDirectory()
    directory.apply(TopicsChanged(upserted=(Topic(uuid.uuid4().bytes, "logs", 4, {}, 0),)))
    return Client(an_agent(Away(), directory))


# --- FindCoordinator --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", versions("find_coordinator"))
async def test_the_coordinator_of_a_group_is_the_agent_asked(client: Client, version: int) -> None:
    answer = await client.call("find_coordinator", version, key="g", key_type=0, coordinator_keys=("g", "h"))
    rows = [answer] if version < 4 else answer.coordinators
    assert [(row.error_code, row.node_id, row.host, row.port) for row in rows] == [
        (ErrorCode.none, NODE, "agent.example", 9092)
    ] * len(rows)
    if version >= 4:
        assert [row.key for row in rows] == ["g", "h"]


@pytest.mark.parametrize("version", versions("find_coordinator", 1))
@pytest.mark.parametrize(
    ("key_type", "code"),
    [(1, ErrorCode.transactional_id_authorization_failed), (2, ErrorCode.invalid_request)],
)
async def test_other_coordinators_are_refused_for_good(
    client: Client, version: int, key_type: int, code: ErrorCode
) -> None:
    answer = await client.call("find_coordinator", version, key="t", key_type=key_type, coordinator_keys=("t",))
    row = answer if version < 4 else answer.coordinators[0]
    assert (row.error_code, row.node_id, row.port) == (code, -1, -1)
    assert not code.retriable
    assert row.error_message


# --- joining and syncing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", versions("join_group"))
async def test_joining_in_every_version(client: Client, version: int) -> None:
    first = await client.join(version)
    if version >= 4:
        assert first.error_code is ErrorCode.member_id_required
        assert first.member_id.startswith("test-client-")
        if version >= 7:
            assert (first.protocol_type, first.protocol_name) == (None, None)
        joined = await client.join(version, first.member_id)
    else:
        joined = first
    assert (joined.error_code, joined.generation_id, joined.protocol_name) == (ErrorCode.none, 1, "range")
    assert joined.leader == joined.member_id
    assert [(each.member_id, each.metadata) for each in joined.members] == [(joined.member_id, b"topics")]
    if version >= 7:
        assert joined.protocol_type == "consumer"


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"group_id": ""}, ErrorCode.invalid_group_id),
        ({"session_timeout": SECONDS}, ErrorCode.invalid_session_timeout),
        ({"session_timeout": 3_600 * SECONDS}, ErrorCode.invalid_session_timeout),
        ({"protocols": ()}, ErrorCode.inconsistent_group_protocol),
        ({"protocol_type": ""}, ErrorCode.inconsistent_group_protocol),
        ({"member_id": "stranger"}, ErrorCode.unknown_member_id),
    ],
)
@pytest.mark.parametrize("version", versions("join_group"))
async def test_joins_that_are_refused(client: Client, version: int, values: dict[str, Any], code: ErrorCode) -> None:
    answer = await client.join(version, **values)
    assert answer.error_code is code
    assert (answer.generation_id, answer.leader, answer.members) == (-1, "", ())


@pytest.mark.parametrize(("version", "rebalance_ms"), [(0, 10_000), (1, 20_000), (9, 20_000)])
async def test_the_rebalance_timeout_is_the_sessions_where_there_is_none(
    client: Client, version: int, rebalance_ms: int
) -> None:
    seen: list[JoinGroup] = []

    class Spy(Away):
        async def join_group(self, join: JoinGroup) -> Any:
            seen.append(join)
            raise MetadataUnavailable("planted")

    client.agent.metadata = cast(Any, Spy())
    await client.join(version, rebalance_timeout=20 * SECONDS)
    assert (seen[0].rebalance_timeout_ms, seen[0].session_timeout_ms) == (rebalance_ms, 10_000)
    assert (seen[0].client_id, seen[0].client_host) == ("test-client", "/10.1.2.3")
    assert seen[0].member_id_required is (version >= 4)
    assert seen[0].skip_assignment_supported is (version >= 9)
    if version:
        await client.join(version, rebalance_timeout=timedelta(milliseconds=-1))
        assert seen[1].rebalance_timeout_ms == 10_000


@pytest.mark.parametrize("version", versions("sync_group"))
async def test_syncing_in_every_version(client: Client, version: int) -> None:
    joined = await client.member()
    synced = await client.sync(joined, version, protocol_type="consumer", protocol_name="range")
    assert (synced.error_code, synced.assignment) == (ErrorCode.none, b"mine")
    if version >= 5:
        assert (synced.protocol_type, synced.protocol_name) == ("consumer", "range")
        wrong = await client.sync(joined, version, protocol_type="consumer", protocol_name="sticky")
        assert wrong.error_code is ErrorCode.inconsistent_group_protocol
    for values, code in (
        ({"group_id": ""}, ErrorCode.invalid_group_id),
        ({"group_id": "other"}, ErrorCode.unknown_member_id),
        ({"member_id": "stranger"}, ErrorCode.unknown_member_id),
        ({"generation_id": 9}, ErrorCode.illegal_generation),
    ):
        refused = await client.sync(joined, version, **values)
        assert (refused.error_code, refused.assignment) == (code, b"")


@pytest.mark.parametrize("version", versions("join_group", 5))
async def test_a_static_members_successor_in_every_version(client: Client, version: int) -> None:
    joined = await client.member(version, group_instance_id="pod-1")
    await client.sync(joined, group_instance_id="pod-1")
    successor = await client.join(version, group_instance_id="pod-1")
    assert (successor.error_code, successor.generation_id) == (ErrorCode.none, 1)
    assert successor.member_id != joined.member_id
    assert successor.member_id.startswith("pod-1-")
    if version >= 9:
        assert (successor.skip_assignment, successor.leader) == (True, successor.member_id)
        assert [each.group_instance_id for each in successor.members] == ["pod-1"]
    else:
        assert (successor.leader, successor.members) == (joined.member_id, ())
    fenced = await client.sync(joined, group_instance_id="pod-1")
    assert fenced.error_code is ErrorCode.fenced_instance_id


async def test_two_members_share_a_generation_and_each_gets_its_own(client: Client) -> None:
    leader = await client.stable()
    joining = asyncio.create_task(client.member())
    heart = {"group_id": "g", "generation_id": 1, "member_id": leader.member_id}
    while (await client.call("heartbeat", 4, **heart)).error_code is ErrorCode.none:
        await asyncio.sleep(0)
    rejoined = await client.join(member_id=leader.member_id)
    follower = await joining
    assert rejoined.generation_id == follower.generation_id == 2
    assert (rejoined.leader, follower.members) == (leader.member_id, ())
    waiting = asyncio.create_task(client.sync(follower, assignments=()))
    assignments = tuple(
        {"member_id": each.member_id, "assignment": each.member_id.encode()} for each in rejoined.members
    )
    assert (await client.sync(rejoined, assignments=assignments)).assignment == leader.member_id.encode()
    assert (await waiting).assignment == follower.member_id.encode()


# --- heartbeats and leaving -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", versions("heartbeat"))
async def test_heartbeats_in_every_version(client: Client, version: int) -> None:
    joined = await client.stable()
    values = {"group_id": "g", "generation_id": 1, "member_id": joined.member_id}
    assert (await client.call("heartbeat", version, **values)).error_code is ErrorCode.none
    for wrong, code in (
        ({"group_id": ""}, ErrorCode.invalid_group_id),
        ({"group_id": "other"}, ErrorCode.unknown_member_id),
        ({"member_id": "stranger"}, ErrorCode.unknown_member_id),
        ({"generation_id": 2}, ErrorCode.illegal_generation),
    ):
        assert (await client.call("heartbeat", version, **{**values, **wrong})).error_code is code
    if version >= 3:
        answer = await client.call("heartbeat", version, **values, group_instance_id="nobody")
        assert answer.error_code is ErrorCode.unknown_member_id


@pytest.mark.parametrize("version", versions("leave_group"))
async def test_leaving_in_every_version(client: Client, version: int) -> None:
    joined = await client.stable()
    assert (await client.call("leave_group", version, group_id="", member_id="m", members=())).error_code is (
        ErrorCode.invalid_group_id
    )

    async def leave(group_id: str, *member_ids: str) -> list[ErrorCode]:
        members = tuple({"member_id": each, "group_instance_id": None, "reason": "done"} for each in member_ids)
        answer = await client.call("leave_group", version, group_id=group_id, member_id=member_ids[0], members=members)
        if version < 3:
            return [answer.error_code]
        assert answer.error_code is ErrorCode.none
        assert [each.member_id for each in answer.members] == list(member_ids)
        return [each.error_code for each in answer.members]

    assert (await leave("other", "m"))[0] is ErrorCode.unknown_member_id
    assert (await leave("g", "stranger"))[0] is ErrorCode.unknown_member_id
    assert (await leave("g", joined.member_id, "stranger"))[0] is ErrorCode.none
    assert (await client.call("describe_groups", 5, groups=("g",), include_authorized_operations=False)).groups[
        0
    ].group_state == "Empty"


async def test_administrators_remove_static_members_by_instance_id(client: Client) -> None:
    joined = await client.member(group_instance_id="pod-1")
    await client.sync(joined, group_instance_id="pod-1")
    members = ({"member_id": "", "group_instance_id": "pod-1"}, {"member_id": "", "group_instance_id": "pod-2"})
    answer = await client.call("leave_group", 5, group_id="g", members=members)
    assert [(each.group_instance_id, each.error_code) for each in answer.members] == [
        ("pod-1", ErrorCode.none),
        ("pod-2", ErrorCode.unknown_member_id),
    ]


# --- offsets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", versions("offset_commit"))
async def test_committing_in_every_version(client: Client, version: int) -> None:
    joined = await client.stable()
    member = {"generation_id_or_member_epoch": 1, "member_id": joined.member_id}
    topics = topics_to_commit(("gone", 0), ("logs", 0), ("gone", 1), ("logs", 9), ("logs", 1))
    answer = await client.commit(version, **member, topics=topics)
    unknown = ErrorCode.unknown_topic_or_partition
    assert commit_codes(answer) == [
        ("gone", 0, unknown),
        ("logs", 0, ErrorCode.none),
        ("gone", 1, unknown),
        ("logs", 9, unknown),
        ("logs", 1, ErrorCode.none),
    ]
    for wrong, code in (
        ({"generation_id_or_member_epoch": 2}, ErrorCode.illegal_generation),
        ({"member_id": "stranger"}, ErrorCode.unknown_member_id),
        ({"generation_id_or_member_epoch": -1, "member_id": ""}, ErrorCode.unknown_member_id),
        ({"group_id": "missing"}, ErrorCode.group_id_not_found if version >= 9 else ErrorCode.illegal_generation),
    ):
        assert commit_codes(await client.commit(version, **{**member, **wrong})) == [("logs", 0, code)]
    large = await client.commit(version, **member, topics=topics_to_commit(("logs", 0), metadata="x" * 4_097))
    assert commit_codes(large) == [("logs", 0, ErrorCode.offset_metadata_too_large)]


@pytest.mark.parametrize("version", versions("offset_commit"))
async def test_a_simple_consumer_commits_without_a_group(client: Client, version: int) -> None:
    answer = await client.commit(version, group_id="simple", topics=topics_to_commit(("logs", 2), metadata=None))
    assert commit_codes(answer) == [("logs", 2, ErrorCode.none)]
    listed = await client.call("list_groups", 4)
    assert [(group.group_id, group.protocol_type, group.group_state) for group in listed.groups] == [
        ("simple", "", "Empty")
    ]


async def test_a_commit_of_nothing_is_answered(client: Client) -> None:
    assert (await client.commit(topics=())).topics == ()


def fetched(topics: Sequence[Any]) -> list[tuple[str, int, int, str | None, ErrorCode]]:
    return [
        (topic.name, row.partition_index, row.committed_offset, row.metadata, row.error_code)
        for topic in topics
        for row in topic.partitions
    ]


@pytest.mark.parametrize("version", versions("offset_fetch"))
async def test_fetching_in_every_version(client: Client, version: int) -> None:
    await client.commit(topics=topics_to_commit(("logs", 1)))
    topics = ({"name": "logs", "partition_indexes": (0, 1)}, {"name": "gone", "partition_indexes": (0,)})
    groups = tuple({"group_id": each, "member_id": None, "member_epoch": -1, "topics": topics} for each in ("g", "h"))
    answer = await client.call("offset_fetch", version, group_id="g", topics=topics, groups=groups, require_stable=True)
    none = ErrorCode.none
    expected = [("logs", 0, -1, "", none), ("logs", 1, 101, "note", none), ("gone", 0, -1, "", none)]
    if version < 8:
        assert fetched(answer.topics) == expected
        if version >= 5:
            assert [row.committed_leader_epoch for row in answer.topics[0].partitions] == [-1, 0]
        if version >= 2:
            assert answer.error_code is none
    else:
        assert [(group.group_id, group.error_code) for group in answer.groups] == [("g", none), ("h", none)]
        assert fetched(answer.groups[0].topics) == expected
        assert {row[2] for row in fetched(answer.groups[1].topics)} == {-1}


@pytest.mark.parametrize("version", versions("offset_fetch", 2))
async def test_fetching_everything_a_group_has(client: Client, version: int) -> None:
    await client.commit(topics=topics_to_commit(("logs", 1), ("logs", 3)))
    group = {"group_id": "g", "member_id": None, "member_epoch": -1, "topics": None}
    answer = await client.call(
        "offset_fetch", version, group_id="g", topics=None, groups=(group,), require_stable=False
    )
    topics = answer.topics if version < 8 else answer.groups[0].topics
    assert fetched(topics) == [("logs", 1, 101, "note", ErrorCode.none), ("logs", 3, 103, "note", ErrorCode.none)]


@pytest.mark.parametrize("version", versions("offset_fetch", 8))
async def test_what_a_fetch_names_many_times_is_answered_once(client: Client, version: int) -> None:
    await client.commit(topics=topics_to_commit(("logs", 1)))
    topic = {"name": "logs", "partition_indexes": (1, 0) * 1_000}
    groups = tuple(
        {"group_id": "g", "member_id": None, "member_epoch": -1, "topics": topics}
        for topics in ((topic, topic), None, *[None] * 1_000)
    )
    answer = await client.call("offset_fetch", version, groups=groups, require_stable=False)
    (group,) = answer.groups
    assert fetched(group.topics) == [
        ("logs", 1, 101, "note", ErrorCode.none),
        ("logs", 0, -1, "", ErrorCode.none),
    ]


async def test_groups_beyond_the_size_of_an_answer_have_to_be_fetched_again(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_limit, "ANSWER_BYTES_MAX", 4_000)
    for group_id in ("g", "h", "i"):
        await client.commit(group_id=group_id, topics=topics_to_commit(("logs", 1), metadata="m" * 3_900))
    groups = tuple({"group_id": each, "member_id": None, "member_epoch": -1, "topics": None} for each in "ghi")
    answer = await client.call("offset_fetch", 9, groups=groups, require_stable=False)
    later = ErrorCode.coordinator_load_in_progress
    assert [(group.group_id, group.error_code) for group in answer.groups] == [
        ("g", ErrorCode.none),
        ("h", later),
        ("i", later),
    ]
    assert later.retriable


# --- looking at groups ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", versions("describe_groups"))
async def test_describing_in_every_version(client: Client, version: int) -> None:
    joined = await client.stable()
    answer = await client.call(
        "describe_groups", version, groups=("g", "missing"), include_authorized_operations=version % 2 == 1
    )
    stable, missing = answer.groups
    assert (stable.error_code, stable.group_state, stable.protocol_type, stable.protocol_data) == (
        ErrorCode.none,
        "Stable",
        "consumer",
        "range",
    )
    (member,) = stable.members
    assert (member.member_id, member.client_id, member.client_host) == (joined.member_id, "test-client", "/10.1.2.3")
    assert (member.member_metadata, member.member_assignment) == (b"topics", b"mine")
    assert (missing.error_code, missing.group_state, missing.members) == (ErrorCode.none, "Dead", ())
    if version >= 3:
        assert stable.authorized_operations == (328 if version % 2 else -(2**31))


@pytest.mark.parametrize("version", versions("list_groups"))
async def test_listing_in_every_version(client: Client, version: int) -> None:
    await client.stable()
    await client.commit(group_id="simple")

    async def listed(**filters: Any) -> list[str]:
        answer = await client.call("list_groups", version, **filters)
        assert answer.error_code is ErrorCode.none
        return sorted(group.group_id for group in answer.groups)

    assert await listed() == ["g", "simple"]
    if version >= 4:
        assert await listed(states_filter=("stable", "Dead")) == ["g"]
        assert await listed(states_filter=("EMPTY",)) == ["simple"]
        assert await listed(states_filter=("nonsense",)) == []
    if version >= 5:
        assert await listed(types_filter=("Classic",)) == ["g", "simple"]
        assert await listed(types_filter=("consumer",)) == []
        answer = await client.call("list_groups", version)
        assert {group.group_type for group in answer.groups} == {"classic"}


# --- when the metadata service is away --------------------------------------------------------------------

REQUESTS: dict[str, dict[str, Any]] = {
    "find_coordinator": {"key": "g", "key_type": 0, "coordinator_keys": ("g",)},
    "join_group": {
        "group_id": "g",
        "session_timeout": 10 * SECONDS,
        "rebalance_timeout": 10 * SECONDS,
        "member_id": "m",
        "protocol_type": "consumer",
        "protocols": ({"name": "range", "metadata": b""},),
    },
    "sync_group": {"group_id": "g", "generation_id": 1, "member_id": "m", "assignments": ()},
    "heartbeat": {"group_id": "g", "generation_id": 1, "member_id": "m"},
    "leave_group": {"group_id": "g", "member_id": "m", "members": ({"member_id": "m"},)},
    "offset_commit": {
        "group_id": "g",
        "generation_id_or_member_epoch": 1,
        "member_id": "m",
        "retention_time": timedelta(0),
        "topics": topics_to_commit(("logs", 0)),
    },
    "offset_fetch": {
        "group_id": "g",
        "topics": ({"name": "logs", "partition_indexes": (0,)},),
        "groups": (
            {
                "group_id": "g",
                "member_id": None,
                "member_epoch": -1,
                "topics": ({"name": "logs", "partition_indexes": (0,)},),
            },
        ),
        "require_stable": False,
    },
    "describe_groups": {"groups": ("g",), "include_authorized_operations": False},
    "list_groups": {},
}


def codes(entity: Any) -> list[ErrorCode]:
    """Every error code in an answer."""
    found = []
    for field in fields(entity):
        value = getattr(entity, field.name)
        if isinstance(value, ErrorCode):
            found.append(value)
        elif isinstance(value, tuple):
            found += [code for each in value if hasattr(each, "__dataclass_fields__") for code in codes(each)]
    return found


@pytest.mark.parametrize(("api", "version"), ALL_VERSIONS)
async def test_without_the_metadata_service_clients_are_told_to_look_again(
    away: Client, api: str, version: int
) -> None:
    expected = ErrorCode.none if api == "find_coordinator" else ErrorCode.not_coordinator
    if api == "list_groups":
        expected = ErrorCode.coordinator_not_available
    assert set(codes(await away.call(api, version, **REQUESTS[api]))) == {expected}


@pytest.mark.parametrize("version", versions("offset_fetch", 2))
async def test_without_the_metadata_service_not_all_offsets_are_none(away: Client, version: int) -> None:
    group = {"group_id": "g", "member_id": None, "member_epoch": -1, "topics": None}
    values = {"group_id": "g", "topics": None, "groups": (group,), "require_stable": False}
    answer = await away.call("offset_fetch", version, **values)
    assert codes(answer) == [ErrorCode.not_coordinator]


@pytest.mark.parametrize("version", versions("describe_groups"))
async def test_a_group_named_many_times_is_described_once(client: Client, version: int) -> None:
    await client.stable()
    answer = await client.call(
        "describe_groups", version, groups=("g", "missing") * 1_000, include_authorized_operations=False
    )
    assert [group.group_id for group in answer.groups] == ["g", "missing"]
    assert len(answer.groups[0].members) == 1


async def test_groups_beyond_the_size_of_an_answer_have_to_be_described_again(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_limit, "ANSWER_BYTES_MAX", 5_000)
    for group_id in ("g", "h"):
        joined = await client.member(group_id=group_id, protocols=({"name": "range", "metadata": bytes(5_000)},))
        assert (await client.sync(joined, group_id=group_id)).error_code is ErrorCode.none
    missing = tuple(f"missing-{number}" for number in range(200))
    answer = await client.call("describe_groups", 5, groups=("g", "h", *missing), include_authorized_operations=False)
    assert [group.group_id for group in answer.groups] == ["g", "h", *missing]
    assert answer.groups[0].error_code is ErrorCode.none
    assert {group.error_code for group in answer.groups[1:]} == {ErrorCode.coordinator_load_in_progress}
