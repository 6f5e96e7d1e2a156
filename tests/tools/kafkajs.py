"""kafkajs, the Node.js client: installed by its lock file, run through the scripts in ``node/``."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.peers.jars import TOOLS, Unavailable
from tests.tools.require import require

SOURCE = Path(__file__).parent / "node"
FOLDER = TOOLS / "node"
_STAMP = FOLDER / ".lock-sha256"


def _digest() -> str:
    return hashlib.sha256((SOURCE / "package-lock.json").read_bytes()).hexdigest()


def installed() -> bool:
    """Whether the very packages of the lock file are there."""
    return _STAMP.exists() and _STAMP.read_text() == _digest()


def install() -> str:
    """``npm ci`` into the tool cache, once for each lock file. Raises Unavailable."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise Unavailable(f"{program} is not installed")
    if installed():
        return "installed"
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(SOURCE / name, FOLDER / name)
    done = subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()][:2]
        raise Unavailable(f"npm ci failed: {' '.join(said)}")
    _STAMP.write_text(_digest())
    return "installed"


def command(script: str, *arguments: str) -> list[str]:
    """The command line of a script in ``node/``; run it with :func:`environment`."""
    return ["node", str(SOURCE / script), *arguments]


def environment() -> dict[str, str]:
    """Lets the scripts, which live in the checkout, find the packages, which live in the tool cache."""
    return {**os.environ, "NODE_PATH": str(FOLDER / "node_modules"), "KAFKAJS_NO_PARTITIONER_WARNING": "1"}


def require_kafkajs() -> None:
    """Skip (or fail) the calling test without node and kafkajs."""
    require(shutil.which("node") and installed(), "kafkajs", "install node and npm, then python -m tests.setup")
