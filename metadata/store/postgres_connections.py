"""Connections to PostgreSQL that cannot hang, and errors that say where, what, and what to do, and show no password.

Everything that waits has a limit: connecting, each statement here (the client's timeout), each statement there
(``statement_timeout``, for when the client has gone), and a peer that has vanished without a word (TCP keepalives and
``TCP_USER_TIMEOUT`` on both sides).
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import asyncpg
from asyncpg import exceptions as pg
from asyncpg.connect_utils import SessionAttribute

from metadata.store.port import StoreUnavailable

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
else:  # generic in the stubs only
    Connection = asyncpg.Connection
    Pool = asyncpg.Pool

CONNECT_SECONDS = 3.0
PEER_SILENT_MS = 4_000
"""A peer that acknowledges nothing for so long is taken for gone."""
SERVER_STATEMENT_SECONDS = 60
"""No statement runs longer on the server, whatever became of the client that sent it."""
STATEMENTS_CACHED = 200

_HOST = re.compile(r"(\[[^\]]+\]|[^:\[\]@]+)(:\d+)?")
_HINTS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (
        (pg.InvalidPasswordError, pg.InvalidAuthorizationSpecificationError),
        "check the user, and the password in PGPASSWORD, a passfile or the URL",
    ),
    (pg.InvalidCatalogNameError, "create the database first (createdb)"),
    (
        pg.InsufficientPrivilegeError,
        "the user must own the database, and be the same for all metadata processes",
    ),
    (pg.TooManyConnectionsError, "raise max_connections: a metadata process needs up to six"),
    (
        (pg.ReadOnlySQLTransactionError, pg.TargetServerAttributeNotMatched),
        "this is a replica: name the primary, or both as host,host",
    ),
    (pg.DiskFullError, "free space on its disk"),
    ((OSError, pg.CannotConnectNowError), "is it running, and reachable from here?"),
    (pg.InvalidSchemaNameError, "the user needs a schema it may create tables in (search_path)"),
)


class _Connection(Connection):
    """Notices a vanished server by itself."""

    def __init__(self, protocol: object, transport: asyncio.Transport, *rest: object) -> None:
        super().__init__(protocol, transport, *rest)  # type: ignore[arg-type]  # passed through as they came
        _watch_peer(transport)


class PostgresServer:
    """A database, as its URL names it."""

    def __init__(self, url: str) -> None:
        """:raises ValueError: the URL is wrong; the message says how it should be, and shows nothing of it."""
        try:
            parts = urlsplit(url)
            user, _, hosts = parts.netloc.rpartition("@")
            database = unquote(parts.path.removeprefix("/"))
            valid = all(_HOST.fullmatch(host) for host in hosts.split(",")) and "@" not in user
            if parts.scheme != "postgresql" or not valid or not database or "/" in database or parts.fragment:
                raise ValueError
        except ValueError:
            message = "not postgresql://user@host:port/database (%40, %2F, %3A, %23 and %3F for @/:#? in names)"
            raise ValueError(message) from None
        self.name = f"postgresql://{hosts}/{database}"
        """For people: hosts and database, without user and password."""
        self._url = url
        self._settings = {
            "synchronous_commit": "on",
            "idle_in_transaction_session_timeout": f"{SERVER_STATEMENT_SECONDS}s",
            "client_connection_check_interval": "1s",
            "tcp_keepalives_idle": "1",
            "tcp_keepalives_interval": "1",
            "tcp_keepalives_count": "3",
            "tcp_user_timeout": str(PEER_SILENT_MS),
            # Every statement here is an index lookup or a bulk insert. A plan made while a table was small stays in
            # use when it has grown, so it must not be one that reads whole tables.
            "enable_seqscan": "off",
            "enable_hashjoin": "off",
            "enable_mergejoin": "off",
            "enable_bitmapscan": "off",
            "plan_cache_mode": "force_generic_plan",
            "jit": "off",
        }

    async def connect(self, purpose: str, timeout: float | None, **settings: str) -> Connection:
        """A connection to the primary whose statements take at most ``timeout`` seconds; None: as long as they need.

        ``purpose`` is shown in ``pg_stat_activity``. Errors are the driver's: see :meth:`explained`.
        """
        async with asyncio.timeout(CONNECT_SECONDS):
            return await asyncpg.connect(
                self._url,
                timeout=CONNECT_SECONDS,
                command_timeout=timeout,
                server_settings=self._session(purpose, timeout) | settings,
                target_session_attrs=SessionAttribute.primary,
                statement_cache_size=STATEMENTS_CACHED,
                connection_class=_Connection,
            )

    def pool(self, purpose: str, timeout: float, size: int) -> Pool:
        """Up to ``size`` connections, made as they are needed."""

        async def connect(*_: object, **__: object) -> Connection:
            return await self.connect(purpose, timeout)

        async def keep(_: object) -> None:
            """Nothing that is read here leaves anything behind."""

        return asyncpg.create_pool(min_size=0, max_size=size, connect=connect, reset=keep)

    def _session(self, purpose: str, timeout: float | None) -> dict[str, str]:
        limit = "0" if timeout is None else f"{SERVER_STATEMENT_SECONDS}s"
        name = f"tidelog-metadata {purpose} {os.getpid()}"
        return self._settings | {"application_name": name, "statement_timeout": limit}

    @contextmanager
    def explained(self, verb: str) -> Iterator[None]:
        """The driver's errors become StoreUnavailable: which database, what failed, what to do.

        :raises StoreUnavailable:
        """
        try:
            yield
        except StoreUnavailable:
            raise
        except (pg.PostgresError, pg.InterfaceError, pg.InternalClientError, OSError, TimeoutError) as error:
            raise StoreUnavailable(f"{self.name} cannot be {verb}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time: is it running, reachable from here, and not overloaded?"
    if isinstance(error, pg.InternalClientError):  # what it says is about its own workings
        return f"the connection has just been lost, or is not usable any more ({error})"
    hint = next((f": {hint}" for kinds, hint in _HINTS if isinstance(error, kinds)), "")
    return f"{error or type(error).__name__}{hint}"


def _watch_peer(transport: asyncio.Transport) -> None:
    peer = transport.get_extra_info("socket")
    if peer is None or peer.family == socket.AF_UNIX:
        return
    with socket.socket(fileno=os.dup(peer.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; elsewhere the timeouts of statements do
            for option, value in (
                (socket.TCP_KEEPIDLE, 1),
                (socket.TCP_KEEPINTVL, 1),
                (socket.TCP_KEEPCNT, 3),
                (socket.TCP_USER_TIMEOUT, PEER_SILENT_MS),
            ):
                same.setsockopt(socket.IPPROTO_TCP, option, value)
