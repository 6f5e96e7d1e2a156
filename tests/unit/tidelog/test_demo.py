import io
import time
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from runtime.clock import SystemClock
from tidelog.child import free_ports
from tidelog.demo.lines import LINES_MIN, Replay, Tally, find_lines
from tidelog.demo.processes import BUNDLED, RSYSLOG, shipper, tidelog
from tidelog.demo.runner import parse_metrics
from tidelog.demo.screen import DONE, SPARK_WIDTH, STARTING, Figures, as_line, mebibytes, open_screen, sparkline
from tidelog.demo.tail import Latencies, Tail, TailMember

FIGURES = Figures(
    phase="shipping",
    elapsed_seconds=12.0,
    total_seconds=60.0,
    lines_in=2_000,
    lines_out=1_900,
    bytes_in=170_000,
    rate_in=2_000.0,
    rate_out=1_950.0,
    p50_ms=210.4,
    p99_ms=None,
    duplicates=0,
    segments=40,
    segment_bytes=40 * 1024,
    puts=41,
    lag_records=None,
    held_bytes=3 * 1024 * 1024,
    budget_bytes=512 * 1024 * 1024,
)


def test_log_files_of_the_machine_are_preferred(tmp_path: Path) -> None:
    (tmp_path / "syslog").write_bytes(b"one\ttab\xff\n\n" * LINES_MIN)
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "x.log").write_text("second\n")
    found = find_lines(tmp_path)
    assert str(tmp_path / "syslog") in found.source
    assert str(tmp_path / "app" / "x.log") in found.source
    assert found.lines[0] == "one tab\N{REPLACEMENT CHARACTER}"
    assert found.lines[-1] == "second"
    assert len(found.lines) == LINES_MIN + 1


def test_without_any_log_lines_are_made_up_and_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _name: None)
    found = find_lines(tmp_path)
    assert found.source.startswith("made up")
    assert len(found.lines) >= LINES_MIN
    assert all(line.isprintable() for line in found.lines)


def test_a_replay_writes_numbered_lines_at_its_rate_and_accounts_for_them(tmp_path: Path) -> None:
    path = tmp_path / "replayed.log"
    replay = Replay(path, ["alpha", "beta gamma"], 2_000, SystemClock())
    replay.start()
    deadline = time.monotonic() + 10
    while replay.written.count < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.read_bytes().endswith(b" 0 alpha\n"), "one line, until it is told to go"
    replay.go()
    while replay.written.count < 500 and time.monotonic() < deadline:
        time.sleep(0.01)
    replay.stop()
    lines = path.read_bytes().splitlines()
    expected = Tally()
    for number, line in enumerate(lines):
        stamp, count, text = line.split(b" ", 2)
        assert int(count) == number
        assert abs(int(stamp) - time.time() * 1000) < 60_000
        assert text == (b"alpha", b"beta gamma")[number % 2]
        expected.add(line)
    assert replay.problem is None
    assert (expected.count, expected.checksum) == (replay.written.count, replay.written.checksum)
    assert len(lines) >= 500


def test_a_replay_that_cannot_write_says_why(tmp_path: Path) -> None:
    path = tmp_path / "replayed.log"
    replay = Replay(path, ["x"], 100, SystemClock())
    replay.start()
    replay.stop()
    path.unlink()
    path.mkdir()
    broken = Replay(path, ["x"], 100, SystemClock())
    broken.start()
    broken.stop()
    assert broken.problem is not None
    assert str(path) in broken.problem


def test_a_tally_does_not_depend_on_the_order_but_on_every_line() -> None:
    one, other = Tally(), Tally()
    for line in (b"a", b"b", b"c"):
        one.add(line)
    for line in (b"c", b"a", b"b"):
        other.add(line)
    assert (one.count, one.checksum, one.byte_count) == (other.count, other.checksum, 3)
    other.add(b"d")
    assert one.checksum != other.checksum
    assert Tally().checksum == 0 != zlib.crc32(b"a")


def test_the_tail_counts_distinct_lines_and_duplicates() -> None:
    tail = Tail([TailMember("127.0.0.1:1", "tail")], "logs", SystemClock())
    for number in (0, 2, 1, 2, 250_000):
        tail._take_line(b"1000 %d text" % number, 1_200)
    assert (tail.lines.count, tail.duplicates) == (4, 1)
    assert tail.latencies.count == tail.take_recent().count == 4
    assert tail.take_recent().count == 0


def test_a_tail_that_cannot_connect_says_so_instead_of_staying_silent() -> None:
    (port,) = free_ports(1)
    tail = Tail([TailMember(f"127.0.0.1:{port}", "tail")], "logs", SystemClock())
    tail.start()
    deadline = time.monotonic() + 10
    while tail.problem is None and time.monotonic() < deadline:
        time.sleep(0.01)
    tail.stop()
    assert tail.problem is not None
    assert f"127.0.0.1:{port}" in tail.problem


def test_percentiles_are_within_the_buckets_width() -> None:
    latencies = Latencies()
    assert latencies.percentile(0.5) is None
    for value in range(1, 1_001):
        latencies.add(value)
    for share in (0.5, 0.99, 1.0):
        found = latencies.percentile(share)
        assert found is not None
        assert share * 1_000 <= found * 1.001 <= share * 1_000 * 1.05
    latencies.add(-5)


def test_off_a_terminal_the_screen_is_plain_lines_every_few_seconds() -> None:
    out = io.StringIO()
    with open_screen(Console(file=out, width=80), {"shipper": "rsyslog"}) as screen:
        screen.show(replace(FIGURES, phase=STARTING, elapsed_seconds=0.0))
        screen.show(replace(FIGURES, elapsed_seconds=0.3))
        screen.show(FIGURES)
        screen.show(FIGURES)
    first, second = out.getvalue().splitlines()
    assert first == "shipper: rsyslog"
    assert second == as_line(FIGURES)
    assert "in 2,000 (167/s) out 1,900 (158/s)" in second, "rates since shipping began"
    assert "p50 210 ms p99 - segments 40 (40.0 KiB) PUTs 41 lag -" in second


def test_on_a_terminal_everything_is_on_one_screen() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, height=40, force_terminal=True, color_system=None)
    with open_screen(console, {"shipper": "rsyslog"}) as screen:
        screen.say("ready")
        screen.show(FIGURES)
    text = out.getvalue()
    for word in ("Tidelog demo: shipping", "rsyslog", "ready", "2,000", "210 ms", "PUTs", "512.0 MiB", "group's lag"):
        assert word in text


@pytest.mark.parametrize(("phase", "full"), [("shipping", False), (DONE, True)])
def test_the_bar_is_full_at_the_end_and_only_then(phase: str, full: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, height=40, force_terminal=True, color_system=None)
    with open_screen(console, {}) as screen:
        screen.show(replace(FIGURES, phase=phase, elapsed_seconds=57.8))
    assert ("━" * SPARK_WIDTH in out.getvalue()) is full


def test_the_demos_groups_do_not_keep_it_waiting(tmp_path: Path) -> None:
    command = tidelog(tmp_path, "127.0.0.1:1", "127.0.0.1:2")._command
    assert "groups.initial_rebalance_delay_ms=500" in command


def test_sparklines_and_sizes() -> None:
    assert sparkline([]) == ""
    assert sparkline([0.0, 0.0]) == "▁▁"
    assert sparkline([0.0, 5.0, 10.0]) == "▁▅█"
    assert mebibytes(512) == "0.5 KiB"
    assert mebibytes(3 * 1024 * 1024) == "3.0 MiB"


def test_metrics_are_read_by_name_with_their_labels() -> None:
    text = '# HELP a b\n# TYPE a counter\na_total{x="y z"} 3.0\nb 1.5e3\n\n'
    assert parse_metrics(text) == {'a_total{x="y z"}': 3.0, "b": 1500.0}


def test_the_bundled_shipper_is_used_where_rsyslog_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidelog.demo.processes._rsyslogd", lambda: None)
    for wanted in (None, BUNDLED):
        assert "bundled" in shipper(wanted, tmp_path, tmp_path / "a.log", "logs", "127.0.0.1:1").name
    with pytest.raises(OSError, match="omkafka"):
        shipper(RSYSLOG, tmp_path, tmp_path / "a.log", "logs", "127.0.0.1:1")


def test_rsyslog_is_used_where_it_is_installed_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidelog.demo.processes._rsyslogd", lambda: "/usr/sbin/rsyslogd")
    for wanted in (None, RSYSLOG):
        assert "rsyslog" in shipper(wanted, tmp_path, tmp_path / "a.log", "logs", "127.0.0.1:1").name
    configuration = (tmp_path / "rsyslog.conf").read_text()
    assert f'input(type="imfile" file="{tmp_path}/a.log"' in configuration
    assert 'broker=["127.0.0.1:1"] topic="logs"' in configuration
    assert "bundled" in shipper(BUNDLED, tmp_path, tmp_path / "a.log", "logs", "127.0.0.1:1").name
