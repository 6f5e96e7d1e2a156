"""The demo's child processes: Tidelog itself, and whoever ships."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

LOG_LINES_SHOWN = 15
REBALANCE_DELAY_MS = 500
RSYSLOG = "rsyslog"
BUNDLED = "bundled"


class Child:
    """One child process with its output in a file, in a session of its own so that Ctrl-C reaches only the demo."""

    def __init__(self, name: str, command: list[str], log_path: Path) -> None:
        self.name = name
        self._command = command
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """:raises OSError: it cannot be run."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDELOG_")}
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def problem(self) -> str | None:
        """What is wrong when it has ended by itself."""
        if self._process is None or self._process.poll() is None:
            return None
        return f"{self.name} ended with exit code {self._process.returncode}:\n{self.log_tail()}"

    def stop(self, within_seconds: float) -> str | None:
        """SIGTERM; None when it ended with 0 in time, else what went wrong (it is killed then)."""
        if self._process is None:
            return None
        if self._process.poll() is None:
            self._process.terminate()
        try:
            code = self._process.wait(within_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"{self.name} did not stop within {within_seconds:g} s of SIGTERM:\n{self.log_tail()}"
        return None if code == 0 else f"{self.name} ended with exit code {code}:\n{self.log_tail()}"

    def kill(self) -> None:
        """End it at once, whatever it does. Idempotent."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def log_tail(self) -> str:
        """The last lines it wrote."""
        if not self._log_path.exists():
            return "  (it wrote nothing)"
        lines = self._log_path.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        return "\n".join(f"  {line}" for line in lines) or "  (it wrote nothing)"


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody has now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def tidelog(folder: Path, kafka: str, http: str) -> Child:
    """``tidelog up`` on embedded defaults, data in ``folder``, and groups that hardly wait for late members."""
    command = [sys.executable, "-m", "tidelog", "up", "--kafka", kafka, "--http", http, "--data", str(folder / "data")]
    command += ["--set", f"groups.initial_rebalance_delay_ms={REBALANCE_DELAY_MS}"]
    return Child("tidelog", command, folder / "tidelog.log")


def shipper(wanted: str | None, folder: Path, log_file: Path, topic: str, kafka: str) -> Child:
    """The shipper ``wanted``; None is rsyslog with omkafka when this machine has it, else the bundled one.

    :raises OSError: rsyslog is wanted, but is not here.
    """
    binary = _rsyslogd() if wanted != BUNDLED else None
    if binary is None and wanted == RSYSLOG:
        raise OSError("rsyslog with omkafka is not installed (Debian: rsyslog, rsyslog-kafka)")
    if binary is None:
        command = [sys.executable, "-m", "tidelog.shipper", str(log_file), "--topic", topic, "--bootstrap", kafka]
        return Child("bundled shipper (librdkafka)", command, folder / "shipper.log")
    configuration = folder / "rsyslog.conf"
    configuration.write_text(_RSYSLOG.format(folder=folder, log_file=log_file, topic=topic, kafka=kafka))
    command = [binary, "-n", "-f", str(configuration), "-i", str(folder / "rsyslogd.pid")]
    return Child("rsyslog (omkafka)", command, folder / "rsyslog.log")


def _rsyslogd() -> str | None:
    binary = shutil.which("rsyslogd") or shutil.which("rsyslogd", path="/usr/sbin")
    folders = [*Path("/usr/lib").glob("*/rsyslog"), Path("/usr/lib/rsyslog"), Path("/usr/lib64/rsyslog")]
    return binary if any((folder / "omkafka.so").exists() for folder in folders) else None


_RSYSLOG = """\
global(workDirectory="{folder}" maxMessageSize="16k")
module(load="imfile")
module(load="omkafka")
template(name="line" type="string" string="%msg%")
input(type="imfile" file="{log_file}" tag="demo" ruleset="ship")
ruleset(name="ship" queue.type="LinkedList" queue.size="200000" queue.dequeueBatchSize="2000") {{
  action(type="omkafka" broker=["{kafka}"] topic="{topic}" template="line" partitions.auto="on"
         confParam=["compression.codec=lz4", "linger.ms=20", "message.timeout.ms=60000"]
         topicConfParam=["request.required.acks=-1"]
         resubmitOnFailure="on" keepFailedMessages="on" failedMsgFile="{folder}/rsyslog-failed" closeTimeout="10000")
}}
"""
