"""Debian's kcat (librdkafka 2.0.2): produce, consume, metadata, offsets by time, groups."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.support.raw_kafka import CODECS, RawKafka, batches
from tests.tools.require import require

pytestmark = pytest.mark.integration

Unique = Callable[[str], str]


@pytest.fixture(autouse=True)
def _kcat() -> None:
    require(shutil.which("kcat"), "kcat", "apt-get install kcat")


def _kcat_run(bootstrap: str, *arguments: str, stdin: str = "") -> str:
    done = subprocess.run(
        ["kcat", "-b", bootstrap, *arguments], input=stdin, capture_output=True, text=True, timeout=40, check=False
    )
    assert done.returncode == 0, f"kcat {arguments} exited {done.returncode}: {done.stderr}"
    return done.stdout


def _topic(bootstrap: str, name: str, partitions: int = 1) -> str:
    with RawKafka(bootstrap) as connection:
        connection.create_topic(name, partitions)
    return name


@pytest.mark.parametrize("codec", CODECS)
def test_round_trip(bootstrap: str, unique: Unique, codec: str) -> None:
    topic = _topic(bootstrap, unique("kcat"), partitions=3)
    lines = [f"key-{number % 7}:line {number} " + "x" * 200 for number in range(200)]
    _kcat_run(bootstrap, "-P", "-t", topic, "-K:", "-z", codec, stdin="\n".join(lines) + "\n")
    printed = _kcat_run(bootstrap, "-C", "-t", topic, "-e", "-q", "-K:", "-o", "beginning")
    assert sorted(printed.splitlines()) == sorted(lines)
    with RawKafka(bootstrap) as connection:
        stored = [batch for number in range(3) for batch in batches(connection.fetch(topic, 0, number).records)]
    assert {batch.codec for batch in stored} == {CODECS[codec]}, "never sent uncompressed instead"


def test_unkeyed_lines_with_headers_in_order(bootstrap: str, unique: Unique) -> None:
    topic = _topic(bootstrap, unique("kcat-headers"))
    _kcat_run(bootstrap, "-P", "-t", topic, "-p", "0", "-H", "host=web-1", "-H", "empty=", stdin="one\ntwo\nthree\n")
    printed = _kcat_run(bootstrap, "-C", "-t", topic, "-e", "-q", "-o", "beginning", "-f", "%p %o %h %s\n")
    assert printed.splitlines() == [
        f"0 {offset} host=web-1,empty= {value}" for offset, value in enumerate(["one", "two", "three"])
    ]


def test_metadata(bootstrap: str, unique: Unique) -> None:
    topic = _topic(bootstrap, unique("kcat-metadata"), partitions=5)
    everything = json.loads(_kcat_run(bootstrap, "-L", "-J"))
    assert topic in {one["topic"] for one in everything["topics"]}
    assert bootstrap in {broker["name"] for broker in everything["brokers"]}
    one = json.loads(_kcat_run(bootstrap, "-L", "-J", "-t", topic))
    (described,) = one["topics"]
    assert [partition["partition"] for partition in described["partitions"]] == [0, 1, 2, 3, 4]
    brokers = {broker["id"] for broker in one["brokers"]}
    assert {partition["leader"] for partition in described["partitions"]} <= brokers
    assert one["controllerid"] in brokers


def test_query_by_timestamp(bootstrap: str, unique: Unique) -> None:
    topic = _topic(bootstrap, unique("kcat-query"))
    before = int(time.time() * 1000)
    _kcat_run(bootstrap, "-P", "-t", topic, "-p", "0", stdin="a\nb\n")
    time.sleep(0.02)
    between = int(time.time() * 1000)
    time.sleep(0.02)
    _kcat_run(bootstrap, "-P", "-t", topic, "-p", "0", stdin="c\n")
    for stamp, offset in ((before, 0), (between, 2), (-1, 3), (-2, 0)):
        assert _kcat_run(bootstrap, "-Q", "-t", f"{topic}:0:{stamp}").split()[-1] == str(offset)
    assert _kcat_run(bootstrap, "-C", "-t", topic, "-p", "0", "-o", f"s@{between}", "-e", "-q").split() == ["c"]


def test_read_the_last_records(bootstrap: str, unique: Unique) -> None:
    topic = _topic(bootstrap, unique("kcat-tail"))
    _kcat_run(bootstrap, "-P", "-t", topic, "-p", "0", stdin="".join(f"{number}\n" for number in range(50)))
    assert _kcat_run(bootstrap, "-C", "-t", topic, "-p", "0", "-o", "-3", "-e", "-q").split() == ["47", "48", "49"]


def test_a_balanced_group(bootstrap: str, unique: Unique) -> None:
    topic, group = _topic(bootstrap, unique("kcat-group"), partitions=2), unique("group")
    _kcat_run(bootstrap, "-P", "-t", topic, stdin="".join(f"{number}\n" for number in range(20)))
    options = ["-X", "auto.offset.reset=earliest", "-X", "heartbeat.interval.ms=200", "-q", "-e"]
    printed = _kcat_run(bootstrap, "-G", group, *options, topic)
    assert sorted(printed.split(), key=int) == [str(number) for number in range(20)]
    _kcat_run(bootstrap, "-P", "-t", topic, stdin="20\n21\n")
    assert sorted(_kcat_run(bootstrap, "-G", group, *options, topic).split()) == ["20", "21"]


def test_idempotent(bootstrap: str, unique: Unique) -> None:
    topic = _topic(bootstrap, unique("kcat-idempotent"))
    lines = "".join(f"{number}\n" for number in range(500))
    _kcat_run(bootstrap, "-P", "-t", topic, "-X", "enable.idempotence=true", "-X", "batch.num.messages=10", stdin=lines)
    assert _kcat_run(bootstrap, "-C", "-t", topic, "-e", "-q", "-o", "beginning") == lines
