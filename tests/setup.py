"""Fetch or build what the tests need from outside: ``python -m tests.setup``, the first thing ``make test`` does.

Each tool is either ready or *skipped* with one plain reason; its tests are then skipped too, or fail where
``TIDELOG_REQUIRE_ALL=1`` says that nothing may be missing. Everything fetched is kept in ``.cache/tools`` of the
checkout. Debian packages are installed only by root, and only where ``CI=true`` or ``TIDELOG_SETUP_APT=1`` allows it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.peers.jars import TOOLS, Unavailable
from benchmarks.peers.jars import fetch as fetch_jars
from tests.tools import kafka_java, kafkajs, postgres, rsyslog, versitygw
from tests.tools.require import REQUIRE_ALL


def debian_packages() -> str:
    """kcat, rsyslog with its Kafka modules, and PostgreSQL's server."""
    missing = []
    if shutil.which("kcat") is None:
        missing.append("kcat")
    if not rsyslog.installed():
        missing += ["rsyslog", "rsyslog-kafka"]
    if postgres.binaries() is None:
        missing.append("postgresql")
    if not missing:
        return "installed"
    names = " ".join(missing)
    if shutil.which("apt-get") is None:
        raise Unavailable(f"{names} missing, and this machine has no apt-get")
    if os.geteuid() != 0:
        raise Unavailable(f"{names} missing: as root, apt-get install {names}")
    if os.environ.get("CI") != "true" and os.environ.get("TIDELOG_SETUP_APT") != "1":
        raise Unavailable(f"{names} missing: apt-get install {names}, or set TIDELOG_SETUP_APT=1")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
        done = subprocess.run(
            ["apt-get", "-q", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if line.strip()][-1:]
            raise Unavailable(f"apt-get {arguments[0]} failed: {' '.join(said)}")
    return f"apt-get installed {names}"


def java_tools() -> str:
    """The Java client and Kafka's command line tools."""
    fetch_jars(kafka_java.POM, kafka_java.JARS)
    return f"{len(list(kafka_java.JARS.glob('*.jar')))} jars"


def node_client() -> str:
    """kafkajs with its codecs."""
    return kafkajs.install()


def s3_server() -> str:
    """versitygw, the second S3 server."""
    try:
        built = versitygw.build(TOOLS)
    except Exception as error:
        raise Unavailable(f"cannot build it: {error}") from error
    if built is None:
        raise Unavailable("go is not installed")
    return _shown(built)


_STEPS: dict[str, Callable[[], str]] = {
    "kcat, rsyslog, PostgreSQL (Debian)": debian_packages,
    "kafka-tools (Java client)": java_tools,
    "kafkajs (Node.js client)": node_client,
    "versitygw (S3 server)": s3_server,
}


def _shown(path: Path) -> str:
    checkout = Path.cwd()
    return str(path.relative_to(checkout)) if path.is_relative_to(checkout) else str(path)


def _run(step: Callable[[], str]) -> tuple[bool, str]:
    started = time.monotonic()
    try:
        outcome = step()
    except Unavailable as unavailable:
        return False, str(unavailable)
    took_s = time.monotonic() - started
    return True, outcome if took_s < 1 else f"{outcome} ({took_s:.0f} s)"


def main() -> int:
    """Run every step; 1 when one was skipped although everything is required."""
    TOOLS.mkdir(parents=True, exist_ok=True)
    print("fetching what the tests need into .cache/tools (about a minute the first time)", flush=True)
    with ThreadPoolExecutor(max_workers=len(_STEPS)) as pool:
        outcomes = dict(zip(_STEPS, pool.map(_run, _STEPS.values()), strict=True))
    for name, (ready, said) in outcomes.items():
        print(f"  {'ready  ' if ready else 'SKIPPED'}  {name}: {said}")
    skipped = [name for name, (ready, _) in outcomes.items() if not ready]
    if skipped and os.environ.get(REQUIRE_ALL) == "1":
        print(f"{REQUIRE_ALL}=1, and missing: {', '.join(skipped)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
