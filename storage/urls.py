"""Reads ``--storage`` URLs. Pure.

``memory://``, ``file:///dir``, ``s3://bucket/prefix?endpoint=http://host:port&region=eu-central-1&path_style=true``.
``memory`` and ``file`` also take ``put_p50_ms``, ``put_p99_ms``, ``get_p50_ms`` and ``get_p99_ms`` (all four), which
make them as slow as a distant store. ``memory`` takes ``capacity_bytes``: memory set aside, and touched, at the start.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from storage.latency import Latency

LATENCY_OPTIONS = ("put_p50_ms", "put_p99_ms", "get_p50_ms", "get_p99_ms")
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
FORMS = "memory://, file:///folder or s3://bucket/prefix?endpoint=...&region=..."


class StorageUrlError(ValueError):
    """A storage URL is wrong; the message says what and what is allowed."""


@dataclass(frozen=True, slots=True)
class SimulatedLatency:
    put: Latency
    get: Latency


@dataclass(frozen=True, slots=True)
class MemoryUrl:
    capacity_bytes: int | None = None
    latency: SimulatedLatency | None = None


@dataclass(frozen=True, slots=True)
class LocalUrl:
    root: Path
    latency: SimulatedLatency | None = None


@dataclass(frozen=True, slots=True)
class S3Url:
    """``prefix`` is empty or ends with ``/``. ``endpoint`` None is AWS itself; ``region`` None is the environment's."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    path_style: bool = False


def parse_storage_url(url: str) -> MemoryUrl | LocalUrl | S3Url:
    """:raises StorageUrlError:"""
    parts = urlsplit(url)
    options = _options(url, parts.query)
    if parts.fragment:
        raise StorageUrlError(f"storage {url!r}: '#' has no meaning here")
    match parts.scheme:
        case "memory":
            _allow(url, options, (*LATENCY_OPTIONS, "capacity_bytes"))
            if parts.netloc or parts.path not in ("", "/"):
                raise StorageUrlError(f"storage {url!r}: memory:// takes no path")
            capacity = options.get("capacity_bytes")
            return MemoryUrl(None if capacity is None else _positive_int(url, capacity), _latency(url, options))
        case "file":
            _allow(url, options, LATENCY_OPTIONS)
            root = Path(unquote(parts.path))
            if parts.netloc or not root.is_absolute() or root == Path("/"):
                raise StorageUrlError(f"storage {url!r}: name an absolute folder, with three slashes: file:///folder")
            return LocalUrl(root, _latency(url, options))
        case "s3":
            return _s3(url, parts.netloc, parts.path, options)
        case _:
            raise StorageUrlError(f"storage {url!r}: unknown kind {parts.scheme!r}; use {FORMS}")


def _s3(url: str, bucket: str, path: str, options: dict[str, str]) -> S3Url:
    _allow(url, options, ("endpoint", "region", "path_style"))
    if "@" in bucket:
        raise StorageUrlError("storage s3://...@...: no credentials in the URL; use AWS_ACCESS_KEY_ID or a role")
    if not BUCKET.fullmatch(bucket):
        raise StorageUrlError(f"storage {url!r}: {bucket!r} is not a bucket name; use s3://bucket/prefix")
    prefix = unquote(path).strip("/")
    if "//" in prefix:
        raise StorageUrlError(f"storage {url!r}: the prefix {prefix!r} has an empty part")
    endpoint = options.get("endpoint")
    if endpoint is not None:
        where = urlsplit(endpoint)
        if where.username is not None:
            raise StorageUrlError(
                f"storage s3://{bucket}: no credentials in the endpoint; use AWS_ACCESS_KEY_ID or a role"
            )
        if where.scheme not in ("http", "https") or not where.hostname:
            raise StorageUrlError(f"storage {url!r}: endpoint must be http://host:port or https://host:port")
    path_style = options.get("path_style", "true" if endpoint is not None else "false").lower()
    if path_style not in ("true", "false"):
        raise StorageUrlError(f"storage {url!r}: path_style must be true or false, not {path_style!r}")
    return S3Url(bucket, prefix + "/" if prefix else "", endpoint, options.get("region"), path_style == "true")


def _options(url: str, query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError as error:
        raise StorageUrlError(f"storage {url!r}: cannot read {query!r} as name=value&name=value") from error
    options = dict(pairs)
    if len(options) != len(pairs):
        raise StorageUrlError(f"storage {url!r}: an option is given twice")
    for name, value in pairs:
        if not value:
            raise StorageUrlError(f"storage {url!r}: {name} has no value")
    return options


def _allow(url: str, options: dict[str, str], allowed: tuple[str, ...]) -> None:
    for name in options:
        if name not in allowed:
            raise StorageUrlError(f"storage {url!r}: unknown option {name!r}; allowed: {', '.join(allowed)}")


def _positive_int(url: str, value: str) -> int:
    if not value.isdecimal() or int(value) == 0:
        raise StorageUrlError(f"storage {url!r}: {value!r} is not a positive whole number")
    return int(value)


def _latency(url: str, options: dict[str, str]) -> SimulatedLatency | None:
    given = [name for name in LATENCY_OPTIONS if name in options]
    if not given:
        return None
    if len(given) < len(LATENCY_OPTIONS):
        raise StorageUrlError(f"storage {url!r}: give all of {', '.join(LATENCY_OPTIONS)}, or none")
    try:
        put50, put99, get50, get99 = (float(options[name]) for name in LATENCY_OPTIONS)
        return SimulatedLatency(Latency(put50, put99), Latency(get50, get99))
    except ValueError as error:
        raise StorageUrlError(f"storage {url!r}: {error}") from error
