"""``s3://``: objects in a bucket of Amazon S3 or of a server that speaks its API, through aiobotocore.

A put is one request: ``If-None-Match: *`` (an object is never overwritten) and our own CRC32C
(``x-amz-checksum-crc32c``), which the server verifies and keeps. There are no retries here: see :mod:`storage.retry`.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Sequence
from typing import Any

from aiohttp import ClientError as HttpClientError
from botocore.exceptions import ClientError
from crc32c import crc32c as crc32c_of

from runtime.clock import Entropy
from storage.keys import validate_key, validate_range
from storage.s3_body import PIECE_BYTES, ChunkedBody
from storage.s3_connection import S3Connection
from storage.s3_download import receive_body
from storage.s3_errors import advice, error_of_answer, status_and_code
from storage.store import (
    Chunk,
    ObjectExists,
    ObjectInfo,
    StorageError,
    StorageRefused,
    StorageUnavailable,
)
from storage.urls import S3Url

DELETE_KEYS_MAX = 1000
CHECK_FOLDER = "tidelog-check"


class S3Store:
    """The objects under one prefix of a bucket, through ``connection``, which it closes with itself."""

    hedged = True

    def __init__(self, where: S3Url, connection: S3Connection, entropy: Entropy) -> None:
        self.name = f"s3://{where.bucket}/{where.prefix}" + (f" at {where.endpoint}" if where.endpoint else "")
        self._where = where
        self._entropy = entropy
        self._request = connection.request
        self._close = connection.close

    async def put(self, key: str, chunks: Sequence[Chunk], crc32c: int) -> None:
        validate_key(key)
        byte_length = sum(map(len, chunks))
        body = b"".join(chunks) if byte_length <= PIECE_BYTES else ChunkedBody(chunks, byte_length)
        checksum = encode_crc32c(crc32c)

        async def once(client: Any) -> None:
            try:
                await client.put_object(
                    Bucket=self._where.bucket,
                    Key=self._where.prefix + key,
                    Body=body,
                    ContentLength=byte_length,
                    ChecksumAlgorithm="CRC32C",
                    ChecksumCRC32C=checksum,
                    IfNoneMatch="*",
                )
            except ClientError as error:
                status, code = status_and_code(error)
                if status != 412 and code != "PreconditionFailed":
                    raise
                if not await self._holds(client, key, byte_length, crc32c):
                    raise ObjectExists(f"put {key}: another object has this key") from error

        await self._request("put", key, once)

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        validate_key(key)
        validate_range(key, start, length)
        if length == 0:
            await self.head(key)
            return b""
        return await self._request("get", key, lambda client: self._get(client, key, start, length))

    async def head(self, key: str) -> ObjectInfo:
        validate_key(key)
        answer = await self._request(
            "head", key, lambda client: client.head_object(Bucket=self._where.bucket, Key=self._where.prefix + key)
        )
        return ObjectInfo(key, answer["ContentLength"], _milliseconds(answer["LastModified"]))

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            validate_key(key)
        for first in range(0, len(keys), DELETE_KEYS_MAX):
            names = [{"Key": self._where.prefix + key} for key in keys[first : first + DELETE_KEYS_MAX]]
            answer = await self._request(
                "delete",
                f"{len(names)} objects",
                lambda client, names=names: client.delete_objects(  # type: ignore[misc]
                    Bucket=self._where.bucket, Delete={"Objects": names, "Quiet": True}
                ),
            )
            for failed in answer.get("Errors", ()):
                code = str(failed.get("Code", ""))
                if code != "NoSuchKey":
                    raise error_of_answer(f"delete {failed.get('Key')}", 0, code, str(failed.get("Message", "")))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        more: dict[str, str] = {}
        while True:
            page = await self._request(
                "list",
                prefix,
                lambda client, more=more: client.list_objects_v2(  # type: ignore[misc]
                    Bucket=self._where.bucket, Prefix=self._where.prefix + prefix, **more
                ),
            )
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):  # what some tools leave to show an empty folder
                    key = entry["Key"].removeprefix(self._where.prefix)
                    yield ObjectInfo(key, entry["Size"], _milliseconds(entry["LastModified"]))
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    async def check(self) -> None:
        """Write, read, try to overwrite, list and delete one small object."""
        key = f"{CHECK_FOLDER}/{self._entropy.uuid_bytes().hex()}"
        data, other = b"tidelog", b"another"
        try:
            await self.put(key, [data], crc32c_of(data))
            if await self.get(key) != data:
                raise StorageRefused(f"get {key}: returned other bytes than were put")
            try:
                await self.put(key, [other], crc32c_of(other))
            except ObjectExists:
                pass
            else:
                raise StorageRefused(
                    f"put {key}: an object was overwritten although If-None-Match was sent; "
                    "Tidelog needs a store that supports conditional writes"
                )
            async for _ in self.list(key):
                pass
            await self.delete([key])
        except StorageError as error:
            hint = advice(self._where, error.__cause__)
            raise type(error)(f"cannot use storage {self.name}: {error}; {hint}") from error

    async def close(self) -> None:
        await self._close()

    async def _get(self, client: Any, key: str, start: int, length: int | None) -> bytes:
        wanted = {}
        if start or length is not None:
            last = "" if length is None else str(start + length - 1)
            wanted["Range"] = f"bytes={start}-{last}"
        try:
            answer = await client.get_object(Bucket=self._where.bucket, Key=self._where.prefix + key, **wanted)
        except ClientError as error:
            if status_and_code(error)[0] == 416:  # the range starts at or after the end
                return b""
            raise
        byte_length: int = answer["ContentLength"]
        async with answer["Body"] as body:
            if length is not None and byte_length > length:
                raise StorageRefused(f"get {key}: the server ignored the byte range")
            try:
                return await receive_body(body.raw_stream, byte_length)
            except HttpClientError as error:
                raise StorageUnavailable(f"get {key}: the connection broke within the body: {error}") from error

    async def _holds(self, client: Any, key: str, byte_length: int, crc32c: int) -> bool:
        """Whether the object under ``key`` is these bytes: then an earlier attempt, thought lost, had its effect."""
        answer = await client.head_object(
            Bucket=self._where.bucket, Key=self._where.prefix + key, ChecksumMode="ENABLED"
        )
        if answer["ContentLength"] != byte_length:
            return False
        checksum = answer.get("ChecksumCRC32C")
        if checksum is not None:
            return bool(checksum == encode_crc32c(crc32c))
        # A server that keeps no checksums.
        return crc32c_of(await self._get(client, key, 0, None)) == crc32c


def encode_crc32c(checksum: int) -> str:
    """As S3 writes it: big-endian, base64."""
    return base64.b64encode(checksum.to_bytes(4, "big")).decode()


def _milliseconds(moment: Any) -> int:
    return int(moment.timestamp() * 1000)
