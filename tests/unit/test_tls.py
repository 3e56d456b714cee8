"""The files of ``nats.tls``: what cannot be used is named, with the setting, before any connection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from cryptography.hazmat.primitives import serialization

from fakes.certificates import Authority
from tierfall.cli.main import main
from tierfall.config import NatsTls
from tierfall.tls import TlsFileError, client_tls

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG: Final = """
nats: {{url: 'tls://nats:4222', tls: {{cert_file: {certificate}, key_file: {key}, ca_file: {ca}}}}}
tiers: {{one: {{worker: vllm, base_url: 'http://127.0.0.1:1/v1'}}}}
models: {{first: {{tier: one, backend_model: a}}}}
"""


class Files:
    """A CA, a certificate and its key, and others beside them."""

    def __init__(self, folder: Path) -> None:
        authority = Authority(folder)
        self.ca = authority.file
        self.certificate, self.key = authority.issue("worker")
        _, self.other_key = authority.issue("another")
        self.nothing = str(folder / "nothing.pem")
        self.text = str(folder / "text.pem")
        Path(self.text).write_text("no PEM\n")
        self.both = str(folder / "both.pem")
        Path(self.both).write_text(Path(self.certificate).read_text() + Path(self.key).read_text())
        key = serialization.load_pem_private_key(Path(self.key).read_bytes(), None)
        self.locked = str(folder / "locked.pem")
        Path(self.locked).write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"password"),
            )
        )


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Written anew for each test."""
    return Files(tmp_path / "tls")


def test_good_files(files: Files) -> None:
    """A pair is taken, in two files or in one; so is a CA alone, and nothing at all."""
    for settings in (
        NatsTls(cert_file=files.certificate, key_file=files.key, ca_file=files.ca),
        NatsTls(cert_file=files.both),
    ):
        assert client_tls(settings).has_certificate
    for settings in (NatsTls(), NatsTls(ca_file=files.ca)):
        assert not client_tls(settings).has_certificate


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda f: NatsTls(ca_file=f.nothing), "ca_file: cannot read {nothing}: No such file or directory"),
        (lambda f: NatsTls(ca_file=f.text), "ca_file: {text} holds no certificate in PEM form"),
        (lambda f: NatsTls(ca_file=f.key), "ca_file: {key} holds no certificate in PEM form"),
        (lambda f: NatsTls(cert_file=f.text, key_file=f.key), "cert_file: {text} holds no certificate"),
        (lambda f: NatsTls(cert_file=f.certificate), "key_file: {certificate} holds no private key"),
        (
            lambda f: NatsTls(cert_file=f.certificate, key_file=f.other_key),
            "key_file: {other_key} holds the key of another certificate than {certificate}",
        ),
        (
            lambda f: NatsTls(cert_file=f.certificate, key_file=f.locked),
            "key_file: {locked} holds no private key in PEM form without a password",
        ),
    ],
)
def test_bad_files(files: Files, made: Callable[[Files], NatsTls], said: str) -> None:
    """Each is named with what is wrong about it; a password is never asked for."""
    with pytest.raises(TlsFileError) as caught:
        client_tls(made(files))
    assert str(caught.value).startswith(said.format(**vars(files)))


def test_check_reads_them(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``tierfall check`` takes the good files and refuses a key that is not the certificate's."""
    path = tmp_path / "tierfall.yaml"
    path.write_text(CONFIG.format(**vars(files)))
    assert main(["check", str(path)]) == 0
    path.write_text(CONFIG.format(**(vars(files) | {"key": files.other_key})))
    assert main(["check", str(path)]) == 1
    assert f"nats.tls.key_file: {files.other_key} holds the key of another" in capsys.readouterr().out
