"""Java programs from Maven Central: fetched once by their ``pom.xml``, then run straight from a folder of jars."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
TOOLS = CHECKOUT / ".cache" / "tools"


class Unavailable(Exception):
    """A program this machine does not have and cannot fetch; the message says which and why."""


def fetch(pom: Path, folder: Path) -> Path:
    """Every runtime dependency of ``pom`` as a jar in ``folder``, fetched once for each content of ``pom``."""
    if fetched(pom, folder):
        return folder
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            raise Unavailable(f"{program} is not installed")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"]
    command += ["-DincludeScope=runtime", f"-DoutputDirectory={folder}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line for line in done.stdout.splitlines() if "ERROR" in line][:1]
        raise Unavailable(f"mvn could not fetch the jars of {pom.relative_to(CHECKOUT)}: {' '.join(said)}")
    _stamp(folder).write_text(_digest(pom))
    return folder


def fetched(pom: Path, folder: Path) -> bool:
    """Whether ``folder`` holds the jars that this very ``pom`` names."""
    return _stamp(folder).exists() and _stamp(folder).read_text() == _digest(pom)


def _stamp(folder: Path) -> Path:
    return folder / ".pom-sha256"


def _digest(pom: Path) -> str:
    return hashlib.sha256(pom.read_bytes()).hexdigest()
