"""Certificates for the TLS group of a local cluster: a client that trusts the CA gets through, another does not."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest

from tidelog.cluster.certificates import local_certificates
from tidelog.cluster.plan import PlanError, TlsFiles


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return local_certificates(tmp_path_factory.mktemp("tls") / "new")


def _shake_hands(files: TlsFiles, client: ssl.SSLContext, name: str) -> str | None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.certificate, files.key)
    left, right = socket.socketpair()

    def serve() -> None:
        with right:
            try:
                server.wrap_socket(right, server_side=True).close()
            except OSError:
                return

    thread = threading.Thread(target=serve)
    thread.start()
    with left:
        try:
            return client.wrap_socket(left, server_hostname=name).version()
        finally:
            left.close()
            thread.join(5)


@pytest.mark.parametrize("name", ["127.0.0.1", "::1", "localhost"])
def test_a_client_that_trusts_the_ca_gets_through(files: TlsFiles, name: str) -> None:
    assert _shake_hands(files, ssl.create_default_context(cafile=str(files.ca)), name) == "TLSv1.3"


def test_others_do_not(files: TlsFiles) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        _shake_hands(files, ssl.create_default_context(), "localhost")
    with pytest.raises(ssl.SSLCertVerificationError):
        _shake_hands(files, ssl.create_default_context(cafile=str(files.ca)), "example.com")


def test_keys_are_their_owners_only(files: TlsFiles) -> None:
    for path in (files.key, files.ca.with_name("ca.key")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(files.ca.stat().st_mode) == 0o644


def test_they_are_kept_and_made_anew_when_they_no_longer_fit(tmp_path: Path) -> None:
    first = local_certificates(tmp_path)
    content = first.certificate.read_bytes()
    assert local_certificates(tmp_path).certificate.read_bytes() == content
    first.certificate.write_text("rubbish")
    assert local_certificates(tmp_path).certificate.read_bytes() not in (content, b"rubbish")


def test_without_openssl_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PlanError, match=r"needs the openssl command.*apt-get install openssl"):
        local_certificates(tmp_path)
