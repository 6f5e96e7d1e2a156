"""The demo's child processes: Tidelog itself, and whoever ships."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tidelog.child import Child

REBALANCE_DELAY_MS = 500
RSYSLOG = "rsyslog"
BUNDLED = "bundled"


def tidelog(folder: Path, kafka: str, http: str) -> Child:
    """``tidelog up`` on embedded defaults, data in ``folder``, and groups that hardly wait for late members."""
    command = [sys.executable, "-m", "tidelog", "up", "--kafka", kafka, "--http", http, "--data", str(folder / "data")]
    command += ["--set", f"groups.initial_rebalance_delay_ms={REBALANCE_DELAY_MS}"]
    return Child("tidelog", command, folder / "tidelog.log")


def shipper(
    wanted: str | None, folder: Path, log_file: Path, topic: str, kafka: str, client_id: str = "demo-shipper"
) -> Child:
    """The shipper ``wanted``; None is rsyslog with omkafka when this machine has it, else the bundled one. ``kafka``
    is one address or several with commas.

    :raises OSError: rsyslog is wanted, but is not here.
    """
    binary = _rsyslogd() if wanted != BUNDLED else None
    if binary is None and wanted == RSYSLOG:
        raise OSError("rsyslog with omkafka is not installed (Debian: rsyslog, rsyslog-kafka)")
    if binary is None:
        command = [sys.executable, "-m", "tidelog.shipper", str(log_file), "--topic", topic, "--bootstrap", kafka]
        command += ["--client-id", client_id]
        return Child("bundled shipper (librdkafka)", command, folder / "shipper.log")
    configuration = folder / "rsyslog.conf"
    configuration.write_text(
        _RSYSLOG.format(
            folder=folder,
            log_file=log_file,
            topic=topic,
            brokers=", ".join(f'"{address}"' for address in kafka.split(",")),
            client_id=client_id,
        )
    )
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
  action(type="omkafka" broker=[{brokers}] topic="{topic}" template="line" partitions.auto="on"
         confParam=["client.id={client_id}", "compression.codec=lz4", "linger.ms=20", "message.timeout.ms=60000"]
         topicConfParam=["request.required.acks=-1"]
         resubmitOnFailure="on" keepFailedMessages="on" failedMsgFile="{folder}/rsyslog-failed" closeTimeout="10000")
}}
"""
