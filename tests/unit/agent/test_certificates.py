"""Certificate files: what is wrong with them, when they expire, whom they name."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from agent.certificates import Certificates, certificate_names, expiry, load
from agent.metrics import AgentMetrics
from runtime.budget import Budget
from runtime.clock import SystemClock
from runtime.settings import SettingsError, TlsSettings
from tests.support.certificates import Authority


def test_expiry_is_what_the_certificate_says(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    for days in (-400, 1, 30, 365 * 10, 365 * 40):  # the last in the other form that a time may have
        pair = authority.issue("some", valid_days=days)
        der = ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())
        assert expiry(der) == pair.expires_at
        assert expiry(der) == x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp()


@given(st.binary(max_size=200))
def test_expiry_of_anything_else(data: bytes) -> None:
    with pytest.raises(ValueError):
        expiry(data)


def test_the_first_of_a_chain_to_expire_counts(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("leaf", valid_days=30)
    early = authority.issue("intermediate", valid_days=3)
    pair.certificate.write_text(pair.certificate.read_text() + early.certificate.read_text())
    assert load(TlsSettings(certificate=pair.certificate, key=pair.key)).expires_at == early.expires_at


def test_what_is_wrong_is_said_with_the_name_of_the_setting(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    good, other = authority.issue("good"), authority.issue("other")
    hidden = authority.issue("hidden", passphrase="secret")
    nonsense, missing = tmp_path / "nonsense.pem", tmp_path / "missing.pem"
    nonsense.write_text("-----BEGIN CERTIFICATE-----\nbm9uc2Vuc2U=\n-----END CERTIFICATE-----\n")
    empty = tmp_path / "empty.pem"
    empty.write_bytes(b"\xff\x00")
    for certificate, key, client_ca, words in (
        (missing, good.key, None, ("tls.certificate = ", "missing.pem", "No such file")),
        (empty, good.key, None, ("tls.certificate = ", "no certificate in PEM")),
        (nonsense, good.key, None, ("tls.certificate = ", "not an X.509 certificate")),
        (good.key, good.key, None, ("tls.certificate = ", "no certificate in PEM")),
        (tmp_path, good.key, None, ("tls.certificate = ", "Is a directory")),
        (good.certificate, missing, None, ("tls.key = ", "No such file")),
        (good.certificate, empty, None, ("tls.key = ", "not a private key in PEM")),
        (good.certificate, other.key, None, ("tls.key = ", "does not belong to")),
        (good.certificate, hidden.key, None, ("tls.key = ", "passphrase")),
        (good.certificate, good.key, missing, ("tls.client_ca = ", "No such file")),
        (good.certificate, good.key, good.key, ("tls.client_ca = ", "no certificate in PEM")),
        (good.certificate, good.key, nonsense, ("tls.client_ca = ",)),
    ):
        with pytest.raises(SettingsError) as failure:
            load(TlsSettings(certificate=certificate, key=key, client_ca=client_ca))
        for word in words:
            assert word in str(failure.value)
    load(TlsSettings(certificate=good.certificate, key=good.key, client_ca=authority.path))


def test_an_expired_certificate_is_used_and_told(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("old", valid_days=-1)
    metrics = AgentMetrics(CollectorRegistry(), Budget(1))
    with capture_logs() as lines:
        Certificates(TlsSettings(certificate=pair.certificate, key=pair.key), SystemClock(), metrics)
    assert [line["event"] for line in lines] == ["certificate_expired"]
    assert metrics.certificate_expires_at == pair.expires_at


def test_names() -> None:
    assert certificate_names(None) == ()
    assert certificate_names({}) == ()
    certificate = {
        "subject": ((("organizationName", "Acme"),), (("commonName", "a"),), (("commonName", "b"),)),
        "subjectAltName": (("DNS", "a"), ("IP Address", "127.0.0.1"), ("DNS", "c.example")),
    }
    assert certificate_names(certificate) == ("a", "b", "c.example")
