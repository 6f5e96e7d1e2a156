"""What S3's answers and botocore's exceptions mean to us, and to the person who starts Tidelog. Pure."""

from __future__ import annotations

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    InvalidRegionError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    SSLError,
)
from botocore.exceptions import ConnectionError as ConnectError

from storage.store import (
    ChecksumMismatch,
    ObjectNotFound,
    StorageError,
    StorageRefused,
    StorageThrottled,
    StorageUnavailable,
)
from storage.urls import S3Url

THROTTLING = frozenset(
    {"SlowDown", "SlowDownRead", "SlowDownWrite", "Throttling", "ThrottlingException", "RequestLimitExceeded"}
)
TRANSIENT = frozenset(
    {"RequestTimeout", "InternalError", "ConditionalRequestConflict", "OperationAborted", "IncompleteBody"}
)
CHECKSUM = frozenset({"BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"})
TRANSIENT_ERRORS = (ConnectError, HTTPClientError, CredentialRetrievalError, MetadataRetrievalError, OSError)
"""Credential and metadata retrieval fail so when the instance's metadata service does not answer in time."""
CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, ProfileNotFound)


def status_and_code(error: ClientError) -> tuple[int, str]:
    """HTTP status and S3 error code; a HEAD has no body, so its code is the status in digits."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(status), str(error.response.get("Error", {}).get("Code", ""))


def storage_error(operation: str, key: str, error: Exception) -> StorageError:
    """Our error for one failed request. 412 is not among them: whoever sends a condition handles its answer."""
    what = f"{operation} {key}"
    if isinstance(error, ClientError):
        status, code = status_and_code(error)
        message = str(error.response.get("Error", {}).get("Message", ""))
        return error_of_answer(what, status, code, message)
    if isinstance(error, (TimeoutError, ConnectTimeoutError, ReadTimeoutError)):
        return StorageUnavailable(f"{what}: no answer in time")
    if isinstance(error, SSLError):
        return StorageRefused(f"{what}: {error}")
    if isinstance(error, TRANSIENT_ERRORS):
        return StorageUnavailable(f"{what}: {error}")
    if isinstance(error, BotoCoreError):
        return StorageRefused(f"{what}: {error}")
    return StorageUnavailable(f"{what}: {error!r}")


def error_of_answer(what: str, status: int, code: str, message: str) -> StorageError:
    """Our error for what S3 answered."""
    text = f"{what}: {code or status} {message}".rstrip()
    if code in THROTTLING or status == 429 or code == "503":  # a HEAD's 503 cannot say SlowDown
        return StorageThrottled(text)
    if code in CHECKSUM or (code == "InvalidRequest" and "checksum" in message.lower()):
        return ChecksumMismatch(text)
    if code in TRANSIENT or status in (408, 409) or (status >= 500 and status != 501):
        return StorageUnavailable(text)
    if code in ("NoSuchKey", "404") or (status == 404 and code != "NoSuchBucket"):
        return ObjectNotFound(text)
    return StorageRefused(text)


def advice(where: S3Url, error: BaseException | None) -> str:
    """One sentence an operator can act on when the start-up check of ``where`` failed with ``error``."""
    endpoint = where.endpoint or "AWS"
    if isinstance(error, CREDENTIALS):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give this host an instance role"
    if isinstance(error, InvalidRegionError):
        return "correct the region: s3://...?region=eu-central-1"
    if isinstance(error, (EndpointConnectionError, ConnectTimeoutError)):
        return f"nothing answers at {endpoint}: start the server, or correct the endpoint or the network's rules"
    if isinstance(error, SSLError):
        return f"{endpoint} has no certificate this host trusts: set AWS_CA_BUNDLE, or correct the endpoint"
    if isinstance(error, ClientError):
        status, code = status_and_code(error)
        if code == "NoSuchBucket":
            return f"there is no bucket {where.bucket!r} at {endpoint}: create it, or correct the name"
        if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"):
            return f"{endpoint} does not accept these credentials ({code}): check the access key and the secret"
        if status == 403:
            return f"allow s3:PutObject, s3:GetObject, s3:DeleteObject and s3:ListBucket on bucket {where.bucket!r}"
        if status in (301, 307, 400) and code in ("PermanentRedirect", "AuthorizationHeaderMalformed"):
            return f"bucket {where.bucket!r} lives in another region: add ?region=..."
        if status == 501:
            return f"{endpoint} does not implement conditional writes (If-None-Match), which Tidelog needs"
    return f"check that {endpoint} is an S3 server and that bucket {where.bucket!r} can be written"
