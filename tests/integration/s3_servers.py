"""Real S3 servers for tests: moto's (Python) and versitygw (Go). Import the fixtures where they are used.

``moto_s3`` and ``versitygw_s3`` live as long as the test session: take a bucket of your own from
``server.new_bucket()``. Their credentials are in the environment, where Tidelog looks for them.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from tests.tools import versitygw

ACCESS_KEY = "tidelog-test"
SECRET_KEY = "tidelog-test-secret"
REGION = "us-east-1"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}
"""What a process that is to use one of the servers needs."""
START_SECONDS = 60

_bucket_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server. ``folder``, if any, holds each bucket as a folder of files."""

    name: str
    endpoint: str
    folder: Path | None = None

    def url(self, bucket: str, prefix: str = "") -> str:
        """For ``--storage`` and ``open_store``."""
        return f"s3://{bucket}/{prefix}?endpoint={self.endpoint}&region={REGION}"

    def client(self) -> Any:
        """A plain synchronous client, independent of the code under test."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 2}),
        )

    def new_bucket(self) -> str:
        """Make a bucket nobody else uses; returns its name."""
        name = f"tidelog-{os.getpid()}-{next(_bucket_numbers)}"
        self.client().create_bucket(Bucket=name)
        return name


@contextmanager
def run_moto(folder: Path) -> Iterator[S3Server]:
    """moto's server as a process of its own; ``folder`` gets its log."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _process(command, port, folder / "moto.log"):
        yield S3Server("moto", f"http://127.0.0.1:{port}")


@contextmanager
def run_versitygw(folder: Path) -> Iterator[S3Server]:
    """versitygw over a folder inside ``folder``; skips the test when it has not been built."""
    port = free_port()
    with _process(versitygw_command(folder, port), port, folder / "versitygw.log"):
        yield S3Server("versitygw", f"http://127.0.0.1:{port}", folder / "buckets")


def versitygw_command(folder: Path, port: int) -> list[str]:
    """Serves ``folder / "buckets"``, made here; skips the test when versitygw has not been built."""
    binary = versitygw.find()
    buckets = folder / "buckets"
    buckets.mkdir(parents=True, exist_ok=True)
    listen = ["--port", f"127.0.0.1:{port}", "--keep-alive", "--quiet", "--region", REGION]
    return [str(binary), "--access", ACCESS_KEY, "--secret", SECRET_KEY, *listen, "posix", str(buckets)]


@pytest.fixture(scope="session")
def moto_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with _environment(), run_moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def versitygw_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with _environment(), run_versitygw(tmp_path_factory.mktemp("versitygw")) as server:
        yield server


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        yield


@contextmanager
def _process(command: Sequence[str], port: int, log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            _wait_until_listening(process, port, log)
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail(f"{process.args!r} does not listen on {port}: {log.read_text()[-2000:]}")
