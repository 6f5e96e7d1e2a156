"""The certificates of the Kafka listener: read, checked, and read again when their files change.

A context is built from the files as a whole or not at all: what is wrong with them is found before a client meets it,
at the start as a wrong setting, later as one log line while the certificates in use stay. Connections keep the context
they began with.
"""

from __future__ import annotations

import asyncio
import datetime
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import structlog

from agent.metrics import AgentMetrics
from runtime.clock import Clock
from runtime.settings import SettingsError, TlsSettings

CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: forward secrecy and authenticated encryption only. TLS 1.3 has nothing else."""
SESSION_TICKETS: Final = 1
"""Tickets for resuming that a TLS 1.3 client is sent. OpenSSL would send two, and Kafka's clients use at most one."""
LOOK_SECONDS: Final = 3.0
"""How often the files are looked at."""

_PEM: Final = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

Signature = tuple[tuple[int, int, int] | None, ...]
"""Of each file: inode, size and time of its last change in nanoseconds; None when it is not there."""

_log = structlog.get_logger("tidelog.kafka")


@dataclass(frozen=True, slots=True)
class Loaded:
    """``context`` makes server sides of handshakes. ``expires_at``: when the first certificate of the chain expires,
    in seconds since the Unix epoch."""

    context: ssl.SSLContext
    expires_at: int


class Certificates:
    """What new handshakes are made with. Reads the files when it is made; then run :meth:`watch`.

    :raises SettingsError: a file is missing or wrong; the message names its setting.
    """

    def __init__(self, settings: TlsSettings, clock: Clock, metrics: AgentMetrics) -> None:
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._signature = _signature(settings)
        self._use(load(settings))

    @property
    def context(self) -> ssl.SSLContext:
        return self._loaded.context

    async def watch(self) -> None:
        """Look at the files every :data:`LOOK_SECONDS`, for ever. Cancellation ends it at once."""
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            found = await asyncio.to_thread(self._changed)
            if isinstance(found, Loaded):
                self._use(found)
            elif found is not None:
                _log.error("certificate_not_reloaded", reason=str(found), hint="the one in use is kept")

    def _changed(self) -> Loaded | SettingsError | None:
        """What the files hold now, when they have changed since the last look."""
        signature = _signature(self._settings)
        if signature == self._signature:
            return None
        self._signature = signature
        try:
            return load(self._settings)
        except SettingsError as error:
            return error

    def _use(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._metrics.certificate_expires_at = loaded.expires_at
        expires = (_EPOCH + datetime.timedelta(seconds=loaded.expires_at)).isoformat()
        if loaded.expires_at * 1000 <= self._clock.now_ms():
            _log.error("certificate_expired", certificate=str(self._settings.certificate), expires=expires)
        else:
            _log.info("certificate_loaded", certificate=str(self._settings.certificate), expires=expires)


def load(settings: TlsSettings) -> Loaded:
    """The files' contents, checked against each other.

    :raises SettingsError: a file is missing or wrong; the message names its setting.
    """
    assert settings.certificate is not None and settings.key is not None, "TLS is configured"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(CIPHERS)
    context.num_tickets = SESSION_TICKETS
    expires_at = _chain_expiry(settings.certificate)
    _read("key", settings.key)
    try:
        context.load_cert_chain(settings.certificate, settings.key, _refuse_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            _wrong("key", settings.key, f"it does not belong to tls.certificate = '{settings.certificate}'")
        if _is_usable(settings.certificate):
            _wrong("key", settings.key, f"not a private key in PEM without a passphrase ({_words(error)})")
        _wrong("certificate", settings.certificate, _words(error))
    except (OSError, ValueError) as error:
        _wrong("key", settings.key, str(error))
    if settings.client_ca is not None:
        text = _read("client_ca", settings.client_ca)
        if _PEM.search(text) is None:
            _wrong("client_ca", settings.client_ca, "there is no certificate in PEM in it")
        try:
            context.load_verify_locations(cadata=text)
        except ssl.SSLError as error:
            _wrong("client_ca", settings.client_ca, _words(error))
        context.verify_mode = ssl.CERT_REQUIRED
    return Loaded(context, expires_at)


def certificate_names(certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The names a client's certificate gives it: its CNs, then its DNS names; ``certificate`` is what
    ``SSLSocket.getpeercert`` answers, None or empty when the client showed none."""
    if not certificate:
        return ()
    common = [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]
    dns = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    return tuple(dict.fromkeys([*common, *dns]))


def expiry(der: bytes) -> int:
    """When an X.509 certificate expires, in seconds since the Unix epoch (RFC 5280, 4.1.2.5).

    The standard library decodes certificates of peers only, and nothing else here needs a library for them.

    :raises ValueError: it is not a certificate.
    """
    try:
        _, at, _ = _element(der, 0)  # Certificate
        _, at, _ = _element(der, at)  # TBSCertificate
        tag, _, after = _element(der, at)
        if tag == _EXPLICIT_VERSION:
            at = after
        for _ in range(3):  # serial number, signature algorithm, issuer
            at = _element(der, at)[2]
        _, at, _ = _element(der, at)  # validity
        at = _element(der, at)[2]  # not before
        tag, start, end = _element(der, at)
        text = der[start:end].decode("ascii")
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"not an X.509 certificate: {error}") from None
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("not an X.509 certificate: no validity where it should be")
    moment = datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.UTC)
    return int((moment - _EPOCH).total_seconds())


_EXPLICIT_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """The tag at ``at``, and where its content starts and ends."""
    tag, length, start = der[at], der[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length = int.from_bytes(der[start : start + count])
        start += count
    if start + length > len(der):
        raise IndexError("it is cut off")
    return tag, start, start + length


def _chain_expiry(path: Path) -> int:
    blocks = _PEM.findall(_read("certificate", path))
    if not blocks:
        _wrong("certificate", path, "there is no certificate in PEM in it")
    try:
        return min(expiry(ssl.PEM_cert_to_DER_cert(block)) for block in blocks)
    except ValueError as error:
        _wrong("certificate", path, str(error))


def _is_usable(certificate: Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cafile=certificate)
    except ssl.SSLError:
        return False
    return True


def _read(setting: str, path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        _wrong(setting, path, error.strerror or str(error))


def _refuse_passphrase() -> str:
    """Without this OpenSSL would ask for one on the terminal."""
    raise ValueError("it is protected by a passphrase; store it without one, readable by this process only")


def _wrong(setting: str, path: Path, reason: str) -> NoReturn:
    raise SettingsError(f"tls.{setting} = '{path}': {reason}") from None


def _words(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()


def _signature(settings: TlsSettings) -> Signature:
    return tuple(_file_signature(path) for path in (settings.certificate, settings.key, settings.client_ca) if path)


def _file_signature(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
