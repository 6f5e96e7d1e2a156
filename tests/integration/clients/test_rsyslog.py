"""Debian's rsyslog: omkafka ships a log file in, imkafka reads it out, whole and in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.members import wait_until
from tests.support.raw_kafka import RawKafka, batches
from tests.tools.rsyslog import Rsyslog, require_rsyslog

pytestmark = pytest.mark.integration

LINES = 300


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[[str, str], Rsyslog]]:
    """Starts rsyslogds; all are stopped after the test."""
    require_rsyslog()
    started: list[Rsyslog] = []

    def start(name: str, configuration: str) -> Rsyslog:
        started.append(Rsyslog(tmp_path / name, configuration))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        one.stop()


def _shipper(bootstrap: str, topic: str, source: Path, codec: str) -> str:
    return f"""
module(load="imfile" mode="polling" pollingInterval="1")
module(load="omkafka")
template(name="line" type="string" string="%msg%")
input(type="imfile" File="{source}" Tag="test:" reopenOnTruncate="on" ruleset="ship")
ruleset(name="ship") {{
  action(type="omkafka" broker=["{bootstrap}"] topic="{topic}" template="line" partitions.auto="on"
         confParam=["compression.codec={codec}", "queue.buffering.max.ms=20"]
         resubmitOnFailure="on" keepFailedMessages="on" failedMsgFile="failed.json")
}}
"""


def _reader(bootstrap: str, topic: str, group: str, target: Path) -> str:
    return f"""
module(load="imkafka")
template(name="raw" type="string" string="%rawmsg%\\n")
input(type="imkafka" broker=["{bootstrap}"] topic="{topic}" consumergroup="{group}" parseHostname="off"
      confParam=["auto.offset.reset=earliest", "heartbeat.interval.ms=300"] ruleset="write")
ruleset(name="write") {{
  action(type="omfile" file="{target}" template="raw")
}}
"""


@pytest.mark.parametrize("codec", ["none", "snappy", "lz4", "zstd"])
def test_a_log_file_goes_in_and_comes_out(
    bootstrap: str, unique: Callable[[str], str], tmp_path: Path, daemon: Callable[[str, str], Rsyslog], codec: str
) -> None:
    topic = unique("rsyslog")
    with RawKafka(bootstrap) as connection:
        connection.create_topic(topic)
    source, target = tmp_path / "app.log", tmp_path / "out.log"
    lines = [
        f"2026-11-23T14:30:{number % 60:02d}Z web-1 app[7]: line {number} of a real log" for number in range(LINES)
    ]
    source.write_text("".join(f"{line}\n" for line in lines))
    shipper = daemon("shipper", _shipper(bootstrap, topic, source, codec))
    reader = daemon("reader", _reader(bootstrap, topic, unique("group"), target))

    def written() -> list[str]:
        return target.read_text().splitlines() if target.exists() else []

    wait_until(
        lambda: len(written()) >= LINES,
        40,
        lambda: f"{len(written())} lines; {shipper.output()[-500:]}; {reader.output()[-500:]}",
    )
    assert [line.strip() for line in written()] == lines
    if codec != "none":
        with RawKafka(bootstrap) as connection:
            assert any(batch.codec for batch in batches(connection.fetch(topic, 0).records)), "compressed on the wire"
