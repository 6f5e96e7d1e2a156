"""Who leads, in PostgreSQL: an advisory lock that ends with its session, and a generation that every write compares.

The lock alone keeps a second leader out while its session lives. The generation (the row ``leader``) does so when it
does not: whoever takes over raises it before reading anything, and a write that finds another one changes nothing.
A holder that is there but silent is found by its renewals (the row ``renewals``), which a standby watches by its own
monotonic clock, and its session is ended.

Statements on connections that are passed in; the driver's errors go through.
"""

from __future__ import annotations

import asyncio

import structlog

from metadata.store.port import Deposed, StoreUnavailable
from metadata.store.postgres_connections import Connection
from runtime.clock import Clock

_log = structlog.get_logger("tidelog.metadata.postgres")

LOCK = int.from_bytes(b"tidelog")
"""Of the one that leads; advisory locks belong to a database, so one database is one cluster."""
MIGRATING = LOCK + 1
"""Held while a leader migrates, and cannot renew: it is not replaced then. The server limits how long it may idle."""
LOOK_SECONDS = 0.25
"""Between two looks of a standby at the lock."""
LOOK_SECONDS_MAX = 2.0
"""For one look; a standby that gets no answer tries another connection."""
REGAIN_SECONDS = 5.0
"""For the server to end this process's own lost session, which has the lock until then."""

_HOLDER = f"""
    SELECT held.pid, backend_start, to_regclass('renewals') IS NOT NULL AS renews, EXISTS (
        SELECT FROM pg_locks AS other WHERE other.locktype = 'advisory' AND other.database = held.database
            AND other.classid = {MIGRATING >> 32} AND other.objid = {MIGRATING & 0xFFFFFFFF} AND other.objsubid = 1
    ) AS migrates
    FROM pg_locks AS held LEFT JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND held.granted AND objsubid = 1
        AND classid = {LOCK >> 32} AND objid = {LOCK & 0xFFFFFFFF}
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_TERMINATE = f"SELECT pg_terminate_backend(pid) FROM ({_HOLDER}) AS holder WHERE pid = $1"
_TAKE_OVER = """
    WITH taken AS (UPDATE leader SET generation = generation + 1 RETURNING generation)
    UPDATE renewals SET generation = taken.generation, renewed = 0 FROM taken RETURNING taken.generation
"""
_RENEW = "UPDATE renewals SET renewed = renewed + 1 WHERE generation = $1"
GENERATION = "SELECT generation FROM leader"


async def wait_for_lock(connection: Connection, clock: Clock, lease_ms: int) -> None:
    """Return when ``connection``'s session has the lock; a holder silent for ``lease_ms`` loses it."""
    seen: object = None
    seen_at = clock.monotonic()
    ended: int | None = None
    while not await _try_lock(connection):
        holder = await connection.fetchrow(_HOLDER, timeout=LOOK_SECONDS_MAX)
        if holder is None:
            await clock.sleep(LOOK_SECONDS / 10)  # it has gone in this moment
            continue
        sign = list(holder.values())
        if holder["renews"]:
            sign += (
                await connection.fetchrow("SELECT generation, renewed FROM renewals", timeout=LOOK_SECONDS_MAX) or ()
            )
        if sign != seen or holder["migrates"]:
            seen, seen_at = sign, clock.monotonic()
        elif clock.monotonic() - seen_at >= lease_ms / 1000:
            if ended != holder["pid"]:
                _log.warning("metadata_leader_replaced", silent_ms=lease_ms, backend_pid=holder["pid"])
            ended = holder["pid"]
            await connection.fetchval(_TERMINATE, ended, timeout=LOOK_SECONDS_MAX)
            await clock.sleep(LOOK_SECONDS / 10)
            continue
        await clock.sleep(LOOK_SECONDS)


async def _try_lock(connection: Connection) -> bool:
    return bool(await connection.fetchval(f"SELECT pg_try_advisory_lock({LOCK})", timeout=LOOK_SECONDS_MAX))


async def take_over(connection: Connection) -> int:
    """The next generation, durable: from now on nothing of an older one is written. The session must have the lock."""
    return int(await connection.fetchval(_TAKE_OVER))


async def regain_lock(connection: Connection, clock: Clock, generation: int, lost: tuple[int, object] | None) -> None:
    """Give the lock to ``connection``'s session if ``generation`` still leads.

    ``lost``: this process's former session, as :func:`session` named it. It is ended first where the server still has
    it: what it was writing is then decided, one way or the other, before the lock is free.

    :raises Deposed: another generation leads.
    :raises StoreUnavailable: another session has the lock and has not said yet what for.
    """
    until = clock.monotonic() + REGAIN_SECONDS
    while not await _try_lock(connection):
        await check_generation(connection, generation)
        holder = await connection.fetchrow(_HOLDER)
        if holder is not None and (holder["pid"], holder["backend_start"]) == lost:
            await connection.fetchval(_TERMINATE, holder["pid"])
        if clock.monotonic() >= until:
            raise StoreUnavailable("another session has the lock of the leader")
        await clock.sleep(LOOK_SECONDS / 10)
    await check_generation(connection, generation)


async def check_generation(connection: Connection, generation: int) -> None:
    """:raises Deposed: another one leads."""
    leads = await connection.fetchval(GENERATION)
    if leads != generation:
        raise deposed(generation, leads)


def deposed(generation: int, leads: int | None = None) -> Deposed:
    """The error of a leader of ``generation`` that has been replaced."""
    by = "another process" if leads is None else f"generation {leads}"
    return Deposed(f"{by} leads now, not generation {generation}")


async def renew(connection: Connection, generation: int) -> None:
    """:raises Deposed:"""
    if await connection.execute(_RENEW, generation) != "UPDATE 1":
        raise deposed(generation)


async def session(connection: Connection) -> tuple[int, object]:
    """What tells the server's side of ``connection`` from any other, now or later."""
    row = await connection.fetchrow("SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()")
    assert row is not None
    return row["pid"], row["backend_start"]


async def give_up_lock(connection: Connection) -> None:
    """Let the next one lead at once, not only when the server has noticed that the session ended."""
    async with asyncio.timeout(1):
        await connection.fetchval(f"SELECT pg_advisory_unlock({LOCK})")
