"""What one client may cost, and what is left when it is gone."""

from __future__ import annotations

import struct

import pytest
import structlog

from agent.failure_log import LINES_MAX, WINDOW_SECONDS, FailureLog
from agent.intake import RESERVED_BYTES, SHORT_RATE_MIN, STALLED_SECONDS, large_frame_budget
from agent.outgoing import DRAIN_RATE_MIN
from agent.wire import apis
from agent.wire.codec import EncodedResponse
from runtime.budget import Budget
from runtime.settings import Settings
from tests.support.batches import build_batch
from tests.support.connections import (
    FakeTransport,
    Gate,
    Harness,
    ManualClock,
    deliver,
    frame,
    heartbeat,
    produce,
    turns,
)

MIB = 1024 * 1024


def big_produce(correlation_id: int, byte_length: int) -> bytes:
    return produce(correlation_id, {("logs", 0): build_batch([b"x" * byte_length])})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (struct.pack(">i", -1), "bad_frame"),
        (struct.pack(">i", 2**31 - 1), "bad_frame"),
        (struct.pack(">i", 3) + b"abc", "bad_frame"),
        (b"GET / HTTP/1.1\r\n\r\n", "bad_frame"),
        (frame(999, 0, 1), "unknown_api"),
        (frame(-1, 0, 1), "unknown_api"),
        (frame(apis.METADATA, 99, 1), "unsupported_version"),
        (frame(apis.METADATA, -1, 1), "unsupported_version"),
        (frame(apis.PRODUCE, 2, 1), "unsupported_version"),
        (frame(apis.METADATA, 1, 1, b"\x7f\xff\xff\xff"), "bad_request"),
        (frame(apis.PRODUCE, 7, 1, b"\0"), "bad_request"),
        (frame(apis.METADATA, 1, 1, bytes(3 * MIB)), "bad_request"),
    ],
)
async def test_what_is_not_kafka_closes_its_own_connection_with_one_line(data: bytes, reason: str) -> None:
    harness = Harness()
    _, bystander = harness.connect()
    connection, transport = harness.connect()
    with structlog.testing.capture_logs() as lines:
        deliver(connection, transport, produce(1) + data + produce(2))
        await turns()
        assert not transport.closing, "the request before it is still answered"
        harness.writer.settle()
        await turns()
    assert [number for number, _ in transport.answers()] == [1]
    assert transport.closing and not bystander.closing
    assert [line["event"] for line in lines] == [f"connection_closed_{reason}"]
    assert lines[0]["client"] == "/10.0.0.9"
    assert harness.metrics.connections_closed[reason] == 1
    assert harness.budget.held_bytes == 0


async def test_an_unknown_version_of_api_versions_is_answered_in_version_0() -> None:
    """Trap 5: the header is one we cannot know, only its beginning is looked at."""
    harness = Harness()
    connection, transport = harness.connect()
    deliver(connection, transport, frame(apis.API_VERSIONS, 99, 5, b"\0\x0bwhatever\xff"))
    ((correlation_id, rest),) = transport.answers()
    error, count = struct.unpack_from(">hi", rest)
    assert (correlation_id, error, count, len(rest)) == (5, 35, len(apis.APIS), 6 + 6 * len(apis.APIS))
    rows = [struct.unpack_from(">hhh", rest, 6 + 6 * number) for number in range(count)]
    assert (18, 0, 4) in rows and (0, 0, 12) in rows
    assert not transport.closing


async def test_connections_are_limited() -> None:
    harness = Harness(connections_max=2)
    transports = [harness.connect()[1] for _ in range(3)]
    await turns()
    assert [transport.closing for transport in transports] == [False, False, True]
    assert (harness.metrics.connections_open, harness.metrics.connections_rejected) == (2, 1)
    transports[0].close()
    await turns()
    _, late = harness.connect()
    assert not late.closing
    assert harness.metrics.connections_closed == {"client": 1}


async def test_idle_connections_are_closed_and_busy_ones_are_not() -> None:
    gate = Gate()
    harness = Harness({apis.HEARTBEAT: gate}, idle_ms=60_000)
    _, idle = harness.connect()
    waiting_connection, waiting = harness.connect()
    deliver(waiting_connection, waiting, heartbeat(1))
    await turns()
    harness.sweep(59)
    assert not idle.closing
    harness.sweep(2)
    assert idle.closing and not waiting.closing
    gate.open()
    await turns()
    harness.sweep(59)
    assert not waiting.closing, "its idle time begins with its answer"
    harness.sweep(60)
    harness.sweep(60)
    assert waiting.closing


@pytest.mark.parametrize("sent", [2, 4, 5, 2000])
async def test_a_frame_has_to_be_finished_in_time(sent: int) -> None:
    harness = Harness(frame_ms=10_000)
    connection, transport = harness.connect()
    deliver(connection, transport, big_produce(1, 100_000)[:sent])
    harness.sweep(9)
    assert not transport.closing
    harness.sweep(2)
    await turns()
    assert transport.closing
    assert harness.metrics.connections_closed["frame_timeout"] == 1
    assert harness.budget.held_bytes == 0


async def consumer(harness: Harness, gate: Gate) -> FakeTransport:
    """Its answer waits: the kernel takes nothing more of it."""
    connection, transport = harness.connect()
    transport.kernel_takes = False
    deliver(connection, transport, frame(apis.FETCH, 4, 5, struct.pack(">iiiibi", -1, 1, 1, 1, 0, 0)))
    await turns()
    gate.open()
    await turns()
    assert deliver(connection, transport, heartbeat(6)) == 0, "nothing is read while its answers wait"
    harness.sweep(1)
    return transport


@pytest.mark.parametrize(("rate", "cut"), [(0, True), (1, True), (DRAIN_RATE_MIN // 2, True), (DRAIN_RATE_MIN, False)])
async def test_a_client_has_to_take_its_answers(rate: int, cut: bool) -> None:
    released: list[bool] = []
    gate = Gate(EncodedResponse([b"x" * MIB], MIB, lambda: released.append(True)))
    harness = Harness({apis.FETCH: gate}, write_stall_ms=20_000)
    transport = await consumer(harness, gate)
    for _ in range(20):
        transport.take(rate)
        harness.sweep(1)
        assert not transport.closing
    transport.take(rate)
    harness.sweep(1)
    await turns()
    assert transport.closing == cut and released == [True] * cut
    assert harness.metrics.connections_closed["write_stall"] == cut
    if not cut:
        transport.take(transport.waiting)
        assert released == [True], "also when the rest is gone"
    assert harness.budget.held_bytes == 0


@pytest.mark.parametrize("lent", [True, False])
@pytest.mark.parametrize(
    ("rate", "short", "cut"), [(1, True, True), (1, False, False), (2 * SHORT_RATE_MIN, True, False)]
)
async def test_while_memory_is_short_who_holds_much_of_it_has_to_read_faster(
    lent: bool, rate: int, short: bool, cut: bool
) -> None:
    gate = Gate(EncodedResponse([b"x" * MIB], MIB, (lambda: None) if lent else None))
    harness = Harness({apis.FETCH: gate, apis.HEARTBEAT: gate})
    transport = await consumer(harness, gate)
    gate.answer = EncodedResponse([b"x" * 1000], 1000, None)
    small = await consumer(harness, gate)
    if short:
        harness.budget.take("segment", harness.budget.limit_bytes)
    for _ in range(3):
        transport.take(rate)
        harness.sweep(1)
    await turns()
    assert transport.closing == cut and not small.closing
    assert harness.metrics.connections_closed["write_stall"] == cut


async def test_lent_bytes_are_the_lender_s_to_count() -> None:
    gate = Gate(EncodedResponse([b"x" * MIB], MIB, lambda: None))
    harness = Harness({apis.FETCH: gate})
    transport = await consumer(harness, gate)
    assert harness.budget.held_bytes == 8, "the frame's head"
    transport.take(1000)
    harness.sweep(1)
    assert harness.budget.held_bytes == 0


async def test_answers_that_wait_for_a_commit_are_limited_and_accounted() -> None:
    """One Produce that waits, and behind it requests with large answers."""
    released: list[bool] = []
    lent = EncodedResponse([b"x" * 400_000], 400_000, lambda: released.append(True))
    own = EncodedResponse([b"x" * 400_000], 400_000)

    async def fetch(*_: object) -> EncodedResponse:
        return own if harness.server.coarse_now > 1000 else lent

    harness = Harness({apis.FETCH: fetch})
    request = frame(apis.FETCH, 4, 5, struct.pack(">iiiibi", -1, 1, 1, 1, 0, 0))
    for end, own_bytes in (("answered", 0), ("lost", 0), ("answered", 400_000), ("lost", 400_000)):
        harness.sweep(own_bytes and 1)
        connection, transport = harness.connect()
        deliver(connection, transport, produce(1) + request * 10)
        await turns(100)
        assert harness.budget.by_purpose["response"] == 3 * (own_bytes + 8)
        assert not transport.reading
        if end == "lost":
            transport.close()
        await turns()
        harness.writer.settle()
        await turns(100)
        assert len(transport.answers()) == (11 if end == "answered" else 0)
        assert len(released) == (0 if own_bytes else 10 if end == "answered" else 3)
        released.clear()
        assert harness.budget.held_bytes == 0


async def test_over_the_budget_producers_are_not_read_from_until_there_is_room() -> None:
    harness = Harness(budget_bytes=MIB)
    connections = [harness.connect() for _ in range(4)]
    request = big_produce(1, 400_000)
    for connection, transport in connections[:3]:
        deliver(connection, transport, request)
    assert harness.budget.exhausted and harness.budget.held_bytes < 1.3 * MIB
    connection, transport = connections[3]
    read = deliver(connection, transport, request)
    assert read < 4096 and not transport.reading, "a new frame does not begin"
    assert harness.budget.held_bytes < 1.3 * MIB
    assert deliver(*connections[2], request) == 0
    harness.writer.settle(2)
    await turns()
    assert transport.reading
    assert deliver(connection, transport, request[read:]) == len(request) - read
    harness.writer.settle()
    await turns()
    assert [number for number, _ in transport.answers()] == [1]
    assert harness.budget.held_bytes == 0


async def test_over_the_budget_small_requests_of_consumers_go_on() -> None:
    gate = Gate()
    harness = Harness({apis.HEARTBEAT: gate}, budget_bytes=MIB)
    harness.budget.take("segment", MIB)
    connection, transport = harness.connect()
    deliver(connection, transport, heartbeat(1))
    await turns()
    assert len(gate.calls) == 1 and transport.reading


async def test_announcing_large_frames_does_not_use_the_budget_up() -> None:
    harness = Harness(budget_bytes=64 * MIB)
    for _ in range(20):
        connection, transport = harness.connect()
        deliver(connection, transport, struct.pack(">i", 30 * MIB) + b"\0\0\0\7")
    assert harness.budget.held_bytes == 8 * RESERVED_BYTES, "half of the budget is not for large frames"
    assert not harness.budget.exhausted and not transport.reading
    connection, transport = harness.connect()
    small = big_produce(1, 100_000)
    assert deliver(connection, transport, small, piece=1000) == len(small), "who sends little does not notice"


async def test_a_frame_larger_than_half_of_the_budget_is_refused_at_once() -> None:
    harness = Harness(budget_bytes=64 * MIB)
    connection, transport = harness.connect()
    with structlog.testing.capture_logs() as lines:
        deliver(connection, transport, struct.pack(">i", 32 * MIB + 1) + bytes(MIB))
    assert transport.closing and harness.budget.held_bytes == 0
    assert [line["event"] for line in lines] == ["connection_closed_bad_frame"]
    settings = Settings()
    assert settings.connection.request_bytes_max < large_frame_budget(Budget(settings.memory.budget_bytes)).limit_bytes


async def test_a_very_large_frame_is_accounted_as_it_comes_and_released() -> None:
    harness = Harness(budget_bytes=64 * MIB, topics={"logs": {"max.message.bytes": str(64 * MIB)}})
    connection, transport = harness.connect()
    request = big_produce(1, 30 * MIB)
    position = 0
    while position < len(request):
        position += deliver(connection, transport, request[position : position + MIB])
        assert position <= harness.budget.held_bytes <= position + RESERVED_BYTES + MIB
    assert harness.budget.held_bytes == len(request)
    harness.writer.settle()
    await turns()
    assert harness.budget.held_bytes == 0
    assert len(transport.answers()) == 1


@pytest.mark.parametrize(("rate", "cut"), [(0, True), (1, True), (SHORT_RATE_MIN // 2, True), (SHORT_RATE_MIN, False)])
async def test_a_slow_frame_gives_way_when_memory_is_short(rate: int, cut: bool) -> None:
    harness = Harness(budget_bytes=MIB)
    slow_connection, slow = harness.connect()
    request = big_produce(1, 500_000)
    deliver(slow_connection, slow, request[:100])
    harness.budget.take("segment", 600_000)
    assert harness.budget.exhausted
    position = 100
    for second in range(int(STALLED_SECONDS) + 1):
        assert not slow.closing or second == STALLED_SECONDS
        position += deliver(slow_connection, slow, request[position : position + rate])
        harness.sweep(1)
    await turns()
    assert slow.closing == cut
    assert harness.metrics.connections_closed["memory_pressure"] == cut
    assert harness.budget.held_bytes == 600_000 + (0 if cut else len(request))


async def test_of_large_frames_that_wait_for_each_other_the_largest_gives_way() -> None:
    harness = Harness(budget_bytes=40 * MIB, frame_ms=30_000)
    pairs = [harness.connect() for _ in range(3)]
    request = struct.pack(">i", 19 * MIB) + bytes(19 * MIB)
    for megabytes in range(19):
        for connection, transport in pairs:
            deliver(connection, transport, request[megabytes * MIB : (megabytes + 1) * MIB])
    deliver(*pairs[1], request[:MIB])
    assert not any(transport.reading for _, transport in pairs), "their next bytes have to wait for memory"
    assert 20 * MIB <= harness.budget.held_bytes < 26 * MIB
    for _ in range(2):
        harness.sweep(1)
    assert not any(transport.closing for _, transport in pairs)
    harness.sweep(1)
    await turns()
    assert [transport.closing for _, transport in pairs].count(True) == 1
    assert any(transport.reading for _, transport in pairs)
    assert harness.metrics.connections_closed["memory_pressure"] == 1
    for _, transport in pairs:
        transport.close()
    await turns()
    assert harness.budget.held_bytes == harness.server.large_frames.held_bytes == 0


async def test_frames_that_wait_for_commits_do_not_wait_forever() -> None:
    harness = Harness(budget_bytes=40 * MIB, frame_ms=30_000)
    connection, transport = harness.connect()
    deliver(connection, transport, struct.pack(">i", 10 * MIB) + bytes(MIB))
    harness.budget.take("segment", 40 * MIB)
    deliver(connection, transport, bytes(4 * MIB))
    assert not transport.reading
    for _ in range(29):
        harness.sweep(1)
    assert not transport.closing, "it is not what holds the memory"
    harness.sweep(2)
    await turns()
    assert transport.closing
    assert harness.budget.held_bytes == 40 * MIB


async def test_a_lost_connection_gives_everything_back_but_what_the_writer_holds() -> None:
    gate = Gate()
    harness = Harness({apis.FETCH: gate, apis.HEARTBEAT: gate})
    connection, transport = harness.connect()
    fetch = frame(apis.FETCH, 4, 2, struct.pack(">iiiibi", -1, 1, 1, 1, 0, 0))
    deliver(connection, transport, produce(1))
    held = harness.budget.held_bytes
    deliver(connection, transport, fetch)
    await turns()
    deliver(connection, transport, heartbeat(3) + big_produce(4, 100_000)[:50_000])
    transport.close()
    await turns()
    assert gate.cancelled == 1, "nobody waits for the fetch any more"
    assert [call.correlation_id for call in gate.calls] == [2]
    assert harness.budget.held_bytes == held, "the batch that was taken in is not lost"
    harness.writer.settle()
    await turns()
    assert harness.budget.held_bytes == 0
    assert harness.metrics.connections_open == 0


async def test_a_commit_of_offsets_is_given_up_with_its_connection() -> None:
    """Repeated for long, it would overtake what its client commits over the next connection (simulation, seed 181)."""
    gate = Gate()
    harness = Harness({apis.OFFSET_COMMIT: gate})
    connection, transport = harness.connect()
    commit = struct.pack(">h1sih1shi", 1, b"g", 1, 1, b"m", -1, 0)
    deliver(connection, transport, frame(apis.OFFSET_COMMIT, 7, 1, commit))
    await turns()
    assert len(gate.calls) == 1
    transport.close()
    await turns()
    assert gate.cancelled == 1 and harness.budget.held_bytes == 0 and harness.failures == []


async def test_a_group_s_wait_outlives_its_connection() -> None:
    """As in Kafka: a member whose connection broke is given up by its session, not by its socket."""
    gate = Gate()
    harness = Harness({apis.HEARTBEAT: gate})
    connection, transport = harness.connect()
    deliver(connection, transport, heartbeat(1))
    await turns()
    transport.close()
    await turns()
    assert gate.cancelled == 0
    gate.open()
    await turns()
    assert harness.budget.held_bytes == 0 and harness.failures == []


async def test_leaving_answers_what_is_in_flight_and_cuts_long_waits_off() -> None:
    gate = Gate()
    harness = Harness({apis.FETCH: gate, apis.HEARTBEAT: gate})
    fetch = frame(apis.FETCH, 4, 2, struct.pack(">iiiibi", -1, 1, 1, 1, 0, 0))
    (
        (_, idle),
        (producer_connection, producer),
        (consumer_connection, consumer),
        (beat_connection, beat),
    ) = (harness.connect() for _ in range(4))
    deliver(producer_connection, producer, produce(1))
    deliver(consumer_connection, consumer, produce(1) + fetch + heartbeat(3))
    deliver(beat_connection, beat, heartbeat(4))
    await turns()
    drained = harness.supervisor.start("drain", harness.server.drain())
    await turns()
    assert idle.closing and not producer.closing and not consumer.closing and not drained.done()
    harness.writer.settle()
    await turns()
    assert [number for number, _ in producer.answers()] == [1] and producer.closing
    assert [number for number, _ in consumer.answers()] == [1] and consumer.closing and gate.cancelled == 1
    assert not drained.done()
    gate._open[-1].set_result(None)
    await turns()
    assert [number for number, _ in beat.answers()] == [4] and beat.closing
    assert drained.done()
    assert harness.metrics.connections_closed == {"shutdown": 3, "cut_off": 1}
    assert harness.budget.held_bytes == 0
    _, late = harness.connect()
    await turns()
    assert late.closing


def test_failures_are_logged_one_by_one_until_there_are_too_many() -> None:
    clock = ManualClock()
    with structlog.testing.capture_logs() as lines:
        failures = FailureLog(clock)
        for number in range(LINES_MAX + 30):
            failures.report("connection_closed_bad_frame", client=f"/{number}")
        failures.report("handler_failed", RuntimeError("x"), api="Metadata")
        failures.sweep()
        clock.seconds += WINDOW_SECONDS
        failures.sweep()
        failures.report("connection_closed_bad_frame", client="/again")
    assert [line["event"] for line in lines] == [
        *["connection_closed_bad_frame"] * LINES_MAX,
        "handler_failed",
        "failures_not_logged",
        "connection_closed_bad_frame",
    ]
    assert lines[-2]["count"] == 30


async def test_metrics_of_connections_and_requests() -> None:
    harness = Harness()
    connection, transport = harness.connect()
    deliver(connection, transport, produce(1, {("logs", 0): build_batch([b"a", b"b"])}))
    harness.clock.seconds += 0.2
    harness.writer.settle()
    await turns()
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for metric in harness.metrics.collect()
        for sample in metric.samples
    }
    assert samples["tidelog_agent_connections",] == 1
    assert samples["tidelog_agent_requests_total", "Produce", "ok"] == 1
    assert samples["tidelog_agent_received_records_total",] == 2
    assert samples["tidelog_agent_request_duration_seconds_bucket", "Produce", "0.1"] == 0
    assert samples["tidelog_agent_request_duration_seconds_bucket", "Produce", "0.25"] == 1
    assert samples["tidelog_agent_request_duration_seconds_count", "Produce"] == 1
    assert samples["tidelog_agent_held_bytes", "request"] == 0
