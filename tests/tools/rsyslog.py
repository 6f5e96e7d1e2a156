"""rsyslog with omkafka and imkafka: a small private instance, configured and started by a test."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

from tests.tools.require import require


def _binary() -> str | None:
    return shutil.which("rsyslogd") or shutil.which("rsyslogd", path="/usr/sbin")


def installed() -> bool:
    """Whether rsyslogd and both Kafka modules are there."""
    folders = [*Path("/usr/lib").glob("*/rsyslog"), Path("/usr/lib/rsyslog"), Path("/usr/lib64/rsyslog")]
    return _binary() is not None and any(
        (folder / "omkafka.so").exists() and (folder / "imkafka.so").exists() for folder in folders
    )


def require_rsyslog() -> None:
    """Skip (or fail) the calling test without rsyslog and its Kafka modules."""
    require(installed(), "rsyslog with omkafka and imkafka", "apt-get install rsyslog rsyslog-kafka")


class Rsyslog:
    """One rsyslogd in the foreground with its own configuration, working folder and pid file."""

    def __init__(self, folder: Path, configuration: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._configuration = folder / "rsyslog.conf"
        self._configuration.write_text(f'global(workDirectory="{folder}")\n{configuration}')
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; what it says goes to ``output.log`` in its folder."""
        binary = _binary()
        assert binary is not None, "rsyslogd is not installed"
        command = [binary, "-n", "-f", str(self._configuration), "-i", str(self.folder / "rsyslogd.pid")]
        with (self.folder / "output.log").open("ab") as output:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def output(self) -> str:
        return (self.folder / "output.log").read_text(errors="replace")

    def stop(self) -> None:
        """SIGTERM (it flushes), SIGKILL when that takes longer than ten seconds."""
        if self._process is None:
            return
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._process = None
