"""How commands reach a cluster: the options that say where it is and by which TLS, and what is wrong when they do not.

librdkafka itself would try again until a timeout, and then say only that it timed out.
"""

from __future__ import annotations

import functools
import inspect
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from runtime.settings import SettingsError, parse_address

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 3.0

BOOTSTRAP_DEFAULT = "127.0.0.1:9092"

Bootstrap = Annotated[
    str,
    typer.Option(envvar="TIDELOG_BOOTSTRAP", metavar="HOST:PORT", help="Any agent of the cluster."),
]
TlsCa = Annotated[
    Path | None,
    typer.Option(envvar="TIDELOG_TLS_CA", metavar="FILE", help="Speak TLS; the CAs that sign agents' certificates."),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(envvar="TIDELOG_TLS_CERT", metavar="FILE", help="Certificate to show to the agent, with its chain."),
]
TlsKey = Annotated[
    Path | None, typer.Option(envvar="TIDELOG_TLS_KEY", metavar="FILE", help="The private key of --tls-cert.")
]

_CORRELATION_ID = 1_951_622_244
_CLIENT_ID = b"tidelog-cli"
_API_VERSIONS = struct.pack(">hhih", 18, 0, _CORRELATION_ID, len(_CLIENT_ID)) + _CLIENT_ID
_ANSWER_BYTES_MAX = 1024 * 1024


class CommandFailed(Exception):
    """The command could not do what it was asked; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where a command connects to: ``bootstrap`` is host:port of agents, with commas. With any of the files, by TLS;
    without ``tls_ca`` the machine's own CAs are trusted."""

    bootstrap: str = BOOTSTRAP_DEFAULT
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @property
    def uses_tls(self) -> bool:
        return (self.tls_ca, self.tls_cert, self.tls_key) != (None, None, None)

    def librdkafka_config(self) -> dict[str, Any]:
        """As librdkafka's options."""
        config = {"bootstrap.servers": self.bootstrap}
        if self.uses_tls:
            config["security.protocol"] = "ssl"
        for name, path in (("ca", self.tls_ca), ("certificate", self.tls_cert), ("key", self.tls_key)):
            if path is not None:
                config[f"ssl.{name}.location"] = str(path)
        return config

    def tls_context(self) -> ssl.SSLContext | None:
        """None for plaintext.

        :raises CommandFailed: a file is wrong; the message names the option.
        """
        if not self.uses_tls:
            return None
        if (self.tls_cert is None) != (self.tls_key is None):
            raise CommandFailed("--tls-cert and --tls-key go together")
        for option, path in (("--tls-ca", self.tls_ca), ("--tls-cert", self.tls_cert), ("--tls-key", self.tls_key)):
            if path is not None and not path.is_file():
                raise CommandFailed(f"{option} = '{path}': there is no such file")
        try:
            context = ssl.create_default_context(cafile=self.tls_ca)
        except ssl.SSLError as error:
            raise CommandFailed(f"--tls-ca = '{self.tls_ca}': not a file of CAs in PEM ({_words(error)})") from None
        if self.tls_cert is not None:
            try:
                context.load_cert_chain(self.tls_cert, self.tls_key, lambda: "")
            except ssl.SSLError as error:
                raise CommandFailed(
                    f"--tls-cert = '{self.tls_cert}', --tls-key = '{self.tls_key}': not a certificate and its key "
                    f"in PEM, without a passphrase ({_words(error)})"
                ) from None
        return context


def connects(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` the options of :class:`Cluster`, which it gets as the keyword ``cluster``."""

    @functools.wraps(command)
    def connected(
        *,
        bootstrap: str = BOOTSTRAP_DEFAULT,
        tls_ca: Path | None = None,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
        **others: Any,
    ) -> None:
        command(cluster=Cluster(bootstrap, tls_ca, tls_cert, tls_key), **others)

    hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(command).parameters.items()
        if name != "cluster"
    ]
    options: list[tuple[str, Any, Any]] = [
        ("bootstrap", Bootstrap, BOOTSTRAP_DEFAULT),
        ("tls_ca", TlsCa, None),
        ("tls_cert", TlsCert, None),
        ("tls_key", TlsKey, None),
    ]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, annotation, default in options
    ]
    connected.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]  # typer reads it
    return connected


def unreachable(cluster: Cluster) -> str | None:
    """Why none of the addresses can be used; None when one answers as Kafka. Takes a few seconds for each at most.

    :raises CommandFailed: one of them is no address, or a file for TLS is wrong.
    """
    problems = []
    context = cluster.tls_context()
    for address in (part.strip() for part in cluster.bootstrap.split(",")):
        try:
            host, port = parse_address("--bootstrap", address)
        except SettingsError as error:
            raise CommandFailed(str(error)) from None
        problem = _probe(address, host, port, context)
        if problem is None:
            return None
        problems.append(problem)
    return f"cannot reach the cluster (--bootstrap): {'; '.join(problems)}"


def _probe(address: str, host: str, port: int, context: ssl.SSLContext | None) -> str | None:
    """What is wrong with one address. Asks for ApiVersions 0, which every Kafka answers."""
    try:
        connection = socket.create_connection((host, port), CONNECT_SECONDS)
    except ConnectionRefusedError:
        return f"nothing listens at {address} (is `tidelog up` running?)"
    except OSError as error:
        return f"{address}: {error.strerror or error}"
    with connection:
        connection.settimeout(ANSWER_SECONDS)
        if context is None:
            return _ask(address, connection)
        try:
            secure = context.wrap_socket(connection, server_hostname=host)
        except ssl.SSLCertVerificationError as error:
            return f"{address}: its certificate is not to be trusted: {error.verify_message} (--tls-ca)"
        except OSError as error:
            return f"{address} does not speak TLS with us ({_words(error)}); is it a listener without?"
        with secure:
            return _ask(address, secure)


def _ask(address: str, connection: socket.socket) -> str | None:
    """What is wrong with what answers at ``address``."""
    by_tls = isinstance(connection, ssl.SSLSocket)
    answer = b""
    try:
        connection.sendall(struct.pack(">i", len(_API_VERSIONS)) + _API_VERSIONS)
        while len(answer) < 8 and (part := connection.recv(8 - len(answer))):
            answer += part
    except ssl.SSLError as error:
        return f"{address} refuses this client's TLS: {_words(error)} (--tls-cert, --tls-key)"
    except OSError:
        pass
    if len(answer) == 8:
        size, correlation_id = struct.unpack(">ii", answer)
        if correlation_id == _CORRELATION_ID and 4 <= size <= _ANSWER_BYTES_MAX:
            return None
    if by_tls:
        return f"{address} hangs up after the TLS handshake; does its group admit this client's certificate?"
    return (
        f"{address} accepts connections but does not answer as Kafka; is it the HTTP port, or does it want TLS "
        "(--tls-ca)?"
    )


def _words(error: OSError) -> str:
    reason = getattr(error, "reason", None)
    return str(reason).replace("_", " ").lower() if reason else (error.strerror or str(error))
