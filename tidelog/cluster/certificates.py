"""A certificate authority and one certificate for the TLS listeners of a local cluster, made with ``openssl``.

For trying things out: the CA's key lies beside it, readable by this user only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tidelog.cluster.plan import TLS_GROUP, PlanError, TlsFiles

CA_DAYS = 3_650
CERTIFICATE_DAYS = 365
RENEW_BEFORE_SECONDS = 7 * 86_400
_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_EXTENSIONS = """\
subjectAltName = DNS:localhost, IP:127.0.0.1, IP:::1
basicConstraints = critical, CA:FALSE
extendedKeyUsage = serverAuth
"""


def local_certificates(folder: Path) -> TlsFiles:
    """Those in ``folder``, made anew unless they are there and valid for a week more. About 50 ms.

    :raises PlanError: there is no ``openssl``, or it failed; the message has its words.
    """
    files = TlsFiles(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    if shutil.which("openssl") is None:
        raise PlanError(
            f"--groups: {TLS_GROUP} needs the openssl command to make its certificates, and it is not installed "
            f"(Debian: apt-get install openssl); or leave the group out"
        )
    if all(path.exists() for path in (files.ca, files.certificate, files.key)) and _is_valid(files):
        return files
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    before = os.umask(0o077)
    try:
        _make(folder, files)
    finally:
        os.umask(before)
    return files


def _make(folder: Path, files: TlsFiles) -> None:
    ca_key, request, extensions = folder / "ca.key", folder / "server.csr", folder / "server.ext"
    _openssl(
        *("req", "-x509", *_CURVE, "-days", str(CA_DAYS), "-subj", "/CN=Tidelog local cluster CA"),
        *("-keyout", str(ca_key), "-out", str(files.ca)),
    )
    _openssl("req", *_CURVE, "-subj", "/CN=localhost", "-keyout", str(files.key), "-out", str(request))
    extensions.write_text(_EXTENSIONS)
    _openssl(
        *("x509", "-req", "-in", str(request), "-CA", str(files.ca), "-CAkey", str(ca_key), "-CAcreateserial"),
        *("-days", str(CERTIFICATE_DAYS), "-extfile", str(extensions), "-out", str(files.certificate)),
    )
    request.unlink()
    extensions.unlink()
    files.ca.chmod(0o644)


def _is_valid(files: TlsFiles) -> bool:
    """For a week more, and by the CA that is there."""
    command = ["openssl", "x509", "-checkend", str(RENEW_BEFORE_SECONDS), "-noout", "-in", str(files.certificate)]
    if subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode != 0:
        return False
    command = ["openssl", "verify", "-CAfile", str(files.ca), str(files.certificate)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


def _openssl(*arguments: str) -> None:
    done = subprocess.run(
        ["openssl", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode != 0:
        raise PlanError(f"openssl {arguments[0]} failed while making certificates: {done.stderr.strip()}")
