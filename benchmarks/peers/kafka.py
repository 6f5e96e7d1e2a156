"""Apache Kafka itself, one KRaft node from Maven Central: the peer of the benchmarks and the reference of the tests."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from benchmarks.peers.jars import TOOLS, fetch
from benchmarks.peers.processes import ServerProcess, free_port

POM = Path(__file__).parent / "java" / "pom.xml"
JARS = TOOLS / "kafka"
_CLUSTER_ID = "MkU3OEVBNTcwNTJENDM2Qk"


class Kafka:
    """A broker and controller in one process, listening on 127.0.0.1, keeping its log under ``folder``."""

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None, heap: str = "1g") -> None:
        self.folder = folder
        self._settings = dict(settings or {})
        self._heap = heap
        self._server: ServerProcess | None = None

    def start(self) -> str:
        """Format the log folder, start, and return the bootstrap address. Raises Unavailable without the jars."""
        jars = fetch(POM, JARS)
        self.folder.mkdir(parents=True, exist_ok=True)
        port, controller_port = free_port(), free_port()
        bootstrap = f"127.0.0.1:{port}"
        properties = self.folder / "server.properties"
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
            "listeners": f"PLAINTEXT://{bootstrap},CONTROLLER://127.0.0.1:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://{bootstrap}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(self.folder / "log"),
            "num.partitions": "4",
            "offsets.topic.num.partitions": "4",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            **self._settings,
        }
        properties.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        logging = self.folder / "log4j2.yaml"
        logging.write_text(_LOG4J2)
        # A short classpath: a wildcard entry stands for every jar of the folder.
        java = ["java", f"-Xmx{self._heap}", f"-Xms{self._heap}", "-XX:+UseG1GC", "-cp", f"{jars}/*"]
        java.append(f"-Dlog4j2.configurationFile={logging}")
        formatted = [*java, "kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID, "-c", str(properties)]
        done = subprocess.run(
            [*formatted, "--ignore-formatted"], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"kafka.tools.StorageTool failed:\n{done.stdout}{done.stderr}")
        self._server = ServerProcess("kafka", [*java, "kafka.Kafka", str(properties)], self.folder / "kafka.log")
        self._server.start(port)
        return bootstrap

    @property
    def pid(self) -> int:
        assert self._server is not None, "kafka has not been started"
        return self._server.pid

    def stop(self) -> None:
        """Stop it; its log stays in ``folder``."""
        if self._server is not None:
            self._server.stop(grace_s=15)
            self._server = None


_LOG4J2 = """\
Configuration:
  Appenders:
    Console: {name: STDOUT, PatternLayout: {pattern: "[%d] %p %m (%c)%n"}}
  Loggers:
    Root: {level: WARN, AppenderRef: [{ref: STDOUT}]}
"""
