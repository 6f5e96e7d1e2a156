"""The way to one S3 endpoint: aiobotocore's client, its connection pool, one timeout per request.

An 8 MiB PUT with aiobotocore's defaults hashes its payload twice; both are off, we send our own checksum. botocore's
retries are off too, so that attempts are counted and bounded in one place, but for one that cannot be: aiohttp sends
a small request again when a pooled connection turns out to be closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any, TypeVar

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError
from botocore.handlers import add_expect_header

from runtime.settings import S3Settings
from storage.s3_errors import storage_error
from storage.store import StorageError, StorageUnavailable
from storage.urls import S3Url

Result = TypeVar("Result")


def moment_of(text: str) -> datetime:
    """A timestamp in an answer: ISO 8601 in listings, RFC 9110 in ``Last-Modified``.

    botocore tries every format it knows, a tenth of a small request's CPU, and that for each of a page's 1,000 objects.

    :raises ValueError: it is neither.
    """
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return parsedate_to_datetime(text)


class S3Connection:
    """Connects with the first request (about 0.2 s of CPU, once).

    Credentials come from the usual AWS places: environment, profile, instance role.
    """

    def __init__(self, where: S3Url, settings: S3Settings) -> None:
        self._where = where
        self._settings = settings
        self._resources = AsyncExitStack()
        self._connecting = asyncio.Lock()
        self._client: Any = None
        self._closed = False

    async def request(self, operation: str, key: str, call: Callable[[Any], Awaitable[Result]]) -> Result:
        """``await call(client)`` within ``request_timeout_ms``, connecting and waiting for a free connection included.

        :raises StorageError: whatever botocore raised, as :mod:`storage.s3_errors` maps it.
        """
        try:
            async with asyncio.timeout(self._settings.request_timeout_ms / 1000):
                return await call(self._client if self._client is not None else await self._connect())
        except StorageError:
            raise
        except (ClientError, BotoCoreError, OSError, ValueError) as error:
            raise storage_error(operation, key, error) from error

    async def close(self) -> None:
        """Close the pooled connections; later requests fail. Idempotent."""
        self._closed = True
        async with self._connecting:
            self._client = None
            await self._resources.aclose()

    async def _connect(self) -> Any:
        async with self._connecting:
            if self._closed:
                raise StorageUnavailable(f"s3://{self._where.bucket}: the store is closed")
            if self._client is None:
                session = get_session()
                session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=moment_of)
                region = self._where.region or session.get_config_variable("region") or "us-east-1"
                client = await self._resources.enter_async_context(
                    session.create_client(
                        "s3", region_name=region, endpoint_url=self._where.endpoint, config=self._config()
                    )
                )
                # It would make every PUT wait one round trip for the server's "100 Continue".
                client.meta.events.unregister("before-call.s3", add_expect_header)
                self._client = client
            return self._client

    def _config(self) -> Any:
        timeout_seconds = self._settings.request_timeout_ms / 1000
        return AioConfig(
            user_agent=f"tidelog/{version('tidelog')}",  # botocore's own is put together twice for every request
            connect_timeout=timeout_seconds,
            read_timeout=timeout_seconds,
            max_pool_connections=self._settings.connections_max,
            retries={"total_max_attempts": 1, "mode": "standard"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            tcp_keepalive=True,
            s3={
                "payload_signing_enabled": False,
                "addressing_style": "path" if self._where.path_style else "auto",
            },
        )
