"""Health, HTTP, tasks, logs and clocks: what every process starts with."""

import asyncio
import io
import json
import logging

import aiohttp
import pytest
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from runtime.clock import SeededEntropy, SystemClock, SystemEntropy
from runtime.health import Health
from runtime.http import HttpServer
from runtime.logs import configure_logs
from runtime.tasks import Supervisor


async def get(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status, await answer.text()


async def test_health_and_readiness_are_answered_with_their_problems() -> None:
    health = Health()
    server = HttpServer(health, CollectorRegistry())
    port = await server.start("127.0.0.1", 0)
    try:
        assert await get(port, "/healthz") == (200, '{"status": "ok"}')
        status, text = await get(port, "/readyz")
        assert (status, json.loads(text)["problems"]) == (503, {"lifecycle": "starting"})
        health.started()
        assert (await get(port, "/readyz"))[0] == 200
        trouble: list[str] = ["the store is away"]
        health.add_readiness("ingest", lambda: trouble[0] if trouble else None)
        health.add_liveness("loop", lambda: None)
        status, text = await get(port, "/readyz")
        assert (status, json.loads(text)["problems"]) == (503, {"ingest": "the store is away"})
        assert (await get(port, "/healthz"))[0] == 200
        health.add_fact("role", lambda: "standby")
        assert json.loads((await get(port, "/readyz"))[1])["role"] == "standby"
        trouble.clear()
        assert await get(port, "/readyz") == (200, '{"status": "ok", "role": "standby"}')
        health.draining("shutting down")
        assert "shutting down" in (await get(port, "/readyz"))[1]
        health.add_liveness("committer", lambda: "it died")
        assert (await get(port, "/healthz"))[0] == 503
    finally:
        await server.stop()
        await server.stop()


async def test_metrics_are_refreshed_before_they_are_read() -> None:
    registry = CollectorRegistry()
    Counter("tidelog_test_things_total", "Things.", registry=registry).inc(3)
    gauge = Gauge("tidelog_test_lag", "Lag.", registry=registry)
    server = HttpServer(Health(), registry)

    async def refresh() -> None:
        gauge.set(7)

    server.before_scrape(refresh)
    port = await server.start("127.0.0.1", 0)
    try:
        status, text = await get(port, "/metrics")
        assert status == 200
        assert "tidelog_test_things_total 3.0" in text
        assert "tidelog_test_lag 7.0" in text
        assert (await get(port, "/nowhere"))[0] == 404
    finally:
        await server.stop()


async def test_an_address_in_use_is_an_error_of_the_start() -> None:
    first = HttpServer(Health(), CollectorRegistry())
    port = await first.start("127.0.0.1", 0)
    second = HttpServer(Health(), CollectorRegistry())
    with pytest.raises(OSError, match="in use"):
        await second.start("127.0.0.1", port)
    await second.stop()
    await first.stop()


async def test_a_task_that_fails_is_reported_once_with_its_name() -> None:
    failures: list[tuple[str, str]] = []
    supervisor = Supervisor(lambda name, error: failures.append((name, str(error))))

    async def fail() -> None:
        raise ValueError("broken")

    async def succeed() -> int:
        return 5

    failed, done = supervisor.start("committer", fail()), supervisor.start("other", succeed())
    await asyncio.wait([failed, done])
    await asyncio.sleep(0)
    assert failures == [("committer", "broken")]
    assert done.result() == 5
    assert len(supervisor) == 0


async def test_stopping_cancels_every_task_and_is_no_failure() -> None:
    failures: list[str] = []
    supervisor = Supervisor(lambda name, _error: failures.append(name))
    cleaned: list[str] = []

    async def wait(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(name)

    for name in ("a", "b"):
        supervisor.start(name, wait(name))
    await asyncio.sleep(0)
    assert len(supervisor) == 2
    await supervisor.stop()
    await supervisor.stop()
    assert sorted(cleaned) == ["a", "b"]
    assert (failures, len(supervisor)) == ([], 0)


def test_logs_off_a_terminal_are_json_lines_with_a_level() -> None:
    out = io.StringIO()
    try:
        configure_logs("info", "auto", out)
        log = structlog.get_logger("tidelog.test")
        log.debug("hidden")
        log.warning("segment_slow", segment_key="ab/cd", seconds=1.5)
        logging.getLogger("botocore").warning("a library speaks")
        first, second = out.getvalue().splitlines()
        row = json.loads(first)
        assert (row["event"], row["level"], row["segment_key"]) == ("segment_slow", "warning", "ab/cd")
        assert row["time"].endswith("Z")
        assert "a library speaks" in second
    finally:
        structlog.reset_defaults()
        logging.basicConfig(force=True)


def test_logs_for_people_have_no_json() -> None:
    out = io.StringIO()
    try:
        configure_logs("debug", "console", out)
        structlog.get_logger("tidelog.test").debug("started", port=1)
        assert "started" in out.getvalue()
        assert "port=1" in out.getvalue()
        assert "{" not in out.getvalue()
    finally:
        structlog.reset_defaults()
        logging.basicConfig(force=True)


async def test_clocks_go_forward_and_sleep_is_cancelled_at_once() -> None:
    clock = SystemClock()
    before, before_ms = clock.monotonic(), clock.now_ms()
    await clock.sleep(0.002)
    assert clock.monotonic() - before >= 0.001
    assert clock.now_ms() >= before_ms > 1_600_000_000_000
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await clock.sleep(60)


def test_seeded_entropy_repeats_itself_and_the_systems_does_not() -> None:
    one, same, other = SeededEntropy(1), SeededEntropy(1), SeededEntropy(2)
    first = [one.uuid_bytes() for _ in range(3)]
    assert first == [same.uuid_bytes() for _ in range(3)]
    assert first[0] != other.uuid_bytes()
    for entropy in (SeededEntropy(3), SystemEntropy()):
        found = entropy.uuid_bytes()
        assert len(found) == 16
        assert found[6] >> 4 == 4
        assert 2.0 <= entropy.uniform(2.0, 3.0) <= 3.0
    assert SystemEntropy().uuid_bytes() != SystemEntropy().uuid_bytes()
