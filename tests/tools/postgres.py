"""A PostgreSQL of the tests' own: a new cluster in a temporary folder, on a loopback port, a database for each test.

The system's cluster, if any, is left alone. The server refuses to run as root, so root runs it as ``postgres``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg

from metadata.store.migrations.apply import upgrade_postgresql
from tests.tools.require import require

USER = "tidelog"
"""Owns the databases, is no superuser, and needs no password."""
GUARDED_USER, PASSWORD = "guarded", "s3cret-pa55"
"""Needs one."""
HOW = "apt-get install postgresql"
PREFIX, OWNER = "tidelog-postgres-", "owner"
"""Of the servers' folders, and the file in each with the id of the process that started it."""
START_SECONDS = 30
_EMPTY = """
DO $$ DECLARE tables text; BEGIN
    SELECT string_agg(quote_ident(tablename), ', ') INTO tables FROM pg_tables
        WHERE schemaname = 'public' AND tablename <> 'alembic_version';
    EXECUTE 'TRUNCATE ' || tables || ' RESTART IDENTITY CASCADE';
    INSERT INTO leader (generation) VALUES (0);
    INSERT INTO renewals (generation, renewed) VALUES (0, 0);
END $$
"""
"""Back to what the schema's revisions leave behind."""


def binaries() -> Path | None:
    """The folder of ``initdb`` and ``postgres``, of the newest version installed."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    versions = [folder for folder in Path("/usr/lib/postgresql").glob("*/bin") if (folder / "initdb").exists()]
    return max(versions, key=lambda folder: float(folder.parent.name), default=None)


def require_postgres() -> None:
    """Skip (or fail) the calling test or fixture without PostgreSQL's server."""
    require(binaries() is not None, "PostgreSQL (the server)", HOW)


def end_orphans(parent: Path | None = None) -> None:
    """End the servers of processes that were killed before they could, and remove their folders.

    ``parent``: where such folders are, by default where temporary ones are made.
    """
    for folder in (parent or Path(tempfile.gettempdir())).glob(f"{PREFIX}*"):
        owner = folder / OWNER
        if not owner.exists() or Path(f"/proc/{owner.read_text()}").exists():
            continue  # being made, or its owner (or whoever has got its number since) lives
        with contextlib.suppress(OSError, ValueError):
            pid = int((folder / "data" / "postmaster.pid").read_text().split("\n", 1)[0])
            if str(folder / "data").encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)


class PostgresServer:
    """One server. ``durable`` is for tests that cut its power; the others need no fsync and are faster without."""

    def __init__(self, durable: bool = False) -> None:
        folder = binaries()
        assert folder is not None, "see require_postgres"
        self._binaries = folder
        self._durable = durable
        end_orphans()
        self._folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        (self._folder / OWNER).write_text(str(os.getpid()))
        self._user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        if os.geteuid() == 0:
            shutil.chown(self._folder, self._user)
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self._emptied: list[str] = []
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]

    def __enter__(self) -> PostgresServer:
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
        access = self._data / "pg_hba.conf"
        access.write_text(f"host all {GUARDED_USER} 127.0.0.1/32 scram-sha-256\n{access.read_text()}")
        try:
            self.start()
            self.execute(f"CREATE ROLE {USER} LOGIN")
            self.execute(f"CREATE ROLE {GUARDED_USER} LOGIN PASSWORD '{PASSWORD}'")
            self.execute(f"CREATE DATABASE template_tidelog OWNER {USER}")
            with ThreadPoolExecutor(1) as thread:  # with a loop of its own
                thread.submit(asyncio.run, self._migrate("template_tidelog")).result()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def start(self) -> None:
        """Return when it takes connections."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "on" if self._durable else "off",
            "full_page_writes": "on" if self._durable else "off",
            "shared_buffers": "64MB",
            "max_connections": "100",
            "max_wal_size": "4GB",
            "log_min_messages": "warning",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", str(self._data), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                **self._as_user(),
            )
        until = time.monotonic() + START_SECONDS
        while self._psql("SELECT 1").returncode != 0:
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"PostgreSQL did not start:\n{self.log()[-2_000:]}")
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: ends its sessions and stops in order. SIGQUIT: at once, as by a crash. Idempotent."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(START_SECONDS)
        self._process = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "it was not started"
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL to every one of its processes: a crash of the machine, as far as they know."""
        assert self._process is not None, "it has not been started"
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def freeze(self) -> None:
        """SIGSTOP to every one of its processes: connections stay, nothing is answered."""
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        for pid in reversed(self._pids()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _pids(self) -> list[int]:
        """The postmaster, so that it forks no more, then its children."""
        assert self._process is not None, "it has not been started"
        parent = self._process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return [parent, *map(int, children)]

    def log(self) -> str:
        """What it has said so far."""
        return (self._folder / "log").read_text(errors="replace")

    def create_database(self) -> str:
        """The URL of a database with the schema and nothing in it. Give it back with :meth:`release_database`."""
        if self._emptied:
            return self.url(self._emptied.pop())
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE template_tidelog OWNER {USER}")
        return self.url(name)

    def release_database(self, url: str) -> None:
        """End its sessions and empty it for the next: making one takes twenty times as long."""
        name = url.rpartition("/")[2]
        self.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        self.execute(_EMPTY, name)
        self._emptied.append(name)

    def create_empty_database(self) -> str:
        """The URL of a new database without any table."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} OWNER {USER}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Ends its sessions too."""
        self.execute(f"DROP DATABASE IF EXISTS {url.rpartition('/')[2]} WITH (FORCE)")

    def url(self, database: str, user: str = USER, port: int | None = None) -> str:
        """``user`` may have a password: ``user:password``."""
        return f"postgresql://{user}@127.0.0.1:{port or self.port}/{database}"

    def execute(self, sql: str, database: str = "postgres") -> str:
        """One statement as superuser; its rows, a line each."""
        done = self._psql(sql, database)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def _psql(self, sql: str, database: str = "postgres") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._binaries / "psql", "-XAtq", "-c", sql, self.url(database, "postgres")],
            capture_output=True,
            text=True,
            check=False,
        )

    async def _migrate(self, database: str) -> None:
        await upgrade_postgresql(lambda: asyncpg.connect(self.url(database)), 0)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._binaries / program, *arguments],
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
            **self._as_user(),
        )
        assert done.returncode == 0, done.stderr

    def _as_user(self) -> dict[str, object]:
        if os.geteuid() != 0:
            return {}
        entry = pwd.getpwnam(self._user)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
