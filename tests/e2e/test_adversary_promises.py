"""Attacks that once worked: each test is one, against the real process."""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cluster import TidelogProcess
from tests.support.raw_kafka import RawKafka, milliseconds, produce_request, record_batch, schema

BUDGET_BYTES = 64 << 20
SETTINGS = {"MEMORY__BUDGET_BYTES": str(BUDGET_BYTES), "INGEST__LINGER_MS": "5", "LOG__FORM": "json"}
SLOW_STORE = "memory://?put_p50_ms=400&put_p99_ms=4000&get_p50_ms=1&get_p99_ms=2"
VICTIM = "victim"
ACCEPTABLE_SECONDS = 1.5
MANY = 5_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TidelogProcess]:
    with TidelogProcess(tmp_path / "tidelog", settings=SETTINGS) as process:
        yield process


def _worst_produce_seconds(server: TidelogProcess, attack: Callable[[], None], within_s: float = 12.0) -> float:
    """The longest that another client's small produce took while ``attack`` ran."""
    with RawKafka(server.bootstrap, within_s) as victim:
        victim.create_topic(VICTIM)
        victim.produce(VICTIM, record_batch(b"before"))
        thread = threading.Thread(target=attack, daemon=True)
        thread.start()
        time.sleep(1.0)
        worst = 0.0
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            began = time.monotonic()
            try:
                victim.produce(VICTIM, record_batch(b"during"))
            except TimeoutError:
                return time.monotonic() - began
            worst = max(worst, time.monotonic() - began)
            if not thread.is_alive():
                break
            time.sleep(0.02)
        return worst


def test_a_later_batch_of_a_producer_is_not_stored_before_its_failed_first_one(tmp_path: Path) -> None:
    """librdkafka takes the acknowledgement of sequence 1 for one of sequence 0 too: a silent loss."""
    settings = {**SETTINGS, "INGEST__HEDGE_AFTER_MS": "0", "INGEST__UPLOAD_DEADLINE_MS": "1000"}
    settings["INGEST__UPLOADS_MAX"] = "200"
    broken = []
    with (
        TidelogProcess(tmp_path / "tidelog", settings=settings, storage=SLOW_STORE) as server,
        RawKafka(server.bootstrap) as connection,
    ):
        connection.create_topic("gap")
        for producer_id in range(60):
            for sequence in range(2):
                batch = record_batch(b"x", producer_id=producer_id, producer_epoch=0, sequence=sequence)
                connection.send(produce_request("gap", batch))
                time.sleep(0.03)
        for producer_id in range(60):
            first, second = (connection.receive().responses[0].partition_responses[0] for _ in range(2))
            if first.error_code != 0 and second.error_code == 0:
                broken.append(producer_id)
    assert not broken, f"of {broken}, sequence 1 was acknowledged while sequence 0 failed"


def test_one_frame_that_can_never_fit_does_not_stop_producers(server: TidelogProcess) -> None:
    def attack() -> None:
        with contextlib.suppress(OSError), RawKafka(server.bootstrap) as connection:
            connection.send_bytes(struct.pack(">ihhih", 100 << 20, 0, 9, 1, -1))
            while True:
                connection.send_bytes(bytes(1 << 20))

    assert _worst_produce_seconds(server, attack) < ACCEPTABLE_SECONDS


@pytest.mark.parametrize("api", ["describe_configs", "describe_groups", "offset_fetch"])
def test_a_small_request_has_no_huge_answer(server: TidelogProcess, api: str) -> None:
    """Each names one thing thousands of times. Refused, or answered within the budget, are both fine."""
    with RawKafka(server.bootstrap) as connection:
        connection.create_topic("t", 20)
        if api == "describe_configs":
            request = _describe_configs("t", MANY)
        else:
            _fill_group(connection, "g", "t", 20)
            request = _describe_groups("g", MANY) if api == "describe_groups" else _offset_fetch("g", MANY)
        frame = connection.encode(request)
        connection.send_bytes(frame)
        try:
            (answer_bytes,) = struct.unpack(">i", connection._receive_exactly(4))
        except ConnectionError:
            return
    assert answer_bytes < BUDGET_BYTES // 4, f"{len(frame)} bytes asked for {answer_bytes}"


def _describe_configs(topic: str, count: int) -> object:
    module = schema("describe_configs", 4)
    resource = module.DescribeConfigsResource(resource_type=2, resource_name=topic, configuration_keys=None)
    return module.DescribeConfigsRequest(
        resources=(resource,) * count, include_synonyms=True, include_documentation=True
    )


def _describe_groups(group: str, count: int) -> object:
    return schema("describe_groups", 4).DescribeGroupsRequest(
        groups=(group,) * count, include_authorized_operations=False
    )


def _offset_fetch(group: str, count: int) -> object:
    module = schema("offset_fetch", 8)
    wanted = module.OffsetFetchRequestGroup(group_id=group, topics=None)
    return module.OffsetFetchRequest(groups=(wanted,) * count, require_stable=False)


def _fill_group(connection: RawKafka, group: str, topic: str, partitions: int) -> None:
    """Offsets with metadata (before anybody joins), and one member with metadata and an assignment."""
    module = schema("offset_commit", 8)
    rows = tuple(
        module.OffsetCommitRequestPartition(
            partition_index=index, committed_offset=0, committed_leader_epoch=-1, committed_metadata="m" * 4_000
        )
        for index in range(partitions)
    )
    answer = connection.ask(
        module.OffsetCommitRequest(
            group_id=group,
            generation_id_or_member_epoch=-1,
            member_id="",
            group_instance_id=None,
            topics=(module.OffsetCommitRequestTopic(name=topic, partitions=rows),),
        )
    )
    assert {row.error_code for row in answer.topics[0].partitions} == {0}
    module = schema("join_group", 3)
    joined = connection.ask(
        module.JoinGroupRequest(
            group_id=group,
            session_timeout=milliseconds(30_000),
            rebalance_timeout=milliseconds(30_000),
            member_id="",
            protocol_type="consumer",
            protocols=(module.JoinGroupRequestProtocol(name="range", metadata=b"m" * 100_000),),
        )
    )
    assert joined.error_code == 0
    module = schema("sync_group", 2)
    mine = module.SyncGroupRequestAssignment(member_id=joined.member_id, assignment=b"a" * 100_000)
    synced = connection.ask(
        module.SyncGroupRequest(
            group_id=group, generation_id=joined.generation_id, member_id=joined.member_id, assignments=(mine,)
        )
    )
    assert synced.error_code == 0
