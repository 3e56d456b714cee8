"""TLS as a client: the context from the configured files, and plain words for what a handshake fails with."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tierfall.config.schema import NatsTls

NO_PASSWORD: Final = b""
"""An encrypted key is an error; without this OpenSSL would ask for a password on the terminal."""

# From OpenSSL's x509_vfy.h.
_EXPIRED: Final = 10
_NOT_YET_VALID: Final = 9
_UNKNOWN_ISSUER: Final = frozenset({2, 18, 19, 20, 21})
_WRONG_NAME: Final = frozenset({62, 64})

WANTS_CERTIFICATE: Final = (
    "the server asks for a client certificate: set nats.tls.cert_file and nats.tls.key_file"
)
CERTIFICATE_REFUSED: Final = (
    "the server refused our client certificate (nats.tls.cert_file): it must be valid and of a CA known there"
)
NOT_TLS_FIRST: Final = "the server does not begin with TLS; take out nats.tls.handshake_first"
_REASONS: Final = {
    "WRONG_VERSION_NUMBER": NOT_TLS_FIRST,
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": WANTS_CERTIFICATE,
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": CERTIFICATE_REFUSED,
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "the server refused the TLS handshake; it may ask for a client"
    " certificate (nats.tls.cert_file)",
}
_REFUSING: Final = ("ALERT_BAD_CERTIFICATE", "ALERT_UNKNOWN_CA")


class TlsFileError(ValueError):
    """A configured file cannot be used; ``key`` is the setting that names it."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(f"{key}: {text}")
        self.key = key
        self.text = text


@dataclass(frozen=True, slots=True)
class ClientTls:
    """What a connection needs to begin TLS."""

    context: ssl.SSLContext
    handshake_first: bool
    has_certificate: bool


def client_tls(settings: NatsTls) -> ClientTls:
    """Checks the server's certificate, and shows ours if there is one.

    Reads the files each time, so that a renewed certificate is used from the next connection on.

    Raises:
        TlsFileError: A file cannot be read, holds something else, or the key is another certificate's.
    """
    for key in ("ca_file", "cert_file", "key_file"):
        if path := getattr(settings, key):
            _check_readable(key, path)
    _check_certificates("ca_file", settings.ca_file)
    _check_certificates("cert_file", settings.cert_file)
    context = ssl.create_default_context(cafile=settings.ca_file or None)
    if settings.cert_file:
        try:
            context.load_cert_chain(settings.cert_file, settings.key_file or None, NO_PASSWORD)
        except ssl.SSLError as error:
            holder = settings.key_file or settings.cert_file
            if error.reason == "KEY_VALUES_MISMATCH":
                text = f"{holder} holds the key of another certificate than {settings.cert_file}"
            else:
                text = f"{holder} holds no private key in PEM form without a password"
            raise TlsFileError("key_file", text) from None
    return ClientTls(context, settings.handshake_first, bool(settings.cert_file))


def explain(error: ssl.SSLError) -> str:
    """Which check of a handshake failed, and the setting to change."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is refused: {_verification(error)}"
    reason = error.reason or ""
    if any(alert in reason for alert in _REFUSING):
        return CERTIFICATE_REFUSED
    return _REASONS.get(reason, f"TLS failed: {error.strerror or error}")


def _verification(error: ssl.SSLCertVerificationError) -> str:
    code = error.verify_code
    if code == _EXPIRED:
        return "it has expired"
    if code == _NOT_YET_VALID:
        return "it is not valid yet; check this machine's clock"
    if code in _WRONG_NAME:
        # OpenSSL's own text names the host.
        return f"it is for another host name ({error.verify_message.rstrip('.')})"
    if code in _UNKNOWN_ISSUER:
        return f"its CA is not known here ({error.verify_message}); name the CA's file in nats.tls.ca_file"
    return error.verify_message


def _check_readable(key: str, path: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise TlsFileError(key, f"cannot read {path}: {error.strerror}") from None


def _check_certificates(key: str, path: str) -> None:
    if not path:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except ssl.SSLError:
        raise TlsFileError(key, f"{path} holds no certificate in PEM form") from None
