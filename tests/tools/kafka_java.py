"""Kafka's own Java client, through the command line tools of ``kafka-tools`` from Maven Central."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.jars import TOOLS, fetched
from tests.tools.require import require

POM = Path(__file__).parent / "java" / "pom.xml"
JARS = TOOLS / "java"
CONSUMER_CONFIG = Path(__file__).parent / "java" / "consumer.properties"


def command(main_class: str, *arguments: str) -> list[str]:
    """The command line that runs ``main_class``, e.g. ``org.apache.kafka.tools.TopicCommand``.

    It starts in little time and memory: the tests run many of them on few cores.
    """
    options = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]
    return ["java", *options, "-cp", f"{JARS}/*", main_class, *arguments]


def run(main_class: str, *arguments: str, timeout_s: float = 60, stdin: str | None = None) -> str:
    """Run a tool to its end and return what it printed; an exit code other than 0 fails with both outputs."""
    done = subprocess.run(
        command(main_class, *arguments),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        input=stdin or "",
        check=False,
    )
    assert done.returncode == 0, f"{main_class} {arguments} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def spawn(main_class: str, arguments: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
    """Start a tool whose standard output goes to ``output``; the caller ends it."""
    with output.open("wb") as stdout, output.with_suffix(".stderr").open("wb") as stderr:
        return subprocess.Popen(command(main_class, *arguments), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)


def require_java_tools() -> None:
    """Skip (or fail) the calling test without Java and the jars."""
    ready = shutil.which("java") is not None and fetched(POM, JARS)
    require(ready, "the Java client (java and kafka-tools' jars)", "install java and mvn, then python -m tests.setup")
