"""TLS: the server's certificate and key, and the authority of its clients' certificates, read again when they change.

gRPC asks for the certificate at every new connection, on a thread of its own; connections that are open stay as they
are. Where the new files do not do, the old ones stay in use.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from dubito_models.errors import InvalidArgument
from dubito_service.security.stamps import Stamp, stamp_of

log = logging.getLogger(__name__)

_LEAST_RSA_BITS = 2048
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_KEYS = f"an RSA key of at least {_LEAST_RSA_BITS} bits, or one on the curve P-256, P-384 or P-521"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the PEM files are; `client_ca`: whose certificates clients must bring, None: they need none."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class TlsPair:
    """A certificate chain and its key that go together, and the clients' authority: PEM."""

    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None
    until: datetime  # the certificate is good


def read_pair(files: TlsFiles, now: datetime) -> TlsPair:
    """Read and check the files; raises `InvalidArgument` for what no client could or should accept."""
    chain, key = _read("tls_certificate", files.certificate), _read("tls_key", files.key)
    leaf = _certificates("tls_certificate", files.certificate, chain)[0]
    _check_dates("tls_certificate", files.certificate, leaf, now)
    private = _private_key(files.key, key)
    if private.public_key() != leaf.public_key():
        raise InvalidArgument("tls_key", f"{files.key}, another certificate's", f"the key of {files.certificate}")
    authority = None
    if files.client_ca is not None:
        authority = _read("tls_client_ca", files.client_ca)
        for certificate in _certificates("tls_client_ca", files.client_ca, authority):
            _check_dates("tls_client_ca", files.client_ca, certificate, now)
    return TlsPair(chain, key, authority, leaf.not_valid_after_utc)


def _read(field: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgument(field, path, f"a file that can be read ({error.strerror})") from error


def _certificates(field: str, path: Path, data: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        raise InvalidArgument(field, f"{path}, which holds no certificate", "PEM, the leaf first") from None


def _check_dates(field: str, path: Path, certificate: x509.Certificate, now: datetime) -> None:
    if now >= certificate.not_valid_after_utc:
        given = f"{path}, which expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        raise InvalidArgument(field, given, "a certificate that is valid now")
    if now < certificate.not_valid_before_utc:
        given = f"{path}, which is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        raise InvalidArgument(field, given, "a certificate that is valid now")


def _private_key(path: Path, data: bytes) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError:
        raise InvalidArgument("tls_key", f"{path}, under a passphrase", "a key without one") from None
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidArgument("tls_key", f"{path}, which holds no private key", "PEM") from None
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < _LEAST_RSA_BITS:
            raise InvalidArgument("tls_key", f"{path}, an RSA key of {key.key_size} bits", _KEYS)
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return key
    raise InvalidArgument("tls_key", f"{path}, a key of another kind", _KEYS)


class Certificates:
    """The pair in use, and whether another lies in its place."""

    def __init__(self, files: TlsFiles, wall: Callable[[], float]) -> None:
        """Read the files; raises `InvalidArgument`. `wall` gives seconds since 1970."""
        self._files, self._wall = files, wall
        self._stamp = self._stamps()
        self._pair = self._read()
        self._refused = ""
        self._lock = threading.Lock()  # gRPC asks from several threads

    @property
    def pair(self) -> TlsPair:
        """What new connections get."""
        return self._pair

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials whose every new connection gets the newest pair."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._pair),
            self._fetch,  # type: ignore[arg-type]  # None is "no change", which the stubs do not know
            require_client_authentication=self._files.client_ca is not None,
        )

    def refresh(self) -> bool:
        """Read the files where they have changed; True where another pair is in use now."""
        with self._lock:
            stamp = self._stamps()
            if stamp == self._stamp:
                return False
            try:
                pair = self._read()
            except InvalidArgument as error:
                if str(error) != self._refused:  # said once, not at every connection
                    log.warning("certificate refused, the old one stays reason=%s", error)
                self._refused = str(error)
                return False
            self._pair, self._stamp, self._refused = pair, stamp, ""
            log.info("certificate read until=%s", pair.until.isoformat())
            return True

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        return _configuration(self._pair) if self.refresh() else None

    def _read(self) -> TlsPair:
        return read_pair(self._files, datetime.fromtimestamp(self._wall(), UTC))

    def _stamps(self) -> tuple[Stamp, ...]:
        files = (self._files.certificate, self._files.key, self._files.client_ca)
        return tuple(stamp_of(path) for path in files if path is not None)


def _configuration(pair: TlsPair) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)], pair.client_ca)


def tls_files(certificate: Path | None, key: Path | None, client_ca: Path | None) -> TlsFiles | None:
    """Return the files that are set, None for none; raises `InvalidArgument` where one needs another."""
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None:
        raise InvalidArgument("tls_certificate", "none", "the certificate of tls_key, for tls_client_ca too")
    if key is None:
        raise InvalidArgument("tls_key", "none", "the key of tls_certificate")
    return TlsFiles(certificate, key, client_ca)
