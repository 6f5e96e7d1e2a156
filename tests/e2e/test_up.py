"""``tidelog up`` as a process: what it prints, how it stops, and how it refuses to start."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

TIDELOG = str(Path(sys.executable).with_name("tidelog"))


@contextmanager
def up(folder: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [TIDELOG, "up", "--kafka", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data", str(folder / "data"), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, **environment},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def banner(process: subprocess.Popen[str]) -> str:
    """What it prints until its last line, which says how to stop it."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Ctrl-C"):
            return "".join(lines)
    raise AssertionError(f"it ended: {''.join(lines)}{process.stderr.read() if process.stderr else ''}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_and_what_to_try_and_stops_with_0(number: signal.Signals, tmp_path: Path) -> None:
    with up(tmp_path) as process:
        text = banner(process)
        found = re.search(r"Kafka +(127\.0\.0\.1:[1-9][0-9]*)\n", text)
        assert found is not None, text
        for words in (
            "is ready after",
            "/healthz /readyz /metrics",
            f"file://{tmp_path}/data/objects",
            f"sqlite:///{tmp_path}/data/metadata.sqlite",
            f"tidelog topic create logs --bootstrap {found[1]}",
        ):
            assert words in text
        described = subprocess.run(
            [TIDELOG, "topic", "create", "logs", "--bootstrap", found[1]],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert described.returncode == 0, described.stderr
        process.send_signal(number)
        assert process.wait(30) == 0


def test_a_second_signal_does_not_wait_for_the_drain(tmp_path: Path) -> None:
    with up(tmp_path, "--storage", "memory://?put_p50_ms=20000&put_p99_ms=20001&get_p50_ms=1&get_p99_ms=2") as process:
        found = re.search(r"Kafka +(\S+)", banner(process))
        assert found is not None
        with subprocess.Popen(
            [TIDELOG, "produce", "logs", "--bootstrap", found[1]],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as producer:
            producer.stdin.write("one\n") if producer.stdin else None
            producer.stdin.close() if producer.stdin else None
            time.sleep(8)  # the record is on its way into the slow store
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            began = time.monotonic()
            assert process.poll() is None, "it drains"
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 130
            assert time.monotonic() - began < 8
            producer.kill()


def test_many_signals_end_it_cleanly(tmp_path: Path) -> None:
    for number, pause in enumerate((0.0, 0.004, 0.02)):
        (tmp_path / str(number)).mkdir()
        with up(tmp_path / str(number)) as process:
            banner(process)
            for _ in range(50):
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                    time.sleep(pause)
            _, stderr = process.communicate(timeout=30)
            assert process.returncode in (0, 130), stderr
            assert "Traceback" not in stderr


def refusal(folder: Path, *arguments: str, **environment: str) -> str:
    """What it says when it does not start because of a setting: one line, exit code 2."""
    with up(folder, *arguments, **environment) as process:
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 2, stderr
    assert stdout == ""
    said = [line for line in stderr.splitlines() if line.startswith("tidelog: ")]
    assert len(said) == 1, stderr
    assert "Traceback" not in stderr
    return said[0]


@pytest.mark.parametrize(("flag", "setting"), [("--kafka", "listen.kafka"), ("--http", "listen.http")])
def test_an_address_in_use_names_its_setting(flag: str, setting: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = refusal(tmp_path, flag, address)
    assert f"{setting} = '{address}'" in said
    assert "in use" in said


def test_a_data_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = refusal(tmp_path, "--data", str(tmp_path / "file" / "below"))
    assert f"data = '{tmp_path}/file/below'" in said


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    assert "storage" in refusal(tmp_path, "--storage", "s3://Not_A_Bucket")
    assert "metadata" in refusal(tmp_path, "--metadata", "sqlite:///")
    assert "listen.advertise" in refusal(tmp_path, "--set", "listen.advertise=nowhere")
    said = refusal(tmp_path, TIDELOG_INGEST__LINGER="5")
    assert "TIDELOG_INGEST__LINGER" in said
