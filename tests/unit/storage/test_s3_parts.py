"""The pure parts of S3: how a body is cut into writes, and what answers mean."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    SSLError,
)
from hypothesis import given
from hypothesis import strategies as st

from storage.s3 import encode_crc32c
from storage.s3_body import PIECE_BYTES, ChunkedBody, pieces
from storage.s3_connection import moment_of
from storage.s3_errors import advice, storage_error
from storage.store import (
    ChecksumMismatch,
    ObjectNotFound,
    StorageError,
    StorageRefused,
    StorageThrottled,
    StorageUnavailable,
)
from storage.urls import S3Url

sizes = st.lists(st.one_of(st.integers(0, 50), st.integers(0, 3 * PIECE_BYTES)), max_size=20)


@given(sizes)
def test_pieces_are_the_same_bytes_in_few_writes(lengths: list[int]) -> None:
    chunks = [bytes([number % 256]) * length for number, length in enumerate(lengths)]
    cut = list(pieces(chunks))
    assert b"".join(cut) == b"".join(chunks)
    assert all(cut), "no empty write"
    large = sum(length >= PIECE_BYTES for length in lengths)
    small_bytes = sum(length for length in lengths if length < PIECE_BYTES)
    assert len(cut) <= 2 * large + 2 * small_bytes // PIECE_BYTES + 1
    assert all(any(piece is chunk for chunk in chunks) for piece in cut if len(piece) > PIECE_BYTES), (
        "large: not copied"
    )


async def test_a_body_can_be_sent_twice() -> None:
    body = ChunkedBody([b"a" * 10, memoryview(b"b" * PIECE_BYTES)], 10 + PIECE_BYTES)
    assert len(body) == 10 + PIECE_BYTES
    for _ in range(2):
        assert b"".join([piece async for piece in body]) == b"a" * 10 + b"b" * PIECE_BYTES
        body.seek(0)


@pytest.mark.parametrize("text", ["2026-11-24T15:11:47Z", "2026-11-24T15:11:47.000Z", "Tue, 24 Nov 2026 15:11:47 GMT"])
def test_moments_of_listings_and_of_headers(text: str) -> None:
    assert moment_of(text) == datetime(2026, 11, 24, 15, 11, 47, tzinfo=UTC)


def test_what_is_no_moment() -> None:
    with pytest.raises(ValueError):
        moment_of("yesterday")


def test_checksums_are_written_as_s3_does() -> None:
    assert encode_crc32c(0xE3069283) == "4waSgw=="  # CRC32C of b"123456789", RFC 3720's check value


def answer(status: int, code: str, message: str = "") -> ClientError:
    response: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "PutObject")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answer(404, "NoSuchKey"), ObjectNotFound),
        (answer(404, "404"), ObjectNotFound),
        (answer(404, "NoSuchBucket"), StorageRefused),
        (answer(403, "AccessDenied"), StorageRefused),
        (answer(403, "403"), StorageRefused),
        (answer(400, "InvalidArgument"), StorageRefused),
        (answer(501, "NotImplemented"), StorageRefused),
        (answer(503, "SlowDown"), StorageThrottled),
        (answer(503, "503"), StorageThrottled),
        (answer(429, "TooManyRequests"), StorageThrottled),
        (answer(400, "Throttling"), StorageThrottled),
        (answer(503, "ServiceUnavailable"), StorageUnavailable),
        (answer(500, "InternalError"), StorageUnavailable),
        (answer(502, "502"), StorageUnavailable),
        (answer(400, "RequestTimeout"), StorageUnavailable),
        (answer(409, "ConditionalRequestConflict"), StorageUnavailable),
        (answer(400, "BadDigest"), ChecksumMismatch),
        (answer(400, "InvalidRequest", "Value for x-amz-checksum-crc32c header is invalid."), ChecksumMismatch),
        (TimeoutError(), StorageUnavailable),
        (ConnectTimeoutError(endpoint_url="http://x"), StorageUnavailable),
        (EndpointConnectionError(endpoint_url="http://x"), StorageUnavailable),
        (HTTPClientError(error="broken"), StorageUnavailable),
        (ConnectionResetError("reset"), StorageUnavailable),
        (SSLError(endpoint_url="https://x", error=ssl.SSLError("bad certificate")), StorageRefused),
        (NoCredentialsError(), StorageRefused),
        (CredentialRetrievalError(provider="iam-role", error_msg="timeout"), StorageUnavailable),
        (ParamValidationError(report="wrong"), StorageRefused),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value)[:40],
)
def test_errors_are_sorted_by_what_helps(error: Exception, kind: type[StorageError]) -> None:
    mapped = storage_error("put", "some/key", error)
    assert type(mapped) is kind
    assert str(mapped).startswith("put some/key: ")


WHERE = S3Url("logs", "prod/", "http://127.0.0.1:9000")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NoCredentialsError(), "AWS_ACCESS_KEY_ID"),
        (EndpointConnectionError(endpoint_url="http://x"), "nothing answers at http://127.0.0.1:9000"),
        (answer(404, "NoSuchBucket"), "no bucket 'logs' at http://127.0.0.1:9000: create it"),
        (answer(403, "InvalidAccessKeyId"), "does not accept these credentials"),
        (answer(403, "AccessDenied"), "allow s3:PutObject"),
        (answer(301, "PermanentRedirect"), "another region"),
        (answer(501, "NotImplemented"), "conditional writes"),
        (SSLError(endpoint_url="https://x", error=ssl.SSLError("bad")), "AWS_CA_BUNDLE"),
        (None, "bucket 'logs'"),
    ],
)
def test_the_advice_names_what_to_do(error: Exception | None, words: str) -> None:
    assert words in advice(WHERE, error)
